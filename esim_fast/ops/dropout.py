"""Dropout whose masks are functions of a key, with the activation before it and the cast after it in one kernel.

Other generators have a state that every call advances, so a mask depends on what was drawn before. Here it depends on
the key, the layer and the element's place alone: it is the same in a padded batch, backward passes compute it again
instead of storing it, and a CUDA graph draws new masks when another key is copied to the GPU.
"""

import torch
from torch import Tensor

from .backends import BACKENDS, choose
from .checks import FLOATING, autocast_dtype
from .derivatives import apply, first_derivative
from .triton import runtime

_ACTIVATIONS = {None: lambda x: x, "relu": torch.relu, "tanh": torch.tanh}
_WORD = 2**32 - 1


def dropout(
    x: Tensor,
    p: float,
    key: Tensor,
    layer: int,
    *,
    activation: str | None = None,
    sentence: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Apply an activation and dropout with a mask that is a function of ``key``, ``layer``, row and column.

    Equivalent to ``torch.nn.functional.dropout`` of the activation, with masks drawn by Philox 4x32-10 (Salmon et al.
    2011, Random123). All backends and devices draw the same masks.

    Args:
        x: ``[N, D]``, fp32, fp16, bf16 or fp64.
        p: the probability of dropping an element, at least 0 and below 1; rounded to a multiple of 2**-32.
        key: int64 ``[2]`` on the device of ``x``: a seed, and the number of a training step, below 2**32. It is not
            read back, and must not change before the backward pass.
        layer: a number that distinguishes the masks of a step, at least 0 and below 2**31.
        activation: None, ``"relu"`` or ``"tanh"``.
        sentence: int64 ``[N]``, numbers that take the place of the rows' indices, so that all words of a sentence share
            a mask (variational dropout).
        backend: ``"triton"`` (kernel for NVIDIA GPUs with compute capability 8.0 or higher; with
            ``TRITON_INTERPRET=1`` also for CPU tensors), ``"reference"`` (plain PyTorch) or None, which is the
            reference, because the kernel has not run on a GPU yet.

    Returns:
        ``[N, D]`` in autocast's dtype under autocast, otherwise in the dtype of ``x``. Arithmetic is fp32 (fp64 for
        fp64). Second derivatives of the kernel are not implemented and raise RuntimeError.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, device or number is wrong, ``activation`` is unknown, or ``backend`` cannot run here.
    """
    _check(x, p, key, layer, activation, sentence)
    drop = min(round(p * 2**32), _WORD)
    dtype = autocast_dtype(x.device) or x.dtype
    order = BACKENDS["dropout"] if x.dtype != torch.float64 else ("reference",)
    if choose(backend, "dropout", order, x) == "reference":
        return _reference(x, key, sentence, layer, drop, activation, dtype)
    return apply(_Dropout, x, key, sentence, layer, drop, activation, dtype)


def _check(x: Tensor, p: float, key: Tensor, layer: int, activation: str | None, sentence: Tensor | None) -> None:
    if not isinstance(x, Tensor) or x.dtype not in FLOATING:
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a float32, float16, bfloat16 or float64 tensor, got {kind}")
    if x.dim() != 2:
        raise ValueError(f"x must be [N, D], got shape {list(x.shape)}")
    if not 0 <= p < 1:
        raise ValueError(f"p must be at least 0 and below 1, got {p}")
    if not 0 <= layer < 2**31:
        raise ValueError(f"layer must be at least 0 and below 2**31, got {layer}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be None, 'relu' or 'tanh', got {activation!r}")
    for name, numbers, size in (("key", key, 2), ("sentence", sentence, len(x))):
        if numbers is None:
            continue
        if numbers.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {numbers.dtype}")
        if numbers.shape != (size,) or numbers.device != x.device:
            found = f"{list(numbers.shape)} on {numbers.device}"
            raise ValueError(f"{name} must have shape [{size}] and be on {x.device}, got {found}")


def _reference(x, key, sentence, layer, drop, activation, dtype):
    y = _ACTIVATIONS[activation](x if x.dtype == torch.float64 else x.float())
    row = torch.arange(len(x), device=x.device) if sentence is None else sentence
    kept = _words(row, x.shape[1], key, layer) >= drop
    return torch.where(kept, y * (2**32 / (2**32 - drop)), 0).to(dtype)


def _words(row: Tensor, columns: int, key: Tensor, layer: int) -> Tensor:
    """Draw a number from 0 to 2**32 - 1 for each element: int64 ``[N, columns]``.

    Four columns share a draw of four numbers.
    """
    seed, step = key.unbind()
    group = torch.arange(-(-columns // 4), device=row.device)
    counter = torch.broadcast_tensors(group, row[:, None] & _WORD, step.new_full((), layer), step & _WORD)
    return torch.stack(_philox(counter, seed), dim=2).flatten(1)[:, :columns]


def _philox(counter: tuple[Tensor, ...], seed: Tensor) -> tuple[Tensor, ...]:
    """Philox 4x32-10 on 32-bit numbers in int64, whose products wrap around with the right lower 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & _WORD) ^ c1 ^ k0, b & _WORD, ((a >> 32) & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(x, key, sentence, layer, drop, activation, dtype):
        return torch.ops.esim_fast.dropout_triton(x, None, key, sentence, layer, drop, activation, dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, key, sentence, *ctx.options, _ = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(None if ctx.options[-1] is None else x, key, sentence)

    @staticmethod
    def backward(ctx, grad):
        # Without an activation, the gradient is dropout of the gradient.
        arguments = grad, *ctx.saved_tensors, *ctx.options, ctx.dtype
        return first_derivative("dropout", torch.ops.esim_fast.dropout_triton, *arguments), *[None] * 6


if runtime.AVAILABLE:
    from .triton import dropout as kernel  # imports Triton, so only if it is available

    def _fake(values, x, key, sentence, layer, drop, activation, dtype):
        return values.new_empty(values.shape, dtype=dtype)

    runtime.register(
        "dropout_triton(Tensor values, Tensor? x, Tensor key, Tensor? sentence, int layer, int drop, str? activation, "
        "ScalarType dtype) -> Tensor",
        kernel.run,
        _fake,
    )
