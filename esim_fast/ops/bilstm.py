"""A bidirectional LSTM over packed sentences: Triton on NVIDIA GPUs, C++ on the CPU, PyTorch's own elsewhere.

The kernels, triton/bilstm.py, csrc/bilstm_cpu.cpp and csrc/bilstm_cuda.cu, compute only the sequential part. The
products with the input and the weights' gradients are single matrix products over all tokens. On a GPU the weights are
first laid out for these, by PyTorch's operators or by triton/lstm_weights.py.
"""

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..packed import move
from .backends import BACKENDS, choose, runs_on
from .checks import autocast_dtype, constant_when_compiled, is_hooked, without_autocast
from .derivatives import apply, first_derivative
from .packing import packed
from .persistent import PersistentBiLSTM, shut
from .persistent import can_run as persistent_can_run
from .products import can_order, for_weight_gradients, onednn_product, ordered, ordered_bf16, product, weight_gradient
from .triton import runtime

_MANY_SENTENCES = 512
_ON_GPU = "triton", "cuda"  # kernels that read sizes on the GPU


def _backends(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor | None, persistent: bool) -> tuple[str, ...]:
    """Return the backends that support this input, the best one first; ``"cuda"`` only with ``persistent``."""
    dtype = autocast_dtype(x.device)
    if not ((x.dtype == torch.float32 or dtype is not None) and is_plain_fp32(lstm)):
        return "cudnn", "reference"
    # Last, after "reference", which runs everywhere: so it runs only if it is named. No GPU has run its tests yet.
    persistent = persistent and persistent_can_run(x.device, dtype or x.dtype, lstm.hidden_size)
    named = ("cuda",) if persistent else ()
    eager = x.is_cuda and not torch.compiler.is_compiling()
    if eager and dtype is None and batch_sizes is not None and int(batch_sizes[0]) > _MANY_SENTENCES:
        # With this many sentences on an H100, cuDNN's launches are hidden and its fp32 products are faster.
        return "cudnn", "triton", "reference", *named
    return *BACKENDS["bilstm"], *named


