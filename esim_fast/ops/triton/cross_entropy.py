"""Cross entropy of a batch, its correct answers, and its gradient."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .runtime import Config, Launch, blocks_in, power_of_2

_TILE = 1024  # logits that a program holds, if a pair has no more
_CONFIG = Config(0, 0, 4, 1, max_registers=128)  # without a limit the compiler spills a few


@triton.jit(do_not_specialize=["pairs"])
def cross_entropy(
    logits, labels, class_weights, grad_loss, loss, correct, grad, pairs,
    C: tl.constexpr, SMOOTHING: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the scalars ``loss`` and ``correct``, in a single program, so that sums have one order.

    With ``grad_loss``, write ``grad [B, C]`` instead. The loss of a pair is ``-sum(target * log(p))`` over the classes,
    so the gradient is ``p * sum(target) - target``. Targets are zero for labels that are not a class.
    """
    c = tl.arange(0, WIDTH)
    weight = tl.where(c < C, 1.0, 0.0)
    if class_weights is not None:
        weight = tl.load(class_weights + c, mask=c < C, other=0.0)
    total_loss = tl.zeros([BLOCK], tl.float32)
    total_correct = tl.zeros([BLOCK], tl.int64)
    for first in range(tl.program_id(0) * BLOCK, pairs, tl.num_programs(0) * BLOCK):
        pair = first + tl.arange(0, BLOCK)
        label = tl.load(labels + pair, mask=pair < pairs, other=-1)
        counts = (label >= 0) & (label < C)
        place = pair.to(tl.int64)[:, None] * C + c[None, :]
        there = (pair < pairs)[:, None] & (c < C)[None, :]
        z = tl.load(logits + place, mask=there, other=0.0).to(tl.float32)
        z = tl.where((c < C)[None, :], z, float("-inf"))
        shifted = z - tl.max(z, 1)[:, None]
        total = tl.sum(tl.exp(shifted), 1)[:, None]
        target = SMOOTHING / C * weight[None, :]
        target += tl.where(c[None, :] == label[:, None], (1 - SMOOTHING) * weight[None, :], 0.0)
        if grad_loss is None:
            # A class without a share may have probability zero.
            terms = tl.where(target == 0, 0.0, target * (tl.log(total) - shifted))
            total_loss += tl.where(counts, tl.sum(terms, 1), 0.0)
            total_correct += (tl.argmax(z, 1) == label).to(tl.int64)
        else:
            of_pair = tl.exp(shifted) / total * tl.sum(target, 1)[:, None] - target
            of_pair = tl.where(counts[:, None], of_pair * tl.load(grad_loss), 0.0)
            tl.store(grad + place, of_pair.to(grad.dtype.element_ty), mask=there)
    if grad_loss is None:
        tl.store(loss, tl.sum(total_loss, 0))
        tl.store(correct, tl.sum(total_correct, 0))


def run_forward(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Implement ``esim_fast::cross_entropy_triton``: return loss and correct."""
    _check(logits, labels, class_weights)
    loss, correct = logits.new_empty((), dtype=torch.float32), labels.new_empty(())
    with torch.cuda.device_of(logits):
        plan_forward(logits, labels, class_weights, smoothing, loss, correct).start()
    return loss, correct


def run_backward(
    grad_loss: Tensor, logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float
) -> Tensor:
    """Implement ``esim_fast::cross_entropy_triton_backward``: return the gradient of the logits."""
    _check(logits, labels, class_weights)
    if grad_loss.numel() != 1 or grad_loss.dtype != torch.float32 or grad_loss.device != logits.device:
        raise ValueError(f"grad_loss must be a float32 scalar on {logits.device}")
    grad = torch.empty_like(logits)
    with torch.cuda.device_of(logits):
        plan_backward(grad_loss, logits, labels, class_weights, smoothing, grad).start()
    return grad


def plan_forward(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, loss: Tensor, correct: Tensor
) -> Launch:
    arguments = logits, labels, class_weights, None, loss, correct, None, len(logits)
    return Launch(cross_entropy, 1, arguments, _constants(logits, smoothing), _CONFIG.options())


def plan_backward(
    grad_loss: Tensor, logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float, grad: Tensor
) -> Launch:
    constants = _constants(logits, smoothing)
    arguments = logits, labels, class_weights, grad_loss, None, None, grad, len(logits)
    programs = blocks_in(len(logits), constants["BLOCK"])
    return Launch(cross_entropy, programs, arguments, constants, _CONFIG.options())


def _constants(logits: Tensor, smoothing: float) -> dict[str, Any]:
    width = power_of_2(logits.shape[1])
    return {"C": logits.shape[1], "SMOOTHING": smoothing, "BLOCK": max(1, _TILE // width), "WIDTH": width}


def _check(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> None:
    """Check everything that could make the kernel read or write outside its tensors. It bounds labels itself."""
    if logits.dim() != 2 or not logits.shape[1] or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous [B, at least 1], got shape {list(logits.shape)}")
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64 or not labels.is_contiguous():
        raise ValueError(f"labels must be contiguous int64 [{len(logits)}], got {labels.dtype} {list(labels.shape)}")
    given = [labels] if class_weights is None else [labels, class_weights]
    if class_weights is not None and (class_weights.shape != logits.shape[1:] or not class_weights.is_contiguous()):
        raise ValueError(f"class_weights must be contiguous [{logits.shape[1]}], got {list(class_weights.shape)}")
    if any(tensor.device != logits.device for tensor in given):
        raise ValueError(f"labels and class_weights must be on {logits.device}")
