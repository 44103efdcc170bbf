"""Drop-in PyTorch layers that are faster on a CPU in fp32, and the ops as layers."""

import contextlib
import itertools
import mmap
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook as has_global_hooks

from . import ops
from .ops.backends import runs_on
from .ops.checks import constant_when_compiled, is_hooked, transforming
from .ops.derivatives import apply
from .ops.embedding import add_gradient
from .ops.products import linear
from .packed import PackedPairs, Rows
from .padded import PaddedPairs


class Embedding(nn.Embedding):
    """``torch.nn.Embedding`` with a much faster dense gradient on CPUs (csrc/embedding_cpu.cpp)."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._memory = _GradientMemory()

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # on meta tensors torch would import its compiler, which takes a second
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        plain = self.max_norm is None and not self.scale_grad_by_freq and not self.sparse
        fits = input.dim() == 1 and input.dtype == torch.int64 and self.weight.dtype == torch.float32
        eager = not torch.compiler.is_compiling() and not transforming()
        if plain and fits and eager and torch.is_grad_enabled() and self.weight.requires_grad:
            for batch in _KEPT.get():
                if batch[1] is input:
                    return apply(_KeptGradient, self.weight, *batch)
            if input.device.type == "cpu":
                return apply(_Embedding, self.weight, input, self.padding_idx, self._memory)
        return super().forward(input)


class _GradientMemory:
    """Reusable memory for the gradient of an embedding, handed out again once the previous gradient is gone.

    With 37,000 words of 300 numbers the gradient is 44 MB, almost all zeros. Freshly mapped memory of that size is
    cleared page by page by the system, which takes ten times as long as clearing memory that is already mapped.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._last: weakref.ref | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return _GradientMemory, ()  # copies of the layer must not share memory

    def table(self, words: int, width: int) -> Tensor:
        """Return uninitialized float32 memory ``[words, width]``."""
        size = words * width * 4
        with self._lock:
            if size == 0 or (self._last is not None and self._last() is not None):
                return torch.empty(words, width, dtype=torch.float32, device="cpu")
            if self._memory is None or len(self._memory) != size:
                self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                if hasattr(mmap, "MADV_HUGEPAGE"):
                    with contextlib.suppress(OSError):  # a hint that not every system supports
                        self._memory.madvise(mmap.MADV_HUGEPAGE)
            array = np.frombuffer(self._memory, dtype=np.float32).reshape(words, width)
            self._last = weakref.ref(array)  # the tensor keeps the array alive
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
        if torch.is_grad_enabled():  # double backward needs a differentiable result
            padding_idx = -1 if ctx.padding_idx is None else ctx.padding_idx
            table = torch.ops.aten.embedding_dense_backward(grad, tokens, ctx.shape[0], padding_idx, False)
        else:
            table = ctx.memory.table(*ctx.shape)
            torch.ops.esim_fast.embedding_backward(table, grad, tokens, ctx.padding_idx)
        return table, None, None, None


_KEPT: ContextVar[Sequence[tuple[Tensor, ...]]] = ContextVar("kept gradient", default=())


