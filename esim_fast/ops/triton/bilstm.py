"""The recurrence of a packed bidirectional LSTM, forward and backward.

Products with the input and the weights' gradients are matrix products over all tokens, computed elsewhere. What remains
is one small product per time step. A program takes one direction of a group of sentences through all time steps.
Sentences are independent, so no program waits for another, and a layer is a single launch, while cuDNN makes several
per time step. The recurrent weights do not fit into a multiprocessor and are read from the GPU's cache in every step.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .runtime import Config, Launch, blocks_in
from .tokens import clear, dot

INPUT, FORGET, CELL, OUTPUT = (tl.constexpr(gate) for gate in range(4))  # torch.nn.LSTM's order


# By kernel and arithmetic. In half precision and TF32 these are the fastest of eight on an H100, or within 3 % of it
# (benchmarks/NOTES.md). max_registers keeps the compiler from spilling registers to fit two programs on a
# multiprocessor, which gains nothing with so few programs.
CONFIGS = {
    ("forward", "half"): Config(64, 64, 8, 3, max_registers=255),
    ("forward", "tf32"): Config(32, 64, 8, 3, max_registers=255),
    ("forward", "tf32x3"): Config(32, 64, 8, 3, max_registers=255),
    ("backward", "half"): Config(128, 64, 8, 3, max_registers=255),
    ("backward", "tf32"): Config(64, 64, 4, 3, max_registers=255),
    ("backward", "tf32x3"): Config(64, 64, 8, 3, max_registers=255),
}
GROUP = 16  # sentences per program, the minimum for tl.dot; on an H100, 32 and 64 are slower at any batch size


@triton.jit
def tanh(x):
    # Near zero the quotient cancels, so a series is used there.
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    shrunk = tl.exp(-2 * tl.abs(x))
    quotient = (1 - shrunk) / (1 + shrunk)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _step(first_row, rows, steps, t, sentence):
    """Return the rows of a time step's tokens for ``sentence [G]``, and which of them exist (none if t is out of
    range).
    """
    inside = (t >= 0) & (t < steps)
    first = tl.load(first_row + t, mask=inside, other=0)
    # 0 if t is out of range, so that no row exists: Triton 3.9's interpreter supports no scalar bool in a mask.
    last = tl.load(first_row + t + 1, mask=inside, other=0)
    row = first + sentence
    return row, (row < last) & (row >= 0) & (row < rows)


@triton.jit
def _longest(first_row, rows, steps, sentence):
    """Return the number of time steps of a sentence, which is the group's maximum for its first sentence."""
    longest = tl.zeros([], tl.int32)
    for t0 in range(0, steps, 64):
        t = t0 + tl.arange(0, 64)
        _, there = _step(first_row, rows, steps, t, sentence)
        longest += tl.sum(there.to(tl.int32), 0)
    return longest


@triton.jit
def _load(x, row, row_size, there, column, columns):
    """Load ``[G, W]`` through the L2 cache, because this program may have written the rows one step ago."""
    place = x + row[:, None] * row_size + column[None, :]
    return tl.load(place, mask=there[:, None] & (column < columns)[None, :], other=0.0, cache_modifier=".cg")


@triton.jit
def _store(x, row, row_size, there, column, columns, value):
    place = x + row[:, None] * row_size + column[None, :]
    tl.store(place, value.to(x.dtype.element_ty), mask=there[:, None] & (column < columns)[None, :])


