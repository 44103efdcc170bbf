"""The whole model in all its variants, with the same weights, each found to be right before it is timed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from baselines import EAGER, PADDING, Coetaur0ESIM, NotebookESIM
from corpus import VOCABULARY, PairBatch
from equality import TOLERANCE, difference
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from esim_fast import ESIM

HIDDEN = WIDTH = 300
LABELS = 3
# Where two candidates for a maximum, or a unit and its ReLU's corner, are closer than this, rounding may decide between
# them: several times the error of fp32.
_TIE = 3e-7


@dataclass(frozen=True)
class Variant:
    """One way to get a batch's logits.

    Attributes:
        padded: the recurrence runs over padding.
        ours: esim_fast's, whose errors fail the benchmark.
    """

    net: nn.Module
    logits: Callable[[PairBatch], Tensor]
    padded: bool = False
    ours: bool = False


@lru_cache(maxsize=1)
def all_variants(device: torch.device, precision: str, with_compiled: bool) -> dict[str, Variant]:
    """The variants, the eager notebook first; those of a precision are made once, because compiling takes long.

    All of them are the notebook's mathematics. Each has its dropout where its source has it. Variants of one network
    share its weights; :func:`right_ones` gives all the same.
    """
    torch.compiler.reset()  # what was compiled for another precision counts towards a limit
    sizes = HIDDEN, WIDTH, VOCABULARY, LABELS
    ours = ESIM(*sizes, variant="notebook")
    notebook = NotebookESIM(*sizes, packed=False)
    coetaur0 = Coetaur0ESIM(*sizes, variant="notebook")
    for net in (ours, notebook, coetaur0):
        net.to(device)

    variants = {
        EAGER: Variant(notebook, lambda x: notebook(x.p, x.h), padded=True),
        "coetaur0 style": Variant(coetaur0, lambda x: coetaur0(x.p, x.h, x.p_lengths, x.h_lengths)),
    }
    if with_compiled:
        fast_notebook, fast_coetaur0 = (torch.compile(net, dynamic=True) for net in (notebook, coetaur0))
        variants |= {
            "torch.compile of eager": Variant(notebook, lambda x: fast_notebook(x.p, x.h), padded=True),
            "torch.compile of coetaur0 style": Variant(
                coetaur0, lambda x: fast_coetaur0(x.p, x.h, x.p_lengths, x.h_lengths)
            ),
        }
    return variants | {
        "esim_fast, ids alone": Variant(ours, lambda x: ours(x.p, x.h), ours=True),
        "esim_fast, with lengths": Variant(ours, lambda x: ours(x.p, x.h, x.p_lengths, x.h_lengths), ours=True),
        "esim_fast, packed batches": Variant(ours, lambda x: ours(x.pairs), ours=True),
    }


@contextmanager
def precision_set(precision: str) -> Iterator[None]:
    """Products and LSTMs of fp32 tensors: exact, or in TF32 for precision "tf32"; LSTMs also for "bf16"."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision in ("tf32", "bf16")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def logits_of(variant: Variant, batch: PairBatch, precision: str) -> Tensor:
    """Under autocast, entered anew for each batch as a training loop does, so that weights are converted each time."""
    with torch.autocast(batch.p.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return variant.logits(batch)


def loss_of(variant: Variant, batch: PairBatch, precision: str) -> Tensor:
    with torch.autocast(batch.p.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return cross_entropy(variant.logits(batch), batch.labels)


def fused_adam(net: nn.Module) -> torch.optim.Optimizer:
    """The same for all: without fusion Adam would take longer than much of what is compared."""
    return torch.optim.Adam(net.parameters(), lr=4e-4, fused=True)


def set_dropout(variants: dict[str, Variant], on: bool) -> None:
    """Training mode with or without dropout. LSTMs stay in training mode: cuDNN has no gradients otherwise."""
    for variant in variants.values():
        variant.net.train()
        for module in variant.net.modules():
            if isinstance(module, nn.Dropout):
                module.train(on)


def right_ones(
    variants: dict[str, Variant], batch: PairBatch, precision: str, *, gradients: bool
) -> tuple[dict[str, Variant], list[str]]:
    """The variants that run here and are right by the rule of equality.py, and why others are left out.

    All are given the same fresh weights, and held to the notebook's mathematics in fp64, padding kept out of the
    recurrence. A padded recurrence is another model wherever there is padding, so such a variant is held to it on a
    batch of the same shape with every sentence filled up to the padded length; the others on both.
    """
    torch.manual_seed(0)
    exact_net = NotebookESIM(HIDDEN, WIDTH, VOCABULARY, LABELS, dropout=0.0)
    for variant in variants.values():  # which other benchmarks may have trained
        variant.net.load_state_dict(exact_net.state_dict())
    exact_net.to(batch.p.device, torch.float64).train(gradients)
    filled = batch.filled()
    gradients = gradients and precision == "fp32"
    cases = {"as it is": batch, "filled up": filled}
    decided = {case: _decided(exact_net, x) for case, x in cases.items()}
    exact_variant = Variant(exact_net, lambda x: exact_net(x.p, x.h))
    exact = {case: _results(exact_variant, x, decided[case], "fp64", gradients) for case, x in cases.items()}
    running, notes = {}, []
    for name, variant in variants.items():
        try:
            wrong = None
            for case, x in cases.items():
                if variant.padded and x is not filled:
                    continue
                results = _results(variant, x, decided[case], precision, gradients)
                wrong = wrong or difference(results, exact[case], TOLERANCE[precision])
        except Exception as error:
            notes.append(passed_over(name, variant, error))
            continue
        if wrong and variant.ours:
            raise AssertionError(f"{name}: {wrong}")
        if wrong:
            notes.append(f"{name}: {wrong}")
        else:
            running[name] = variant
    return running, notes


def passed_over(name: str, variant: Variant, error: Exception) -> str:
    """A line about a peer that does not run here; our own errors are raised."""
    if variant.ours:
        raise error
    return f"{name}: does not run here ({(str(error).strip() or repr(error)).splitlines()[0][:100]})"


def _results(variant: Variant, batch: PairBatch, decided: Tensor, precision: str, gradients: bool) -> dict[str, Tensor]:
    """Logits, and the gradients of all parameters by name."""
    if not gradients:
        with torch.no_grad():
            return {"logits": logits_of(variant, batch, precision)}
    logits = logits_of(variant, batch, precision)
    loss = (cross_entropy(logits, batch.labels, reduction="none") * decided).mean()
    named = dict(variant.net.named_parameters())
    return {"logits": logits.detach(), **dict(zip(named, torch.autograd.grad(loss, named.values()), strict=True))}


@torch.no_grad()
def _decided(exact_net: NotebookESIM, batch: PairBatch) -> Tensor:
    """1 for each pair in which rounding decides no maximum and no unit; the other pairs' gradients do not count.

    Where two tokens' states are as good as equal, one rounding gives one of them all of the gradient, and another the
    other. In large batches there are such pairs.
    """
    closest = []
    pooled = []
    for composed, ids in zip(exact_net.compose(batch.p, batch.h), (batch.p, batch.h), strict=True):
        mask = (ids != PADDING)[:, :, None]
        states = composed.masked_fill(~mask, -torch.inf)
        if states.shape[1] > 1:
            best = states.topk(2, dim=1).values
            closest.append((best[:, 0] - best[:, 1]).amin(1))
        pooled += [(composed * mask).sum(1) / mask.sum(1), states.amax(1)]
    hidden = exact_net.linear["mlp"][1](torch.cat(pooled, 1))
    closest.append(hidden.abs().amin(1))
    return (torch.stack(closest).amin(0) > _TIE).double()