def bilstm_backends(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> tuple[str, ...]:
    """Return the backends that can run ``bilstm(lstm, x, batch_sizes)`` here; without ``backend=``, the first one does.

    ``"cuda"`` is listed if the GPU, or the part of it that this process has, has room for its kernels. The arguments
    are those of ``bilstm``.
    """
    return tuple(name for name in _backends(lstm, x, batch_sizes, True) if runs_on(name, x.device))


def bilstm(
    lstm: nn.LSTM,
    x: Tensor,
    batch_sizes: Tensor | None,
    *,
    first_row: Tensor | None = None,
    sentences: int | None = None,
    padding: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute the states of both directions at every token (Chen et al. 2017, equations 1 and 2).

    Equivalent to:

        lstm(PackedSequence(x, batch_sizes))[0].data

    Args:
        lstm: a bidirectional LSTM. The kernels support one layer with biases, without projections and hooks.
        x: ``[N, input_size]``, the rows of packed sentences, sorted by length and time-major.
        batch_sizes: int64 ``[T]`` on the CPU, how many sentences reach each time step. If it is None, the sizes come
            from ``first_row``, which the Triton and CUDA kernels read on the GPU; other backends read it back. The last
            steps may then be empty, and the sentences may fill fewer than N rows. The rows after them must be finite,
            have no effect, and get zeros.
        first_row: int64 ``[T + 1]`` on the device of ``x``, the first row of each time step, then the number of rows
            that the sentences fill (which may be left out after ``batch_sizes``). Required if ``batch_sizes`` is None.
        sentences: the number of sentences, or an upper bound; by default ``batch_sizes[0]``. Required if
            ``batch_sizes`` is None.
        padding: bool ``[N]`` on the device of ``x``, True in rows after the end of their sentence. Requires that every
            sentence has a row in every time step. These rows have no effect, and their results are undefined.
        backend: ``"cpp"`` (kernel for CPUs), ``"triton"`` (kernel for NVIDIA GPUs with compute capability 8.0 or
            higher; with ``TRITON_INTERPRET=1`` also for CPU tensors), ``"cuda"`` (kernel that keeps the weights on an
            NVIDIA GPU's chip, where ``bilstm_backends`` lists it), ``"cudnn"`` (``lstm`` itself on an NVIDIA GPU,
            where it uses cuDNN), ``"reference"`` (``lstm`` itself on any device, so also cuDNN on an NVIDIA GPU) or
            None, the best one for ``x``, but never ``"cuda"``, which no GPU has run yet. The kernels need parameters
            in fp32, and ``x`` in fp32 or autocast.

    Returns:
        ``[N, 2 * hidden_size]``, the forward and backward state of each token, in the dtype of ``x``, or in autocast's
        dtype under autocast. Under autocast the kernels keep cell states in fp32, as does cuDNN under bf16 autocast. On
        GPUs, fp32 states are multiplied in TF32 if cuDNN's LSTMs may use it (``torch.backends.cudnn.allow_tf32``,
        PyTorch's default), and fp32 inputs if matrix products may; otherwise with the accuracy of fp32. The kernels'
        second derivatives are not implemented and raise RuntimeError.

    Raises:
        TypeError: ``x`` is not a tensor, or the sizes are missing.
        ValueError: ``x`` or ``batch_sizes`` has the wrong shape, or ``backend`` cannot run here.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    _check_input(lstm, x)
    if batch_sizes is None:
        if first_row is None or sentences is None or padding is not None:
            raise TypeError("without batch_sizes, bilstm needs first_row and sentences, and takes no padding")
    elif batch_sizes.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_sizes(batch_sizes.tolist(), len(x))
        if padding is not None and (padding.shape != x.shape[:1] or int(batch_sizes[0]) * len(batch_sizes) != len(x)):
            raise ValueError(f"padding must be [{len(x)}], and every sentence must reach every time step")
    dtype = autocast_dtype(x.device) or x.dtype
    if x.shape[0] == 0:  # every sentence is empty
        return x.new_zeros(0, 2 * lstm.hidden_size, dtype=dtype)
    backend = choose(backend, "bilstm", _backends(lstm, x, batch_sizes, backend == "cuda"), x)
    if batch_sizes is None and backend not in _ON_GPU:
        return _of_first_rows(lstm, x, cast(Tensor, first_row), backend)
    if padding is not None:
        x = x.masked_fill(padding[:, None], 0)
    sizes = cast(Tensor, batch_sizes)  # None for kernels on a GPU alone
    if backend in ("cudnn", "reference"):
        return _torch_lstm(lstm, x, sizes) if padding is None else _of_padded(lstm, x, sizes, padding)
    weights = [weight for direction in lstm.all_weights for weight in direction]
    if backend in _ON_GPU and batch_sizes is not None:
        if first_row is None:
            first_row = move(functional.pad(batch_sizes.cumsum(0), (1, 0)), x.device)
        elif len(first_row) == len(batch_sizes):
            first_row = functional.pad(first_row, (0, 1), value=len(x))
        if sentences is None:
            sentences = int(batch_sizes[0]) if padding is None else x.shape[0] // batch_sizes.shape[0]
    with without_autocast(x.device):
        x = x.to(dtype)
        if backend == "triton":
            # The kernel that packs the weights has not run on a GPU yet, so it serves only pairs with a capacity.
            packs = batch_sizes is None
            y = apply(_TritonBiLSTM, x, *weights, first_row, padding, sentences, _precision(), packs)[0]
        elif backend == "cuda":
            y = apply(PersistentBiLSTM, x, *weights, first_row, padding, sentences, _precision() == "tf32")[0]
        else:
            kept = _packed_weights(x, weights) if padding is None else None
            y = _states(x, sizes, *kept) if kept else apply(_BiLSTM, x, batch_sizes, padding, *weights)[0]
        return y.to(dtype)


def _check_input(lstm: nn.LSTM, x: Tensor) -> None:
    if x.dim() != 2 or x.shape[1] != lstm.input_size:
        raise ValueError(f"x must be [N, {lstm.input_size}], got shape {list(x.shape)}")


def _check_sizes(batch_sizes: Sequence[int], rows: int) -> None:
    if sum(batch_sizes) != rows:
        raise ValueError(f"batch_sizes must sum to the {rows} rows of x, got {sum(batch_sizes)}")
    if batch_sizes and (batch_sizes[-1] < 1 or any(before < after for before, after in pairwise(batch_sizes))):
        raise ValueError(f"batch_sizes must be positive and non-increasing, got {batch_sizes}")


def _of_first_rows(lstm: nn.LSTM, x: Tensor, first_row: Tensor, backend: str) -> Tensor:
    """Run a backend that needs the sizes on the CPU on the rows that the sentences fill."""
    batch_sizes = first_row.diff().cpu()
    y = bilstm(lstm, x[: int(batch_sizes.sum())], batch_sizes[batch_sizes > 0], backend=backend)
    return functional.pad(y, (0, 0, 0, len(x) - len(y)))


def _of_padded(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor, padding: Tensor) -> Tensor:
    """Run PyTorch's LSTM on sentences that all reach every time step."""
    steps = len(batch_sizes)
    lengths = (~padding).view(steps, -1).sum(0).clamp(min=1)  # pack_padded_sequence rejects empty sentences
    packed = pack_padded_sequence(x.view(steps, -1, x.shape[1]), lengths.cpu(), enforce_sorted=False)
    y = PackedSequence(_torch_lstm(lstm, packed.data, packed.batch_sizes), *packed[1:])
    return pad_packed_sequence(y, total_length=steps)[0].flatten(0, 1)


def _torch_lstm(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """Run ``lstm`` itself, avoiding cuDNN's limits: fp16 under bf16 autocast, and no gradients in evaluation mode."""
    device = x.device.type
    if device == "cpu" or not is_plain_fp32(lstm):
        return lstm(PackedSequence(x, batch_sizes))[0].data
    bf16 = autocast_dtype(x.device) == torch.bfloat16
    # Autocast always runs cuDNN's LSTMs in fp16, even if set to bf16, and gradients would underflow.
    with torch.autocast(device, enabled=False) if bf16 else contextlib.nullcontext():
        y = _in_training_mode(lstm, x.float() if bf16 else x, batch_sizes)
    return y.bfloat16() if bf16 else y


def _in_training_mode(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """Run ``lstm`` in cuDNN's training mode if gradients are needed, because cuDNN has none in evaluation mode.

    The mode only affects dropout between layers, and there is one layer.
    """
    if lstm.training or not torch.is_grad_enabled():
        return lstm(PackedSequence(x, batch_sizes))[0].data
    zeros = x.new_zeros(2, int(batch_sizes[0]), lstm.hidden_size)
    # By name, because torch.func.functional_call does not replace lstm._flat_weights.
    weights = [getattr(lstm, name) for name in lstm._flat_weights_names]
    return torch.lstm(x, batch_sizes, (zeros, zeros), weights, True, 1, 0.0, True, True)[0]


def is_plain_fp32(lstm: nn.Module) -> bool:
    """Whether ``lstm`` is one plain bidirectional layer in fp32, fully described by its parameters: no hooks, not
    quantized.
    """
    if type(lstm) is not nn.LSTM or lstm.weight_ih_l0.dtype != torch.float32:
        return False
    return lstm.num_layers == 1 and lstm.bidirectional and lstm.bias and lstm.proj_size == 0 and not is_hooked(lstm)


def _packed_weights(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the weights as ``_states`` takes them, packed once and cached, or None if they cannot be."""
    if not can_order(x, *weights, dtype=x.dtype):
        return None
    return packed(_pack_bf16 if x.dtype == torch.bfloat16 else _pack, *weights)


def packed_bilstm(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """Compute ``bilstm`` without gradients on a CPU, and in fewer steps if the weights can be packed.

    Args:
        lstm: an LSTM for which ``is_plain_fp32`` is True.
        x: float32 ``[N, input_size]`` with N > 0.
        batch_sizes: int64 ``[T]``.

    Raises:
        ValueError: ``x`` or ``batch_sizes`` has the wrong shape.
    """
    _check_input(lstm, x)
    kept = _packed_weights(x, [weight for direction in lstm.all_weights for weight in direction])
    if kept is None:
        return bilstm(lstm, x, batch_sizes)
    _check_sizes(batch_sizes.tolist(), len(x))
    return _states(x, batch_sizes, *kept)


def _states(x: Tensor, batch_sizes: Tensor, w_x: Tensor, bias: Tensor, w_h: Tensor) -> Tensor:
    """Compute ``y [N, 2H]`` alone, without gradients."""
    gates = onednn_product(x, w_x, bias).float()
    return torch.ops.esim_fast.bilstm_states(gates, w_h, batch_sizes)


def _pack(w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r, *, order=ordered):
    """Pack weights for the product with the input, shared by both directions, and for the recurrence."""
    bias = torch.cat([b_ih + b_hh, b_ih_r + b_hh_r])
    return order(torch.cat([w_ih, w_ih_r])), bias, torch.ops.esim_fast.bilstm_pack(w_hh, w_hh_r)


def _pack_bf16(*weights):
    """Pack weights with the product in bf16."""
    w_x, bias, w_h = _pack(*weights, order=ordered_bf16)
    return w_x, bias.bfloat16(), w_h


def _backward(grad_y, x, batch_sizes, y, c, gates, gates_r, w_ih, w_hh, w_ih_r, w_hh_r, x_needed):
    """Return the gradients of x (None if not needed) and of each direction's four parameters."""
    grad_gates, grad_gates_r, previous = torch.ops.esim_fast.bilstm_backward(
        grad_y, y, c, gates, gates_r, w_hh.contiguous(), w_hh_r.contiguous(), batch_sizes
    )
    H = w_hh.shape[1]
    grad_x, gradients = None, []
    x = for_weight_gradients(x)
    directions = (grad_gates, previous[:, :H], w_ih), (grad_gates_r, previous[:, H:], w_ih_r)
    for grad, before, weight in directions:
        grad_b = grad.sum(0)
        grad = grad.to(x.dtype)
        if x_needed:
            part = product(grad, weight.to(x.dtype).t())
            grad_x = part if grad_x is None else grad_x.add_(part)
        grad_w_ih, grad_w_hh = (weight_gradient(grad, left.to(x.dtype)).float() for left in (x, before))
        gradients += [grad_w_ih, grad_w_hh, grad_b, grad_b.clone()]  # gradients may be scaled in place
    return grad_x, *gradients


class _BiLSTM(torch.autograd.Function):
    """Return y and c ``[N, 2H]``, and the gates of each direction ``[N, 4H]``."""

    # No *args: torch.compile counts parameters to decide whether the first is a context.
    @staticmethod
    def forward(x, batch_sizes, padding, w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r):
        # The kernel overwrites the products with the gates.
        gates = product(x, w_ih.to(x.dtype), (b_ih + b_hh).to(x.dtype)).float()
        gates_r = product(x, w_ih_r.to(x.dtype), (b_ih_r + b_hh_r).to(x.dtype)).float()
        shut(gates_r, padding)
        y, c = torch.ops.esim_fast.bilstm(gates, gates_r, w_hh.contiguous(), w_hh_r.contiguous(), batch_sizes)
        return y, c, gates, gates_r

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, batch_sizes, _, w_ih, w_hh, _, _, w_ih_r, w_hh_r, _, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, batch_sizes, *output, w_ih, w_hh, w_ih_r, w_hh_r)

    @staticmethod
    def backward(ctx, grad_y, *_):
        if grad_y is None:
            return (None,) * 11
        arguments = grad_y, *ctx.saved_tensors, ctx.needs_input_grad[0]
        grad_x, *gradients = first_derivative("bilstm", _backward, *arguments)
        return grad_x, None, None, *gradients


@torch.library.register_fake("esim_fast::bilstm")
def _bilstm_fake(gates, gates_reverse, weight, *_):
    return tuple(gates.new_empty(gates.shape[0], 2 * weight.shape[1]) for _ in range(2))


@torch.library.register_fake("esim_fast::bilstm_pack")
def _bilstm_pack_fake(weight, _):
    H = weight.shape[1]
    return weight.new_empty(2, -(-H // 16), H, 64)


@torch.library.register_fake("esim_fast::bilstm_states")
def _bilstm_states_fake(gates, *_):
    return gates.new_empty(gates.shape[0], gates.shape[1] // 4)


@torch.library.register_fake("esim_fast::bilstm_backward")
def _bilstm_backward_fake(grad_y, y, c, gates, *_):
    return torch.empty_like(gates), torch.empty_like(gates), torch.empty_like(y)


@constant_when_compiled
def _precision() -> str:
    """Return how the Triton kernels multiply fp32: like cuDNN's LSTMs."""
    return "tf32" if cast(Any, torch.backends.cudnn).rnn.fp32_precision == "tf32" else "tf32x3"


class _TritonBiLSTM(torch.autograd.Function):
    """Use one product with the input for both directions; their gates lie side by side in ``[N, 8H]``."""

    @staticmethod
    def forward(
        x, w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r, first_row, padding, sentences, precision, packs,
    ):  # fmt: skip
        H = w_hh.shape[1]
        vector = 16 // x.element_size()  # rows aligned to 16 bytes allow vector loads
        pitch = -(-H // vector) * vector
        w_x, w_h = x.new_empty(8 * H, x.shape[1]), x.new_empty(2, 4 * H, pitch)
        if packs:
            bias = x.new_empty(8 * H)
            given = w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r
            torch.ops.esim_fast.bilstm_triton_weights(*given, w_x, bias, w_h)
        else:
            torch.cat([w_ih, w_ih_r], out=w_x)
            torch.stack([w_hh, w_hh_r], out=(w_h if pitch == H else w_h.zero_())[:, :, :H])
            bias = torch.cat([b_ih, b_ih_r, b_hh, b_hh_r]).view(2, 8 * H).sum(0).to(x.dtype)
        gates = functional.linear(x, w_x, bias)
        shut(gates[:, 4 * H :], padding)
        y, c = torch.ops.esim_fast.bilstm_triton(gates, w_h, first_row, sentences, precision)
        return y, c, gates, w_x, w_h

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *_, first_row, _, sentences, precision, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *output, first_row)
        ctx.options = sentences, precision

    @staticmethod
    def backward(ctx, grad_y, *_):
        if grad_y is None:
            return (None,) * 14
        arguments = grad_y, *ctx.saved_tensors, *ctx.options, ctx.needs_input_grad[0]
        grad_x, *gradients = first_derivative("bilstm", _triton_backward, *arguments)
        return grad_x, *gradients, None, None, None, None, None


def _triton_backward(grad_y, x, y, c, gates, w_x, w_h, first_row, sentences, precision, x_needed):
    """Return the gradients of x (None if not needed) and of each direction's four parameters."""
    grad_gates, previous = torch.ops.esim_fast.bilstm_triton_backward(
        grad_y, y, c, gates, w_h, first_row, sentences, precision
    )
    H = y.shape[1] // 2
    grad_w_ih = (grad_gates.t() @ x).float()
    grad_b = grad_gates.sum(0, dtype=torch.float32)
    grad_b_hh = grad_b.clone()  # gradients may be scaled in place
    gradients = []
    for direction in (0, 1):
        units, gate = slice(direction * H, (direction + 1) * H), slice(direction * 4 * H, (direction + 1) * 4 * H)
        grad_w_hh = (grad_gates[:, gate].t() @ previous[:, units]).float()
        gradients += [grad_w_ih[gate], grad_w_hh, grad_b[gate], grad_b_hh[gate]]
    return grad_gates @ w_x if x_needed else None, *gradients


if runtime.AVAILABLE:
    from .triton import bilstm as kernels  # imports Triton, so only if it is available
    from .triton import lstm_weights

    def _bilstm_triton_fake(gates, *_):
        shape = gates.shape[0], gates.shape[1] // 4
        return gates.new_empty(shape), gates.new_empty(shape, dtype=torch.float32)

    def _bilstm_triton_backward_fake(grad_y, y, c, gates, *_):
        return torch.empty_like(gates), torch.empty_like(y)

    _given = ", ".join(f"Tensor {name}{end}" for end in ("", "_r") for name in ("w_ih", "w_hh", "b_ih", "b_hh"))
    runtime.register(
        f"bilstm_triton_weights({_given}, Tensor(a!) w_x, Tensor(b!) bias, Tensor(c!) w_h) -> ()",
        lstm_weights.run,
        lambda *_: None,
    )
    _last = "Tensor weights, Tensor first_row, SymInt sentences, str precision) -> (Tensor, Tensor)"
    runtime.register(f"bilstm_triton(Tensor(a!) gates, {_last}", kernels.run_forward, _bilstm_triton_fake)
    runtime.register(
        f"bilstm_triton_backward(Tensor grad_y, Tensor y, Tensor c, Tensor gates, {_last}",
        kernels.run_backward,
        _bilstm_triton_backward_fake,
    )
