"""Cross entropy summed over pairs, and the number of correct answers, in one kernel."""

import torch
from torch import Tensor
from torch.nn import functional

from .backends import BACKENDS, choose
from .checks import FLOATING
from .derivatives import apply, first_derivative
from .triton import runtime

NO_LABEL = -100
MOST_LABELS = 4096  # that the kernel takes


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the loss of a classifier and count its correct answers, both summed over the pairs of a batch.

    Equivalent to:

        loss = torch.nn.functional.cross_entropy(
            logits.float(), labels, class_weights, reduction="sum", label_smoothing=smoothing
        )
        correct = (logits.argmax(1) == labels).sum()

    Args:
        logits: ``[B, number of labels]``, fp32, fp16, bf16 or fp64.
        labels: int64 ``[B]``. Pairs with the label -100 are left out of both sums.
        smoothing: label smoothing from 0 to 1, the share of each target that is spread evenly over all labels.
        class_weights: float32 ``[number of labels]``, the weight of each label's pairs.
        backend: ``"triton"`` (kernel for NVIDIA GPUs with compute capability 8.0 or higher and at most 4,096 labels;
            with ``TRITON_INTERPRET=1`` also for CPU tensors), ``"reference"`` (plain PyTorch) or None, which is
            the reference, because the kernel has not run on a GPU yet. The kernel treats invalid labels like -100.

    Returns:
        ``(loss, correct)``: a float32 scalar (fp64 for fp64) and an int64 scalar. Second derivatives of the kernel are
        not implemented and raise RuntimeError.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or ``smoothing`` is wrong, or ``backend`` cannot run here.
    """
    if not isinstance(logits, Tensor) or logits.dtype not in FLOATING:
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a float32, float16, bfloat16 or float64 tensor, got {kind}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if logits.dim() != 2 or not logits.shape[1] or labels.shape != logits.shape[:1]:
        shapes = f"{list(logits.shape)} and {list(labels.shape)}"
        raise ValueError(f"logits and labels must be [B, at least 1] and [B], got {shapes}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must lie between 0 and 1, got {smoothing}")
    if class_weights is not None and class_weights.shape != logits.shape[1:]:
        raise ValueError(f"class_weights must be [{logits.shape[1]}], got shape {list(class_weights.shape)}")
    fits = logits.dtype != torch.float64 and logits.shape[1] <= MOST_LABELS
    order = BACKENDS["cross_entropy"] if fits else ("reference",)
    if choose(backend, "cross_entropy", order, logits) == "reference":
        return _reference(logits, labels, smoothing, class_weights)
    weights = None if class_weights is None else class_weights.float().contiguous()
    loss, correct = apply(_CrossEntropy, logits.contiguous(), labels.contiguous(), weights, smoothing)
    return loss, correct


def _reference(logits, labels, smoothing, class_weights):
    exact = logits if logits.dtype == torch.float64 else logits.float()
    weights = None if class_weights is None else class_weights.to(exact.dtype)
    options = {"reduction": "sum", "label_smoothing": smoothing, "ignore_index": NO_LABEL}
    return functional.cross_entropy(exact, labels, weights, **options), (logits.argmax(1) == labels).sum()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(logits, labels, class_weights, smoothing):
        return torch.ops.esim_fast.cross_entropy_triton(logits, labels, class_weights, smoothing)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.smoothing = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_loss, _):
        operator = torch.ops.esim_fast.cross_entropy_triton_backward
        grad = first_derivative("cross_entropy", operator, grad_loss, *ctx.saved_tensors, ctx.smoothing)
        return grad, None, None, None


if runtime.AVAILABLE:
    from .triton import cross_entropy as kernels  # imports Triton, so only if it is available

    def _fake(logits, labels, class_weights, smoothing):
        return logits.new_empty((), dtype=torch.float32), labels.new_empty(())

    def _backward_fake(grad_loss, logits, labels, class_weights, smoothing):
        return torch.empty_like(logits)

    _last = "Tensor logits, Tensor labels, Tensor? class_weights, float smoothing) -> "
    runtime.register(f"cross_entropy_triton({_last}(Tensor, Tensor)", kernels.run_forward, _fake)
    runtime.register(
        f"cross_entropy_triton_backward(Tensor grad_loss, {_last}Tensor", kernels.run_backward, _backward_fake
    )
