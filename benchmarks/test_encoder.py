"""One BiLSTM layer, 300 -> H x 2: padded and packed nn.LSTM, a call for each side, against esim_fast's encoder.

Each variant begins with embedded words in its own form. The padded one runs over padding, so its states differ at the
end of a sentence: it is checked on a batch whose sentences are filled up, the others on both. A GPU also runs other
numbers of units, for which cuDNN has other algorithms, compares each with its floors, and sends the packed pairs
through `ops.bilstm(..., backend="cudnn")`, too. Under bf16 autocast PyTorch runs cuDNN's LSTMs in fp16; esim_fast's,
whose gradients must not underflow, multiplies in TF32.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import floors
import pytest
import torch
from baselines import TurnedBiLSTM, packed_lstm
from corpus import PairBatch, make_batches
from equality import TOLERANCE, difference
from models import HIDDEN, WIDTH, precision_set
from timing import DEVICE, ON_GPU, Comparison, copy_bandwidth, interleaved, product_rate
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from esim_fast.model import InputEncoding
from esim_fast.ops import bilstm

SIZES = [32, pytest.param(512, marks=pytest.mark.full)]
# Units and precision.
KINDS = [(HIDDEN, "tf32"), (HIDDEN, "bf16"), (256, "tf32"), (128, "tf32")]
KINDS = [(HIDDEN, "fp32"), *(pytest.param(*kind, marks=pytest.mark.gpu) for kind in KINDS)]
BATCHES = 4
PADDED, PACKED, OURS = "nn.LSTM, padded", "nn.LSTM, packed, a call a side", "esim_fast, packed pairs"
SIDES, TURNED = "packed rows, a call a side", "padded pairs, turned by length"
CUDNN = "esim_fast, packed pairs, cuDNN"


@dataclass
class Embedded:
    """A batch's embedded words, padded and packed, with the gradients of their encodings."""

    batch: PairBatch
    p: Tensor  # [B, Lp, WIDTH]
    h: Tensor  # [B, Lh, WIDTH]
    p_mask: Tensor
    h_mask: Tensor
    rows: Tensor  # [N], where in the packed form each word lies, sentence by sentence
    packed: Tensor  # [N, WIDTH]
    grad_p: Tensor
    grad_h: Tensor
    grad_packed: Tensor

    @classmethod
    def of(cls, batch: PairBatch, seed: int, units: int) -> "Embedded":
        generator = torch.Generator(DEVICE).manual_seed(seed)
        masks = [
            (torch.arange(ids.shape[1]) < lengths[:, None]).to(DEVICE)
            for ids, lengths in ((batch.p, batch.p_lengths), (batch.h, batch.h_lengths))
        ]
        pairs = batch.pairs
        places = pairs.rank[:, None] + pairs.first_row  # [2B, T]
        rows = places[torch.arange(places.shape[1], device=DEVICE) < pairs.lengths[:, None]]

        def draw(width: int) -> tuple[Tensor, Tensor, Tensor]:
            padded = [torch.randn(*mask.shape, width, generator=generator, device=DEVICE) for mask in masks]
            padded = [x * mask[:, :, None] for x, mask in zip(padded, masks, strict=True)]
            packed = torch.empty(len(rows), width, device=DEVICE)
            packed[rows] = torch.cat([x[mask] for x, mask in zip(padded, masks, strict=True)])
            return *padded, packed

        p, h, packed = (x.requires_grad_() for x in draw(WIDTH))
        return cls(batch, p, h, *masks, rows, packed, *draw(2 * units))

    @property
    def lengths(self) -> Tensor:
        """Of premises, then of hypotheses: ``[2B]``, on the CPU."""
        return torch.cat([self.batch.p_lengths, self.batch.h_lengths])


def packed_sides(lstm: nn.LSTM, x: Embedded) -> tuple[Tensor, Tensor]:
    return packed_lstm(lstm, x.p, x.batch.p_lengths), packed_lstm(lstm, x.h, x.batch.h_lengths)


class Sides:
    """Premises and hypotheses as packed sequences of their own, made before the clock starts."""

    def __init__(self, x: Embedded) -> None:
        self.sequences, self.rows = [], []
        for side, lengths in ((x.p, x.batch.p_lengths), (x.h, x.batch.h_lengths)):
            order = lengths.argsort(descending=True, stable=True)
            batch_sizes = (lengths[:, None] > torch.arange(int(lengths.max()))).sum(0)
            place = torch.cat([torch.zeros(1, dtype=torch.int64), batch_sizes.cumsum(0)[:-1]])
            steps = [(time, order[: int(count)]) for time, count in enumerate(batch_sizes)]
            sentence = torch.cat([index for _, index in steps])
            time = torch.cat([torch.full_like(index, time) for time, index in steps])
            words = side.detach()[sentence.to(DEVICE), time.to(DEVICE)].requires_grad_()
            rank = order.argsort()
            rows = torch.cat([rank[s] + place[: int(n)] for s, n in enumerate(lengths)])
            self.sequences.append(PackedSequence(words, batch_sizes))
            self.rows.append(rows.to(DEVICE))


