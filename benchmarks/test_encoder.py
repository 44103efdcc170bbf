"""One BiLSTM layer, 300 -> 300 x 2: padded and packed nn.LSTM, a call for each side, against esim_fast's encoder.

All begin with embedded words in their own form. The padded one runs over padding and so computes something else at the
end of a sentence: it is found to be right on a batch whose sentences are filled up, the others on both.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from baselines import packed_lstm
from corpus import PairBatch, make_batches
from equality import TOLERANCE, difference
from models import HIDDEN, WIDTH, precision_set
from timing import interleaved
from torch import Tensor, nn

from esim_fast.model import InputEncoding

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [32, *(pytest.param(size, marks=pytest.mark.full) for size in (128, 512, 1024))]
PRECISIONS = ["fp32", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("tf32", "bf16"))]
BATCHES = 4
PADDED, PACKED, OURS = "nn.LSTM, padded", "nn.LSTM, packed, a call a side", "esim_fast, packed pairs"


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
    def of(cls, batch: PairBatch, seed: int) -> "Embedded":
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
        return cls(batch, p, h, *masks, rows, packed, *draw(2 * HIDDEN))


def packed_sides(lstm: nn.LSTM, x: Embedded) -> tuple[Tensor, Tensor]:
    return packed_lstm(lstm, x.p, x.batch.p_lengths), packed_lstm(lstm, x.h, x.batch.h_lengths)


def layers() -> dict[str, tuple[nn.Module, Callable[[Embedded], tuple[Tensor, ...]]]]:
    """The variants: from embedded words to both encodings, or one for packed words. All have the same weights."""
    torch.manual_seed(0)
    ours = InputEncoding(WIDTH, HIDDEN).to(DEVICE)
    lstm = nn.LSTM(WIDTH, HIDDEN, bidirectional=True, batch_first=True).to(DEVICE)
    lstm.load_state_dict(ours.lstm.state_dict())
    return {
        PADDED: (lstm, lambda x: (lstm(x.p)[0], lstm(x.h)[0])),
        PACKED: (lstm, lambda x: packed_sides(lstm, x)),
        OURS: (ours, lambda x: (ours(x.packed, x.batch.pairs),)),
    }


def gradients(name: str, net: nn.Module, x: Embedded, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    words, grads = ((x.packed,), (x.grad_packed,)) if name == OURS else ((x.p, x.h), (x.grad_p, x.grad_h))
    return torch.autograd.grad(y, (*words, *net.parameters()), [g.to(of.dtype) for g, of in zip(grads, y, strict=True)])


def results(name: str, net: nn.Module, x: Embedded, y: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What is compared: states and gradients of the words, one sentence behind the other, and of the weights."""

    def valid(of: tuple[Tensor, ...]) -> Tensor:
        if name == OURS:
            return of[0].detach()[x.rows]
        return torch.cat([side.detach()[mask] for side, mask in zip(of, (x.p_mask, x.h_mask), strict=True)])

    words = 1 if name == OURS else 2
    grads = gradients(name, net, x, y)
    named = zip((key.removeprefix("lstm.") for key, _ in net.named_parameters()), grads[words:], strict=True)
    return {"states": valid(y), "gradient of the words": valid(grads[:words]), **dict(named)}


def check(variants: dict, x: Embedded, *, filled: bool) -> None:
    lstm = nn.LSTM(WIDTH, HIDDEN, bidirectional=True, batch_first=True).to(DEVICE, torch.float64)
    lstm.load_state_dict(variants[PADDED][0].state_dict())
    p, h = (side.detach().double().requires_grad_() for side in (x.p, x.h))
    exact_x = replace(x, p=p, h=h)
    exact = results(PACKED, lstm, exact_x, packed_sides(lstm, exact_x))
    for name, (net, encode) in variants.items():
        if name == PADDED and not filled:
            continue
        wrong = difference(results(name, net, x, encode(x)), exact, TOLERANCE["fp32"])
        assert wrong is None, f"{name}: {wrong}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_encoder(size, precision, report):
    batches = [batch.to(DEVICE) for batch in make_batches("SNLI", size, BATCHES)]
    inputs = [Embedded.of(batch, seed) for seed, batch in enumerate(batches)]
    variants = layers()
    with precision_set("fp32"):
        check(variants, inputs[-1], filled=False)
        check(variants, Embedded.of(batches[-1].filled(), 0), filled=True)

    def forward(encode):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            return [encode(x) for x in inputs]

    def both(name, net, encode):
        for x, y in zip(inputs, forward(encode), strict=True):
            gradients(name, net, x, y)

    passes = {
        "forward": {name: lambda e=encode: forward(e) for name, (_, encode) in variants.items()},
        "forward + backward": {name: lambda n=name, v=v: both(n, *v) for name, v in variants.items()},
    }
    shapes = " ".join(batch.shape for batch in batches)
    title = f"encoder, SNLI at batch {size} ({shapes}), {precision} on {DEVICE.type}"
    parameters = {"lengths": "SNLI", "batch": size, "precision": precision, "device": DEVICE.type, "batches": BATCHES}
    for which, calls in passes.items():
        with precision_set(precision), torch.no_grad() if which == "forward" else nullcontext():
            comparison = interleaved(f"{title}: {which}, {BATCHES} batches", calls, device=DEVICE, seconds=3.0)
            report(comparison.of("encoder", **parameters, **{"pass": which}))
