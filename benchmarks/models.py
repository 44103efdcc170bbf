"""Whole models with the notebook's mathematics, the ways to run them, and the check that they agree.

In fp32, the logits and the gradient of each parameter must lie within 1e-5 of fp64's, relative to their norm. In TF32
and under bf16 autocast, rounding decides between near-equal maxima, so only logits are checked, to 16 units in the last
place; in int8, to 1 in 128.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.baselines import EAGER, PADDING, Coetaur0ESIM, NotebookESIM
from benchmarks.corpus import VOCABULARY, PairBatch, make_batches
from benchmarks.measure import DEVICE, DRY_RUN, Call, Variant, precision_set, saved_bytes
from esim_fast import ESIM

HIDDEN, WIDTH, _, LABELS = SIZES = (16, 16, VOCABULARY, 3) if DRY_RUN else (300, 300, VOCABULARY, 3)
PEERS = (EAGER, "coetaur0 style")
COMPILED = ("torch.compile of eager", "torch.compile of coetaur0 style")
OURS = ("esim_fast, ids alone", "esim_fast, with lengths", "esim_fast, packed batches")
NAMES = (*PEERS, *COMPILED, *OURS)

BATCHES = 2  # of bucketed length, timed together
TOLERANCE = {"fp32": 1e-5, "tf32": 16 * 2**-10, "bf16": 16 * 2**-7, "int8": 2**-7}
_TIE = 3e-7  # several times fp32's error; rounding decides between values that are closer than this


class Model(NamedTuple):
    """A way to run a network.

    Attributes:
        net: the network.
        logits: computes a batch's logits.
        padded: whether the recurrence runs over padding.
        file_bytes: returns the size of the model's file, if it has one.
    """

    net: nn.Module
    logits: Callable[[PairBatch], Tensor]
    padded: bool = False
    file_bytes: Callable[[], int] | None = None


@lru_cache(maxsize=1)
def models(precision: str, compiled: bool) -> dict[str, Model | str]:
    """The models, with dropout as in their sources; some share a network."""
    torch.compiler.reset()  # earlier compilations count towards torch.compile's limit
    ours = ESIM(*SIZES, variant="notebook").to(DEVICE)
    notebook = NotebookESIM(*SIZES, packed=False).to(DEVICE)
    coetaur0 = Coetaur0ESIM(*SIZES, variant="notebook").to(DEVICE)
    found: dict[str, Model | str] = {
        PEERS[0]: Model(notebook, lambda x: notebook(x.p, x.h), padded=True),
        PEERS[1]: Model(coetaur0, lambda x: coetaur0(x.p, x.h, x.p_lengths, x.h_lengths)),
        **dict.fromkeys(COMPILED, "slow to compile: run with --full"),
        OURS[0]: Model(ours, lambda x: ours(x.p, x.h)),
        OURS[1]: Model(ours, lambda x: ours(x.p, x.h, x.p_lengths, x.h_lengths)),
        OURS[2]: Model(ours, lambda x: ours(x.pairs)),
    }
    if compiled:
        fast, fast_coetaur0 = (torch.compile(net, dynamic=True) for net in (notebook, coetaur0))
        found[COMPILED[0]] = Model(notebook, lambda x: fast(x.p, x.h), padded=True)
        found[COMPILED[1]] = Model(coetaur0, lambda x: fast_coetaur0(x.p, x.h, x.p_lengths, x.h_lengths))
    return found


def logits_of(model: Model, batch: PairBatch, precision: str) -> Tensor:
    """A batch's logits. Autocast is entered once per batch, as in a training loop, so weights are cast every time."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
        return model.logits(batch)


def loss_of(model: Model, batch: PairBatch, precision: str) -> Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
        return cross_entropy(model.logits(batch), batch.labels)


def timed(model: Model, batches: list, precision: str, training: bool) -> Call:
    """Logits without gradients, or training steps: zero_grad, forward, cross entropy, backward, fused Adam."""
    optimizer = torch.optim.Adam(model.net.train(training).parameters(), lr=4e-4, fused=True)

    @precision_set(precision)
    @torch.set_grad_enabled(training)
    def call() -> None:
        for batch in batches:
            if training:
                optimizer.zero_grad()
                loss_of(model, batch, precision).backward()
                optimizer.step()
            else:
                logits_of(model, batch, precision)

    return call