def padded_pairs(x: Embedded) -> Tensor:
    """Premises and hypotheses as one padded batch, ``[2B, T, WIDTH]``."""
    longest = max(x.p.shape[1], x.h.shape[1])
    sides = [nn.functional.pad(side.detach(), (0, 0, 0, longest - side.shape[1])) for side in (x.p, x.h)]
    return torch.cat(sides).requires_grad_()


@dataclass
class Layer:
    """A variant: its parameters, the words it begins with, and their states; both one tensor for each of its calls."""

    net: nn.Module
    words: Callable[[Embedded], tuple[Tensor, ...]]
    states: Callable[[Embedded], tuple[Tensor, ...]]
    rows: Callable[[Embedded], tuple[Tensor, ...]]  # which rows of them are words, sentence by sentence, in each

    def gradients(self, x: Embedded, y: tuple[Tensor, ...], grad_y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        grads = [grad.to(state.dtype) for grad, state in zip(grad_y, y, strict=True)]
        return torch.autograd.grad(y, (*self.words(x), *self.net.parameters()), grads)


def layers(units: int, inputs: list[Embedded]) -> dict[str, Layer]:
    """The variants, all with the same weights; what they begin with is made here."""
    torch.manual_seed(0)
    ours = InputEncoding(WIDTH, units, backend=None).to(DEVICE)
    lstm = nn.LSTM(WIDTH, units, bidirectional=True, batch_first=True).to(DEVICE)
    merged = nn.LSTM(WIDTH, units, bidirectional=True).to(DEVICE)
    turned = TurnedBiLSTM(WIDTH, units).to(DEVICE)
    for net in (lstm, merged):
        net.load_state_dict(ours.lstm.state_dict())
    turned.load_bilstm(ours.lstm.state_dict())
    sides = {id(x): Sides(x) for x in inputs}
    padded = {id(x): padded_pairs(x) for x in inputs}
    places = {id(x): x.lengths.to(DEVICE) for x in inputs}

    def masks(x: Embedded) -> tuple[Tensor, ...]:
        return x.p_mask, x.h_mask

    def both_masks(x: Embedded) -> tuple[Tensor, ...]:
        return (torch.arange(padded[id(x)].shape[1], device=DEVICE) < places[id(x)][:, None],)

    found = {
        PADDED: Layer(lstm, lambda x: (x.p, x.h), lambda x: (lstm(x.p)[0], lstm(x.h)[0]), masks),
        PACKED: Layer(lstm, lambda x: (x.p, x.h), lambda x: packed_sides(lstm, x), masks),
        SIDES: Layer(
            merged,
            lambda x: tuple(sequence.data for sequence in sides[id(x)].sequences),
            lambda x: tuple(merged(sequence)[0].data for sequence in sides[id(x)].sequences),
            lambda x: tuple(sides[id(x)].rows),
        ),
        TURNED: Layer(
            turned, lambda x: (padded[id(x)],), lambda x: (turned(padded[id(x)], places[id(x)]),), both_masks
        ),
        OURS: Layer(ours, lambda x: (x.packed,), lambda x: (ours(x.packed, x.batch.pairs),), lambda x: (x.rows,)),
    }
    if DEVICE.type == "cuda":

        def cudnn(x: Embedded) -> tuple[Tensor]:
            return (bilstm(merged, x.packed, x.batch.pairs.batch_sizes, backend="cudnn"),)

        found[CUDNN] = Layer(merged, lambda x: (x.packed,), cudnn, lambda x: (x.rows,))
    return found


def grads_of(layer: Layer, x: Embedded, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of the states, in the variant's form: those of ``x`` at words, zero elsewhere."""
    words = torch.cat([x.grad_p[x.p_mask], x.grad_h[x.h_mask]])
    parts = words.split([int(rows.sum()) if rows.dtype == torch.bool else len(rows) for rows in layer.rows(x)])
    grads = []
    for states, rows, part in zip(y, layer.rows(x), parts, strict=True):
        grad = torch.zeros(states.shape, device=DEVICE)
        grad[rows] = part
        grads.append(grad)
    return tuple(grads)


def results(layer: Layer, x: Embedded) -> dict[str, Tensor]:
    """What is compared: states and gradients of the words, one sentence behind the other, and of the weights."""

    def valid(tensors: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([side.detach()[rows] for side, rows in zip(tensors, layer.rows(x), strict=True)])

    y = layer.states(x)
    grads = layer.gradients(x, y, tuple(grad.to(y[0].dtype) for grad in grads_of(layer, x, y)))
    words = len(layer.words(x))
    named = zip((key.removeprefix("lstm.") for key, _ in layer.net.named_parameters()), grads[words:], strict=True)
    return {"states": valid(y), "gradient of the words": valid(grads[:words]), **TurnedBiLSTM.bilstm_names(dict(named))}


def wrong_ones(variants: dict[str, Layer], x: Embedded, units: int, *, filled: bool) -> dict[str, str]:
    """The peers whose results are wrong here, and how."""
    lstm = nn.LSTM(WIDTH, units, bidirectional=True, batch_first=True).to(DEVICE, torch.float64)
    lstm.load_state_dict(variants[PADDED].net.state_dict())
    p, h = (side.detach().double().requires_grad_() for side in (x.p, x.h))
    exact_x = replace(x, p=p, h=h)
    exact_layer = replace(variants[PACKED], net=lstm, states=lambda x: packed_sides(lstm, x))
    exact = results(exact_layer, exact_x)
    found = {}
    for name, layer in variants.items():
        if name == PADDED and not filled:
            continue
        if wrong := difference(results(layer, x), exact, TOLERANCE["fp32"]):
            assert name not in (OURS, CUDNN), f"{name}: {wrong}"
            found[name] = wrong
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("units", "precision"), KINDS)
def test_encoder(size, units, precision, report):
    batches = [batch.to(DEVICE) for batch in make_batches("SNLI", size, BATCHES)]
    inputs = [Embedded.of(batch, seed, units) for seed, batch in enumerate(batches)]
    filled = Embedded.of(batches[-1].filled(), 0, units)
    variants = layers(units, [*inputs, filled])
    with precision_set("fp32"):
        wrong = wrong_ones(variants, inputs[-1], units, filled=False) | wrong_ones(variants, filled, units, filled=True)
        variants = {name: layer for name, layer in variants.items() if name not in wrong}
        prepared = {name: [grads_of(layer, x, layer.states(x)) for x in inputs] for name, layer in variants.items()}

    def forward(layer):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            return [layer.states(x) for x in inputs]

    def both(name, layer):
        for x, y, grad_y in zip(inputs, forward(layer), prepared[name], strict=True):
            layer.gradients(x, y, grad_y)

    passes = {
        "forward": {name: lambda layer=layer: forward(layer) for name, layer in variants.items()},
        "forward + backward": {name: lambda n=name, layer=layer: both(n, layer) for name, layer in variants.items()},
    }
    shapes = " ".join(batch.shape for batch in batches)
    title = f"encoder, {units} units, SNLI at batch {size} ({shapes}), {precision} on {DEVICE.type}"
    parameters = {"lengths": "SNLI", "batch": size, "precision": precision, "device": DEVICE.type, "batches": BATCHES}
    notes = tuple(f"{name}: left out, {reason}" for name, reason in wrong.items())
    for which, calls in passes.items():
        with precision_set(precision), torch.no_grad() if which == "forward" else nullcontext():
            comparison = interleaved(f"{title}: {which}, {BATCHES} batches", calls, seconds=3.0)
        comparison = replace(comparison, notes=notes)
        if ON_GPU:
            comparison = against_the_floor(comparison, inputs, units, precision, which)
        group = "encoder" if units == HIDDEN else f"encoder of {units} units"
        report(comparison.of(group, **parameters, **{"pass": which}))


def against_the_floor(
    comparison: Comparison, inputs: list[Embedded], units: int, precision: str, which: str
) -> Comparison:
    """With what the least bytes and operations take at the device's own rates, and what a time step takes."""
    lengths, element = [x.lengths.numpy() for x in inputs], floors.ELEMENT[precision]
    training = which != "forward"
    work = [floors.bilstm(batch, WIDTH, units, element, training=training) for batch in lengths]
    if training:
        work += [floors.bilstm(batch, WIDTH, units, element, backward=True) for batch in lengths]
    bandwidth, rate = copy_bandwidth(), product_rate(precision)
    steps, seconds = sum(int(batch.max()) for batch in lengths), comparison.values[OURS]
    notes = (
        *comparison.notes,
        f"floor of {sum(floor.flops for floor in work) / 1e9:,.1f} GFLOP at {rate / 1e12:,.0f} TFLOP/s and "
        f"{sum(floor.bytes for floor in work) / 1e6:,.0f} MB at {bandwidth / 1e12:.2f} TB/s",
        f"{steps} time steps, of which {OURS} takes {1e6 * seconds / steps:,.1f} µs each",
    )
    return replace(comparison, notes=notes, floor=sum(floor.seconds(bandwidth, rate) for floor in work))