@contextlib.contextmanager
def kept_gradient(table: Tensor, batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Iterator[None]:
    """Within this context the gradient of an ``Embedding`` is added to ``table``, which becomes its ``weight.grad``.

    The table is zero before and after, so only the rows of the batches' words are written and, at the end, cleared.
    A gradient in new memory would have to be cleared as a whole.

    Args:
        table: zeros like the embedding's weight, in fp32.
        batches: tokens and what ``esim_fast.ops.embedding.occurrences`` finds in them, for each batch. Calls of the
            layer with these very tokens take part, others do not.
    """
    token = _KEPT.set([(table, *batch) for batch in batches])
    try:
        yield
    finally:
        _KEPT.reset(token)
        for tokens, *_ in batches:
            table.index_fill_(0, tokens, 0)


class _KeptGradient(torch.autograd.Function):
    @staticmethod
    def forward(weight, table, tokens, order, first):
        return functional.embedding(tokens, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.weight, ctx.table, *places = inputs
        ctx.save_for_backward(*places)

    @staticmethod
    def backward(ctx, grad):
        add_gradient(ctx.table, grad, *ctx.saved_tensors)
        ctx.weight.grad = ctx.table  # autograd would copy the table, or add it to itself
        return None, None, None, None, None


_KEY: ContextVar[tuple[Tensor, Iterator[int]] | None] = ContextVar("keyed dropout", default=None)
_FUSED: dict[Any, str | None] = {nn.Identity: None, nn.ReLU: "relu", nn.Tanh: "tanh"}


@contextlib.contextmanager
def keyed_dropout(key: Tensor) -> Iterator[None]:
    """Within this context the dropout layers of this module draw their masks from ``key`` (``esim_fast.ops.dropout``).

    Masks are then the same in eager steps and CUDA graphs, on any device and for any capacity of packed pairs. Calls
    of layers are numbered, so each has its own mask. Compiled layers ignore the key.

    Args:
        key: int64 ``[2]`` on the network's device, a seed and the number of the training step. It must not change
            before the backward pass.
    """
    token = _KEY.set((key, itertools.count()))
    try:
        yield
    finally:
        _KEY.reset(token)


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` that is faster on CPUs: it draws 16 random bits per element instead of a float.

    Probabilities are therefore rounded to multiples of 2**-16 there.
    """

    def forward(self, input: Tensor, pairs: PackedPairs | PaddedPairs | None = None) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler generates fast dropout itself
            return super().forward(input)
        if _is_keyed(self):
            return _keyed(self, input, pairs)
        drop = round(self.p * 2**16)
        if not (self.training and input.device.type == "cpu" and 0 < drop < 2**16) or self.inplace:
            return super().forward(input)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64, device="cpu").random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)
        return input * (bits >= drop - 2**15).to(input.dtype).mul_(2**16 / (2**16 - drop))


class VariationalDropout(Dropout):
    """Dropout with one mask per sentence, shared by all its words (Gal & Ghahramani 2016)."""

    def forward(self, input: Tensor, pairs: PackedPairs | PaddedPairs | None = None) -> Tensor:
        """Apply dropout to ``input [N, D]``, the rows of ``pairs``."""
        if pairs is None:
            raise TypeError("variational dropout needs pairs, which tell where each sentence lies")
        if not (self.training and self.p and input.shape[0]):
            return input
        if _is_keyed(self):
            return _keyed(self, input, pairs)
        kept = super().forward(input.new_ones(2 * pairs.pairs, input.shape[1]))
        return input * kept.index_select(0, pairs.sentence)


def _is_keyed(layer: Dropout) -> bool:
    """Whether the layer drops elements, and the key of ``keyed_dropout`` tells which."""
    return not torch.compiler.is_compiling() and _KEY.get() is not None and layer.training and 0 < layer.p < 1


def _keyed(layer: Dropout, x: Tensor, pairs: PackedPairs | PaddedPairs | None, activation: str | None = None) -> Tensor:
    key, numbers = cast(tuple[Tensor, Iterator[int]], _KEY.get())
    sentence = cast(PackedPairs | PaddedPairs, pairs).sentence if isinstance(layer, VariationalDropout) else None
    backend = "triton" if x.is_cuda and runs_on("triton", x.device) else None
    return ops.dropout(x, layer.p, key, next(numbers), activation=activation, sentence=sentence, backend=backend)


def drop(
    layer: nn.Module,
    x: Tensor,
    pairs: PackedPairs | PaddedPairs | None = None,
    activation: nn.Module | None = None,
) -> Tensor:
    """Apply an activation, if any, and a dropout layer, ours or PyTorch's, to ``x [N, D]``."""
    if not isinstance(layer, Dropout):
        return layer(x if activation is None else activation(x))
    if activation is not None and _is_keyed(layer) and _fuses(layer, activation):
        return _keyed(layer, x, pairs, _FUSED[type(activation)])
    x = x if activation is None else activation(x)
    return layer(x) if pairs is None else layer(x, pairs)


def _fuses(layer: Dropout, activation: nn.Module) -> bool:
    """Whether an activation and keyed dropout can run as one kernel, which calls neither module."""
    return type(activation) in _FUSED and not _must_be_called(layer) and not _must_be_called(activation)


class ActivationAndDropout(nn.Sequential):
    """An activation and then dropout, in one kernel if dropout is keyed."""

    def forward(self, input: Tensor) -> Tensor:
        if len(self) != 2:  # somebody changed it
            return super().forward(input)
        return drop(self[1], input, activation=self[0])


def bilstm(
    owner: nn.Module, name: str, x: Tensor, pairs: PackedPairs | PaddedPairs, backend: str | None = None
) -> Tensor:
    """Run ``esim_fast.ops.bilstm`` on ``x [N, D]`` with the LSTM ``owner.name``."""
    if torch.compiler.is_compiling():
        before = _compiler_takes_lstms(True)
        lstm = getattr(owner, name)
        _compiler_takes_lstms(before)
    else:
        lstm = getattr(owner, name)
    padding = pairs.padding if isinstance(pairs, PaddedPairs) else None
    return ops.bilstm(
        lstm,
        x,
        pairs.batch_sizes,
        first_row=pairs.first_row,
        sentences=2 * pairs.pairs,
        padding=padding,
        backend=backend,
    )


@constant_when_compiled
def _compiler_takes_lstms(takes: bool) -> bool:
    """Set whether ``torch.compile`` may trace through an ``nn.LSTM``, and return the previous setting.

    The operators only need its parameters, so tracing is safe.
    """
    from torch._dynamo import config  # slow to import, and already imported while compiling

    before, config.allow_rnn = config.allow_rnn, takes
    return before


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer; a plain ``torch.nn.Linear`` in fp32 on a CPU uses oneDNN (ops/products.py).

    This is not a subclass of ``nn.Linear``, because tools such as ``quantize_dynamic`` look for ``nn.Linear`` itself.
    """
    if torch.compiler.is_compiling() or type(layer) is not nn.Linear or layer.bias is None or x.dim() != 2:
        return layer(x)
    if transforming() or _must_be_called(layer):
        return layer(x)
    return linear(x, layer.weight, layer.bias)


def _must_be_called(layer: nn.Module) -> bool:
    """Whether a layer must run as a module, for its own sake or because of hooks on all modules."""
    return is_changed(layer) or has_global_hooks()


def is_changed(layer: nn.Module) -> bool:
    """Whether a layer has hooks, a replaced forward or a compiled call."""
    return is_hooked(layer) or "forward" in layer.__dict__ or layer._compiled_call_impl is not None


class Sequential(nn.Sequential):
    """``torch.nn.Sequential`` that runs its layers through ``project``."""

    def forward(self, input: Tensor) -> Tensor:
        for layer in self:
            input = project(layer, input)
        return input


def side_by_side(v: Tensor) -> Tensor:
    """Turn ``v [2B, W]``, premises first, into ``[B, 2W]``: premise and hypothesis of each pair in one row."""
    pairs = v.shape[0] // 2
    return torch.cat([v[:pairs], v[pairs:]], dim=1)


class LocalInference(nn.Module):
    """``esim_fast.ops.local_inference`` as a layer, a drop-in for the course notebook's layer of that name."""

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(
        self, p: Tensor, h: Tensor, p_mask: Tensor | None = None, h_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute soft alignment and enhancement of premise and hypothesis (equations 11-15).

        Args:
            p: encoded premises ``[B, Lp, 2H]``.
            h: encoded hypotheses ``[B, Lh, 2H]``.
            p_mask: ``[B, Lp]``, 0 at padding.
            h_mask: ``[B, Lh]``, 0 at padding.

        Returns:
            ``(m_p, m_h)``, of shapes ``[B, Lp, 8H]`` and ``[B, Lh, 8H]``. Dtypes and errors are those of the op.
        """
        return ops.local_inference(p, h, a_mask=p_mask, b_mask=h_mask, backend=self.backend)


class Pooling(nn.Module):
    """``esim_fast.ops.masked_pool`` as a layer: average and max pooling (equations 18-20)."""

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, x_mask: Tensor | None = None, *, rows: Rows | None = None) -> Tensor:
        """Pool ``x [B, L, 2H]`` with ``x_mask [B, L]`` (0 at padding), or ``x [N, 2H]`` with ``rows``, to ``[B, 4H]``.

        Dtypes and errors are those of the op.
        """
        return ops.masked_pool(x, mask=x_mask, rows=rows, backend=self.backend)
