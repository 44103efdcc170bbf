"""PyTorch's layers, faster on a CPU in fp32: embedding, dropout and projection; and the ops in place of the notebook's
layers."""

import contextlib
import mmap
import threading
import weakref

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from . import ops
from .ops.checks import transforming
from .ops.derivatives import apply
from .ops.products import linear
from .packed import Rows, move


class Embedding(nn.Embedding):
    """``torch.nn.Embedding``; on a CPU its dense gradient is made many times as fast (csrc/embedding_cpu.cpp)."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._memory = _GradientMemory()

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # torch would import its compiler to draw numbers that nobody sees: a second
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        plain = self.max_norm is None and not self.scale_grad_by_freq and not self.sparse
        fits = input.dim() == 1 and input.dtype == torch.int64 and self.weight.dtype == torch.float32
        eager = input.device.type == "cpu" and not torch.compiler.is_compiling() and not transforming()
        if plain and fits and eager and torch.is_grad_enabled() and self.weight.requires_grad:
            return apply(_Embedding, self.weight, input, self.padding_idx, self._memory)
        return super().forward(input)


class _GradientMemory:
    """Memory for the gradient of a table of word vectors, which serves again when nobody has the last one any more.

    The gradient of 37,000 words of 300 numbers is 44 MB of zeros but for the words of a batch. New memory of that size
    comes from the system, which clears it page by page: that takes ten times as long as clearing memory that is there.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._last: weakref.ref | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return _GradientMemory, ()  # a copy of the layer gets memory of its own

    def table(self, words: int, width: int) -> Tensor:
        """float32 ``[words, width]`` of anything."""
        size = words * width * 4
        with self._lock:
            if size == 0 or (self._last is not None and self._last() is not None):
                return torch.empty(words, width, dtype=torch.float32, device="cpu")
            if self._memory is None or len(self._memory) != size:
                self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                if hasattr(mmap, "MADV_HUGEPAGE"):
                    with contextlib.suppress(OSError):  # a wish, which not every system knows
                        self._memory.madvise(mmap.MADV_HUGEPAGE)
            array = np.frombuffer(self._memory, dtype=np.float32).reshape(words, width)
            self._last = weakref.ref(array)  # as long as a tensor uses the memory, it has the array
            return torch.from_numpy(array)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(weight, tokens, padding_idx, memory):
        return functional.embedding(tokens, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        weight, tokens, ctx.padding_idx, ctx.memory = inputs
        ctx.save_for_backward(tokens)
        ctx.shape = weight.shape

    @staticmethod
    def backward(ctx, grad):
        (tokens,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate this
            padding_idx = -1 if ctx.padding_idx is None else ctx.padding_idx
            table = torch.ops.aten.embedding_dense_backward(grad, tokens, ctx.shape[0], padding_idx, False)
        else:
            table = ctx.memory.table(*ctx.shape)
            torch.ops.esim_fast.embedding_backward(table, grad, tokens, ctx.padding_idx)
        return table, None, None, None


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``; on a CPU it draws 16 bits for each element instead of a random float, which is what takes
    the time: probabilities are multiples of 2**-16."""

    def forward(self, input: Tensor, batch_sizes: Tensor | None = None) -> Tensor:
        drop = round(self.p * 2**16)
        eager = not torch.compiler.is_compiling()  # a compiler has its own fast way
        if not (self.training and eager and input.device.type == "cpu" and 0 < drop < 2**16) or self.inplace:
            return super().forward(input)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64, device="cpu").random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)
        return input * (bits >= drop - 2**15).to(input.dtype).mul_(2**16 / (2**16 - drop))


class VariationalDropout(Dropout):
    """Dropout that drops the same elements of all words of a sentence (Gal & Ghahramani 2016)."""

    def forward(self, input: Tensor, batch_sizes: Tensor | None = None) -> Tensor:
        """``input [N, D]``, packed, with ``batch_sizes [T]`` on the CPU: how many sentences reach each time step."""
        if batch_sizes is None:
            raise TypeError("variational dropout needs batch_sizes, to know the sentences")
        if not (self.training and self.p and len(batch_sizes)):
            return input
        kept = super().forward(input.new_ones(int(batch_sizes[0]), input.shape[1]))
        # Row (t, r) is of the r-th longest sentence.
        first_row = (batch_sizes.cumsum(0) - batch_sizes).repeat_interleave(batch_sizes)
        sentence = torch.arange(len(input), device="cpu") - first_row
        return input * kept.index_select(0, move(sentence, input.device))


def drop(layer: nn.Module, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """``x [N, D]``, packed, after a layer for dropout, which may be one of PyTorch's in place of ours."""
    return layer(x, batch_sizes) if isinstance(layer, Dropout) else layer(x)


class Linear(nn.Linear):
    """``torch.nn.Linear``; on a CPU its fp32 products are oneDNN's (ops/products.py)."""

    def forward(self, input: Tensor) -> Tensor:
        plain = input.dim() == 2 and self.bias is not None and not transforming()
        return linear(input, self.weight, self.bias) if plain else super().forward(input)


class LocalInference(nn.Module):
    """:func:`esim_fast.ops.local_inference` as a layer, in place of the notebook's of that name."""

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(
        self, p: Tensor, h: Tensor, p_mask: Tensor | None = None, h_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Soft alignment and enhancement of premise and hypothesis: equations 11-15.

        Args:
            p, h: encoded ``[B, Lp, 2H]`` and ``[B, Lh, 2H]``.
            p_mask, h_mask: ``[B, Lp]`` and ``[B, Lh]``, 0 at padding.

        Returns:
            m_p, m_h: ``[B, Lp, 8H]`` and ``[B, Lh, 8H]``. Dtypes and errors are those of the op.
        """
        return ops.local_inference(p, h, a_mask=p_mask, b_mask=h_mask, backend=self.backend)


class Pooling(nn.Module):
    """:func:`esim_fast.ops.masked_pool` as a layer, average and maximum: equations 18-20."""

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, x_mask: Tensor | None = None, *, rows: Rows | None = None) -> Tensor:
        """``x [B, L, 2H]`` with ``x_mask [B, L]``, 0 at padding, or ``[N, 2H]`` with rows, to ``[B, 4H]``. Dtypes and
        errors are those of the op."""
        return ops.masked_pool(x, mask=x_mask, rows=rows, backend=self.backend)