def variants(found: dict[str, Model | str], pairs: int, precision: str, training: bool) -> dict[str, Variant | str]:
    batches = [batch.to(DEVICE) for batch in make_batches(pairs, BATCHES)]
    check = Check(batches[-1], precision, gradients=training)

    def variant(model: Model) -> Variant:
        loss = partial(loss_of, model, batches[-1], precision)
        saves = partial(saved_bytes, loss, list(model.net.parameters())) if training else None
        call = timed(model, batches, precision, training)
        return Variant(call, partial(check, model), saves=saves, file_bytes=model.file_bytes)

    return {name: variant(model) if isinstance(model, Model) else model for name, model in found.items()}


class Check:
    """Compare models with the notebook's mathematics in fp64, without dropout and with padding out of the recurrence.

    A recurrence over padding gives other results wherever there is padding. Such models are compared only on a batch
    whose sentences are filled up to the padded length; all others on both batches.
    """

    def __init__(self, batch: PairBatch, precision: str, *, gradients: bool) -> None:
        torch.manual_seed(0)
        self.precision, self.gradients = precision, gradients and precision == "fp32"
        net = NotebookESIM(*SIZES, dropout=0.0)
        self.weights = {name: value.clone() for name, value in net.state_dict().items()}
        net.to(DEVICE, torch.float64).train(gradients)
        exact = Model(net, lambda x: net(x.p, x.h))
        self.cases = []
        for x in (batch.filled(), batch):
            decided = _decided(net, x) if self.gradients else None
            self.cases.append((x, decided, self._results(exact, x, decided)))

    def __call__(self, model: Model) -> None:
        """Load the check's weights into the model and raise AssertionError if its results are wrong."""
        model.net.load_state_dict(self.weights)
        with precision_set(self.precision), ExitStack() as after:
            for module in model.net.modules():
                if isinstance(module, nn.Dropout):  # LSTMs stay in training mode, which cuDNN needs for gradients
                    after.callback(module.eval().train, model.net.training)
            for x, decided, exact in self.cases[:1] if model.padded else self.cases:
                assert_equal(self._results(model, x, decided), exact, TOLERANCE[self.precision])

    def _results(self, model: Model, batch: PairBatch, decided: Tensor | None) -> dict[str, Tensor]:
        precision = "fp64" if model.net.embedding.weight.dtype == torch.float64 else self.precision
        if not self.gradients:
            with torch.no_grad():
                return {"logits": logits_of(model, batch, precision)}
        logits = logits_of(model, batch, precision)
        loss = (cross_entropy(logits, batch.labels, reduction="none") * decided).mean()
        named = dict(model.net.named_parameters())
        return {"logits": logits.detach(), **dict(zip(named, torch.autograd.grad(loss, named.values()), strict=True))}


@torch.no_grad()
def _decided(exact_net: NotebookESIM, batch: PairBatch) -> Tensor:
    """1 for each pair whose gradient is compared: rounding decides none of its maxima and none of its ReLUs."""
    closest, pooled = [], []
    for composed, ids in zip(exact_net.compose(batch.p, batch.h), (batch.p, batch.h), strict=True):
        mask = (ids != PADDING)[:, :, None]
        states = composed.masked_fill(~mask, -torch.inf)
        if states.shape[1] > 1:
            best = states.topk(2, dim=1).values
            closest.append((best[:, 0] - best[:, 1]).amin(1))
        pooled += [(composed * mask).sum(1) / mask.sum(1), states.amax(1)]
    closest.append(exact_net.linear["mlp"][1](torch.cat(pooled, 1)).abs().amin(1))
    return (torch.stack(closest).amin(0) > _TIE).double()


def assert_equal(results: Mapping[str, Tensor], exact: Mapping[str, Tensor], tolerance: float) -> None:
    """Raise AssertionError if the norm of a difference exceeds the tolerance, relative to the exact value's norm."""
    for name, value in exact.items():
        error = float((results[name].detach().double() - value.detach()).norm() / value.detach().norm())
        if not error <= tolerance:  # also true for NaN
            raise AssertionError(f"{name} is off by {error:.1e}, allowed {tolerance:.1e}")