_UNSPECIALIZED = ["rows", "steps"]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def forward(
    gates, weights, first_row, y, c, rows, steps,
    H: tl.constexpr, PITCH: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write ``y [N, 2H]`` and ``c [N, 2H]``; ``gates [N, 8H]`` hold products with the input and are overwritten by the
    gates.

    In rows after those that sentences fill, y is zero, and c and the gates are left as they are.
    """
    clear(y, first_row + steps, rows, 2 * H)
    backwards = tl.program_id(0) % 2
    sentence = tl.program_id(0).to(tl.int64) // 2 * GROUP + tl.arange(0, GROUP)
    gates += backwards * 4 * H
    weights += backwards * 4 * H * PITCH
    y += backwards * H
    c += backwards * H
    longest = _longest(first_row, rows, steps, tl.min(sentence, 0))
    for n in tl.range(0, longest, num_stages=1):  # loads must not be moved before the previous step's stores
        t = tl.where(backwards == 1, longest - 1 - n, n)
        row, there = _step(first_row, rows, steps, t, sentence)
        row_before, known = _step(first_row, rows, steps, tl.where(backwards == 1, t + 1, t - 1), sentence)
        known = known & there & (n > 0)
        terms = tl.where(n > 0, H, 0)
        for h0 in range(0, H, BLOCK_H):
            h = h0 + tl.arange(0, BLOCK_H)
            input = _load(gates, row, 8 * H, there, h, H).to(tl.float32)
            forget = _load(gates + FORGET * H, row, 8 * H, there, h, H).to(tl.float32)
            cell = _load(gates + CELL * H, row, 8 * H, there, h, H).to(tl.float32)
            output = _load(gates + OUTPUT * H, row, 8 * H, there, h, H).to(tl.float32)
            c_before = _load(c, row_before, 2 * H, known, h, H)
            for k0 in range(0, terms, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                state = _load(y, row_before, 2 * H, known, k, H)
                place = weights + h[None, :] * PITCH + k[:, None]
                here = (h < H)[None, :] & (k < PITCH)[:, None]
                input = dot(state, tl.load(place, mask=here, other=0.0), input, PRECISION)
                forget = dot(state, tl.load(place + FORGET * H * PITCH, mask=here, other=0.0), forget, PRECISION)
                cell = dot(state, tl.load(place + CELL * H * PITCH, mask=here, other=0.0), cell, PRECISION)
                output = dot(state, tl.load(place + OUTPUT * H * PITCH, mask=here, other=0.0), output, PRECISION)
            input, forget, cell, output = _sigmoid(input), _sigmoid(forget), tanh(cell), _sigmoid(output)
            c_here = forget * c_before + input * cell
            _store(gates, row, 8 * H, there, h, H, input)
            _store(gates + FORGET * H, row, 8 * H, there, h, H, forget)
            _store(gates + CELL * H, row, 8 * H, there, h, H, cell)
            _store(gates + OUTPUT * H, row, 8 * H, there, h, H, output)
            _store(c, row, 2 * H, there, h, H, c_here)
            _store(y, row, 2 * H, there, h, H, output * tanh(c_here))
        tl.debug_barrier()  # the next step reads what all threads of this program have written


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def backward(
    grad_y, y, c, gates, weights, first_row, grad_gates, previous, grad_c, rows, steps,
    H: tl.constexpr, PITCH: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write ``grad_gates [N, 8H]``, gradients of the products with the input, and ``previous [N, 2H]``, the initial
    states of the steps; both are zero in rows after those that sentences fill.

    ``grad_c`` carries gradients from step to step, with a row for each sentence that a program can have.
    """
    clear(grad_gates, first_row + steps, rows, 8 * H)
    clear(previous, first_row + steps, rows, 2 * H)
    backwards = tl.program_id(0) % 2
    sentence = tl.program_id(0).to(tl.int64) // 2 * GROUP + tl.arange(0, GROUP)
    gates += backwards * 4 * H
    grad_gates += backwards * 4 * H
    weights += backwards * 4 * H * PITCH
    grad_y += backwards * H
    y += backwards * H
    c += backwards * H
    previous += backwards * H
    grad_c += backwards * H
    longest = _longest(first_row, rows, steps, tl.min(sentence, 0))
    for n in tl.range(0, longest, num_stages=1):  # from the last computed state to the first
        t = tl.where(backwards == 1, n, longest - 1 - n)
        row, there = _step(first_row, rows, steps, t, sentence)
        row_before, known = _step(first_row, rows, steps, tl.where(backwards == 1, t + 1, t - 1), sentence)
        row_after, continued = _step(first_row, rows, steps, tl.where(backwards == 1, t - 1, t + 1), sentence)
        known = known & there
        continued = continued & there & (n > 0)
        terms = tl.where(n > 0, 4 * H, 0)
        for h0 in range(0, H, BLOCK_H):
            h = h0 + tl.arange(0, BLOCK_H)
            grad_h = _load(grad_y, row, 2 * H, there, h, H).to(tl.float32)
            input = _load(gates, row, 8 * H, there, h, H).to(tl.float32)
            forget = _load(gates + FORGET * H, row, 8 * H, there, h, H).to(tl.float32)
            cell = _load(gates + CELL * H, row, 8 * H, there, h, H).to(tl.float32)
            output = _load(gates + OUTPUT * H, row, 8 * H, there, h, H).to(tl.float32)
            tangent = tanh(_load(c, row, 2 * H, there, h, H))
            c_before = _load(c, row_before, 2 * H, known, h, H)
            grad = _load(grad_c, sentence, 2 * H, continued, h, H)
            _store(previous, row, 2 * H, there, h, H, _load(y, row_before, 2 * H, known, h, H))
            for k0 in range(0, terms, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                after = _load(grad_gates, row_after, 8 * H, continued, k, 4 * H)
                here = (k < 4 * H)[:, None] & (h < PITCH)[None, :]
                weight = tl.load(weights + k[:, None] * PITCH + h[None, :], mask=here, other=0.0)
                grad_h = dot(after, weight, grad_h, PRECISION)
            grad += grad_h * output * (1 - tangent * tangent)
            _store(grad_gates, row, 8 * H, there, h, H, grad * cell * input * (1 - input))
            _store(grad_gates + FORGET * H, row, 8 * H, there, h, H, grad * c_before * forget * (1 - forget))
            _store(grad_gates + CELL * H, row, 8 * H, there, h, H, grad * input * (1 - cell * cell))
            _store(grad_gates + OUTPUT * H, row, 8 * H, there, h, H, grad_h * tangent * output * (1 - output))
            _store(grad_c, sentence, 2 * H, there, h, H, grad * forget)
        tl.debug_barrier()


def run_forward(
    gates: Tensor, weights: Tensor, first_row: Tensor, sentences: int, precision: str
) -> tuple[Tensor, Tensor]:
    """Implement ``esim_fast::bilstm_triton``: return y and c."""
    H = _hidden_size(gates, weights, first_row, sentences)
    y = gates.new_empty(len(gates), 2 * H)
    c = gates.new_empty(len(gates), 2 * H, dtype=torch.float32)
    with torch.cuda.device_of(gates):
        plan_forward(gates, weights, first_row, y, c, sentences, precision).start()
    return y, c


def run_backward(
    grad_y: Tensor,
    y: Tensor,
    c: Tensor,
    gates: Tensor,
    weights: Tensor,
    first_row: Tensor,
    sentences: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Implement ``esim_fast::bilstm_triton_backward``.

    Returns:
        The gradients of the products with the input, and the states before each step.
    """
    H = _hidden_size(gates, weights, first_row, sentences)
    for name, x, dtype in (("grad_y", grad_y, gates.dtype), ("y", y, gates.dtype), ("c", c, torch.float32)):
        if not isinstance(x, Tensor) or x.shape != (len(gates), 2 * H) or x.dtype != dtype or x.device != gates.device:
            raise ValueError(f"{name} must be [{len(gates)}, {2 * H}] in {dtype} on {gates.device}")
    kept = grad_y.contiguous(), y.contiguous(), c.contiguous(), gates, weights, first_row
    grad_gates, previous = torch.empty_like(gates), torch.empty_like(y)
    with torch.cuda.device_of(gates):
        plan_backward(*kept, grad_gates, previous, sentences, precision).start()
    return grad_gates, previous


def plan_forward(
    gates: Tensor, weights: Tensor, first_row: Tensor, y: Tensor, c: Tensor, sentences: int, precision: str
) -> Launch:
    return _plan(forward, (gates, weights, first_row, y, c), gates, weights, first_row, sentences, precision)


def plan_backward(
    grad_y: Tensor,
    y: Tensor,
    c: Tensor,
    gates: Tensor,
    weights: Tensor,
    first_row: Tensor,
    grad_gates: Tensor,
    previous: Tensor,
    sentences: int,
    precision: str,
) -> Launch:
    grad_c = y.new_empty(GROUP * _groups(sentences, gates), y.shape[1], dtype=torch.float32)
    tensors = grad_y, y, c, gates, weights, first_row, grad_gates, previous, grad_c
    return _plan(backward, tensors, gates, weights, first_row, sentences, precision)


def _plan(
    kernel: Any, tensors: tuple, gates: Tensor, weights: Tensor, first_row: Tensor, sentences: int, precision: str
) -> Launch:
    if precision not in ("tf32", "tf32x3"):
        raise ValueError(f"precision must be 'tf32' or 'tf32x3', got {precision!r}")
    H = weights.shape[1] // 4
    config = CONFIGS[kernel.__name__, "half" if gates.element_size() == 2 else precision].fitting(H)
    constants = {
        "H": H,
        "PITCH": weights.shape[2],
        "PRECISION": precision,
        "GROUP": GROUP,
        "BLOCK_H": config.block_d,
        "BLOCK_K": config.block_k,
    }
    arguments = (*tensors, len(gates), len(first_row) - 1)
    return Launch(kernel, 2 * _groups(sentences, gates), arguments, constants, config.options())


def _groups(sentences: int, gates: Tensor) -> int:
    """Return how many groups of sentences can have rows."""
    return blocks_in(min(sentences, len(gates)), GROUP)


def _hidden_size(gates: Tensor, weights: Tensor, first_row: Tensor, sentences: int) -> int:
    """Return H after checking that the tensors fit each other. Values on a GPU are not read; kernels bound every
    address.

    Raises:
        ValueError: they do not fit.
    """
    if not all(isinstance(tensor, Tensor) for tensor in (gates, weights, first_row)):
        raise ValueError("gates, weights and first_row must be given")
    H = weights.shape[1] // 4 if weights.dim() == 3 else 0
    if not H or weights.shape[0] != 2 or weights.shape[1] != 4 * H or weights.shape[2] < H:
        raise ValueError(f"weights must be [2, 4H, at least H], got {list(weights.shape)}")
    if weights.numel() >= 2**31:  # their offsets are 32-bit
        raise ValueError(f"weights must have fewer than 2**31 elements, got {list(weights.shape)}")
    if gates.dim() != 2 or gates.shape[1] != 8 * H or gates.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"gates must be [N, {8 * H}], float32, float16 or bfloat16, got {list(gates.shape)}")
    if first_row.dim() != 1 or first_row.dtype != torch.int64 or not len(first_row) or sentences < 0:
        raise ValueError(f"first_row must be int64 [T + 1], and sentences not negative, got {sentences}")
    for name, tensor in (("gates", gates), ("weights", weights), ("first_row", first_row)):
        if tensor.device != gates.device or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous and on {gates.device}")
    if weights.dtype != gates.dtype:
        raise ValueError(f"weights must be {gates.dtype} like gates, got {weights.dtype}")
    return H
