"""The CUDA kernels of masked_pool, compiled for the CPU: results, reads and writes."""

import math

import pytest
import torch

from esim_fast import Rows
from esim_fast.ops import masked_pool, reference
from tests.ops.large_tensors import FAR, reserve, spread
from tests.ops.layouts import LAYOUTS, Layout

NAMES = {torch.float32: "float", torch.float64: "double", torch.float16: "Half", torch.bfloat16: "BFloat16"}
# A thread handles one column, or 2 to 8 with accesses of 16 bytes, which widths of 7 and 601 rule out. It takes 8 rows
# at a time, 8 warps together take 64, and a warp of the backward pass takes 64.
WIDTHS = [1, 7, 8, 600, 601]
LENGTHS = [70, 0, 1, 133, 17]


@pytest.fixture(autouse=True)
def _kernels(cuda, monkeypatch):
    """The op runs the CUDA kernels, and unwritten results are NaN or the largest integer."""
    for name, operator in cuda.operators().items():
        monkeypatch.setattr(torch.ops.esim_fast, name, operator)
    cuda.launches()
    torch.use_deterministic_algorithms(True)  # fills the result of torch.empty
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def values_per_access(dtype, width):
    count = 16 // dtype.itemsize
    return 1 if width % count else count


def launched(dtype, vector, split, vector_backward=None):
    """The kernels launched for an op and its gradient."""
    forward = f"pool_kernel<{NAMES[dtype]}, {vector}, {8 if split else 1}>"
    return [forward, f"gradient_kernel<{NAMES[dtype]}, {vector_backward or vector}>"]


@pytest.fixture(params=[False, True], ids=["a-warp-a-sentence", "a-block-a-sentence"])
def split(cuda, request):
    """A large GPU takes many warps per sentence; a GPU without processors takes one."""
    cuda.set(multiprocessors=10**6 if request.param else 0)
    return request.param


def numbers(*shape, dtype=torch.float32, seed=0):
    """Multiples of 1/8 up to the range of bf16 or fp16, whose sums are exact only in fp32."""
    largest = 255 if dtype == torch.bfloat16 else 2047
    return torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype) / 8


def with_gradient(pool, x, grad_v, **given_as):
    x = x.detach().requires_grad_()
    v = pool(x, **given_as)
    return v.detach(), torch.autograd.grad(v, x, grad_v)[0]


def assert_agrees(x, **given_as):
    """Compares the op's results and gradient with the fp64 reference; returns the gradient."""
    batch = len(given_as["rows"].start) if "rows" in given_as else len(x)
    generator = torch.Generator().manual_seed(1)
    # Positive, so that gradients of averages and maxima do not cancel.
    grad_v = (torch.rand(batch, 2 * x.shape[-1], generator=generator, dtype=torch.float64) + 0.5).to(x.dtype)
    v, grad_x = with_gradient(masked_pool, x, grad_v, backend="cpp", **given_as)
    exact_v, exact_grad_x = with_gradient(reference.masked_pool, x.double(), grad_v.double(), **given_as)
    assert v.dtype == grad_x.dtype == x.dtype
    width, eps = x.shape[-1], torch.finfo(x.dtype).eps
    torch.testing.assert_close(v[:, :width].double(), exact_v[:, :width], rtol=eps, atol=0, equal_nan=True)
    torch.testing.assert_close(v[:, width:].double(), exact_v[:, width:], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(grad_x.double(), exact_grad_x, rtol=2 * eps, atol=0)
    return grad_x


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("given_as", [*LAYOUTS, "nothing", "packed and mask"])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_kernel_in_every_layout(cuda, dtype, given_as, width, split):
    if given_as == "nothing":
        layout = Layout.make("lengths", [128, 128], width, padding=0)  # the part of a gradient that two warps write
        layout.given_as.clear()
    else:
        layout = Layout.make(given_as.split()[0], LENGTHS, width, seed=width)
    if given_as == "packed and mask":
        generator = torch.Generator().manual_seed(width)
        layout.given_as["mask"] = torch.rand(len(LENGTHS), max(LENGTHS), generator=generator) < 0.6
    x = layout.fill(list(numbers(sum(layout.lengths), width, dtype=dtype, seed=width).split(layout.lengths)))
    layout.sentences(assert_agrees(x, **layout.given_as))
    assert cuda.launches() == launched(dtype, values_per_access(dtype, width), split)


@pytest.mark.parametrize("width", [80, 81])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_first_maxima_infinity_and_nan(cuda, dtype, width, split):
    nan, inf = math.nan, math.inf
    # Each column has a few of these values in some order, and the first maximum occurs in every warp's share.
    choices = [[-inf], [-inf, -1], [-1, 0, 1], [1, inf], [-inf, 0, inf], [nan, 0], [nan, -inf, inf], [nan], [2]]
    generator = torch.Generator().manual_seed(width)
    columns = [torch.tensor(choices[column % len(choices)]) for column in range(width)]
    drawn = [values[torch.randint(len(values), (6, 90), generator=generator)] for values in columns]
    x = torch.stack(drawn, 2).to(dtype)
    x[5, 1:, :2] = x[5, 0, :2] = -inf
    mask = torch.rand(6, 90, generator=generator) < torch.tensor([1, 0.5, 0.1, 0.03, 0, 0.5])[:, None]
    assert_agrees(x, mask=mask)
    assert cuda.launches() == launched(dtype, values_per_access(dtype, width), split)


@pytest.mark.parametrize("first", range(24))
def test_the_first_maximum_in_every_place(split, first):
    """All later tokens tie, and the first one wins at any place in a warp's rows and a block's warps."""
    x = torch.zeros(2, 90, 8)
    x[0, first:], x[1, 3 * first :] = 1, math.nan
    v, argmax, count = torch.ops.esim_fast.masked_pool(x, None, None, None, None)
    assert (argmax == torch.tensor([first, 3 * first])[:, None]).all()
    assert (v[0, 8:] == 1).all()
    assert v[1, 8:].isnan().all()
    assert (count == 90).all()


def chosen_by_torch(x, counts):
    """The first NaN among the unmasked tokens, otherwise the first maximum; -1 if all are masked."""
    counts, tokens = counts[:, :, None], torch.arange(x.shape[1])[:, None]
    nan, maximum = x.isnan() & counts, x.masked_fill(~counts, -math.inf).nan_to_num(-math.inf, math.inf, -math.inf)
    best = torch.where(nan.any(1, keepdim=True), nan, counts & (x == maximum.amax(1, keepdim=True)))
    first = torch.where(best, tokens, x.shape[1]).amin(1)
    return torch.where(counts.any(1), first, -1).int()


@pytest.mark.parametrize("length", [17, 24, 63, 64, 65, 130])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_values_that_comparisons_pass_over(cuda, dtype, length, split):
    """In sentences of every length, with many per warp, at any place in a group of rows, once or repeatedly."""
    nan, inf = math.nan, math.inf
    generator = torch.Generator().manual_seed(length)

    def some(*values):
        return torch.tensor(values).float()[torch.randint(len(values), (length + 1, length), generator=generator)]

    rarely = torch.rand(length + 1, length, generator=generator) < 2 / length
    columns = [
        some(-1, 0, 1).masked_fill(rarely, nan),
        some(-inf).masked_fill(rarely, nan),
        some(-inf).masked_fill(rarely, -1),
        some(-inf),
        some(0.0, -0.0),
        some(-1, 1).masked_fill(rarely, inf),
        some(-inf, -1).masked_fill(rarely, inf),  # their sum is NaN, although they are not
        some(-2, 2).masked_fill(rarely, -inf),
    ]
    x = torch.stack(columns, 2).to(dtype)
    lengths, mask = torch.arange(length + 1), torch.rand(length + 1, length, generator=generator) < 0.7
    below = torch.arange(length) < lengths[:, None]
    for only, counts in [(None, below), (mask, below & mask)]:
        x_given = x.masked_fill(~counts[:, :, None], nan)
        v, argmax, count = torch.ops.esim_fast.masked_pool(x_given, None, None, lengths, only)
        assert torch.equal(count, counts.sum(1).int())
        assert torch.equal(argmax, chosen_by_torch(x, counts))
        maximum = torch.where(count[:, None] > 0, x.gather(1, argmax.clamp(min=0)[:, None].long())[:, 0], 0)
        torch.testing.assert_close(v[:, 8:], maximum, rtol=0, atol=0, equal_nan=True)
        average = torch.where(counts[:, :, None], x.double(), 0).sum(1) / count.clamp(min=1)[:, None]
        torch.testing.assert_close(v[:, :8], average.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0, equal_nan=True)
    assert cuda.launches() == [launched(dtype, values_per_access(dtype, 8), split)[0]] * 2


def test_argmax_and_count_of_the_empty(split):
    x, lengths, mask = torch.full((3, 40, 12), math.nan), torch.tensor([0, 40, 40]), torch.zeros(3, 40).bool()
    mask[2, 7], x[2, 7] = True, 5.0
    v, argmax, count = torch.ops.esim_fast.masked_pool(x, None, None, lengths, mask)
    assert v.tolist() == [[0.0] * 24, [0.0] * 24, [5.0] * 24]
    assert argmax.tolist() == [[-1] * 12, [-1] * 12, [7] * 12]
    assert count.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("view", "vector"),
    [
        (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), 4),  # time-major
        (lambda x: torch.cat([x, x], 2)[:, :, :24], 4),  # a slice of wider rows
        (lambda x: torch.cat([x, x], 2)[:, :, 4:28], 4),  # starting at a multiple of 16 bytes
        (lambda x: torch.cat([x, x], 2)[:, :, 1:25], 1),  # not starting at a multiple of 16 bytes
        (lambda x: torch.cat([x, x], 2)[:, :, :23], 1),
        (lambda x: torch.cat([x, x[:, :, :1]], 2)[:, :, :24], 1),  # rows not aligned to 16 bytes
        (lambda x: torch.cat([x.flatten(1), x[:, 0, :1]], 1)[:, :-1].unflatten(1, (20, 24)), 1),  # nor sentences
        (lambda x: torch.stack([x, x], 3)[..., 0], 4),  # columns that are not contiguous, which are copied
        (lambda x: torch.cat([x, x], 1)[:, ::2], 4),  # every other token
        (lambda x: x[:1].expand(5, -1, -1), 4),  # one sentence, five times
        (lambda x: x[:, :1].expand(-1, 30, -1), 4),  # one token, thirty times
    ],
)
def test_strides(cuda, view, vector, split):
    x = view(numbers(4, 20, 24))
    mask = torch.rand(x.shape[1], len(x), generator=torch.Generator().manual_seed(3)).t() < 0.8
    assert_agrees(x, lengths=torch.tensor([20, 3, 0, 18, 20])[: len(x)])
    assert cuda.launches() == launched(x.dtype, vector, split, values_per_access(x.dtype, x.shape[2]))
    assert_agrees(x, mask=mask)


@pytest.mark.parametrize("given_as", ["lengths", "packed"])
@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_tensors_that_begin_anywhere(cuda, dtype, given_as):
    """Rows and gradients from autograd may start at any address."""

    def moved(tensor):
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    layout = Layout.make(given_as, [3, 0, 66], 16)
    x = layout.fill(list(numbers(69, 16, dtype=dtype).split(layout.lengths)))
    rows = layout.given_as.get("rows")
    addresses = (*((rows.start, rows.step, rows.lengths) if rows else (None, None, layout.given_as["lengths"])), None)
    forward, backward = torch.ops.esim_fast.masked_pool, torch.ops.esim_fast.masked_pool_backward
    cuda.set(multiprocessors=0)
    results = forward(x, *addresses)
    for ours, wanted in zip(forward(moved(x), *addresses), results, strict=True):
        assert torch.equal(ours, wanted)
    grad_v = numbers(3, 32, dtype=dtype, seed=1)
    gradient = backward(grad_v, *results[1:], *addresses, x.shape[-2])
    assert torch.equal(backward(moved(grad_v), *results[1:], *addresses, x.shape[-2]), gradient)
    aligned, anywhere = (launched(dtype, vector, False) for vector in (16 // dtype.itemsize, 1))
    assert cuda.launches() == [aligned[0], anywhere[0], aligned[1], anywhere[1]]


def test_misaligned_rows_are_noticed():
    """Rows requires multiples of D. With others, a GPU stops with an error, and so does its replacement here."""
    x, start, step, lengths = torch.zeros(4, 8), torch.tensor([1]), torch.tensor([0, 8]), torch.tensor([2])
    with pytest.raises(RuntimeError, match="misaligned address"):
        torch.ops.esim_fast.masked_pool(x, start, step, lengths, None)


@pytest.mark.parametrize("given_as", ["lengths", "concatenated"])
def test_impossible_lengths_are_clamped(split, given_as):
    """Lengths on a GPU are not read back for checks."""
    layout = Layout.make(given_as, [0, 40, 2], 8, padding=0)
    x = layout.fill(list(numbers(42, 8).split(layout.lengths)))
    rows = layout.given_as.get("rows")
    start, step = (rows.start, rows.step[:40]) if rows else (None, None)
    forward, backward, results = torch.ops.esim_fast.masked_pool, torch.ops.esim_fast.masked_pool_backward, []
    for lengths in (torch.tensor([0, 40, 2]), torch.tensor([-(2**40), 2**40, 2])):
        v, *chosen = forward(x, start, step, lengths, None)
        results.append([v, *chosen, backward(v, *chosen, start, step, lengths, None, x.shape[-2])])
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(*results, strict=True))
    assert results[0][2].tolist() == [0, 40, 2]


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 8), (2, 3, 0), (0, 0, 0)])
def test_nothing_to_pool(shape, dtype):
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    v = masked_pool(x, backend="cpp")
    v.sum().backward()
    assert v.shape == (shape[0], 2 * shape[2])
    assert not v.any()
    assert x.grad.shape == shape
    v, argmax, count = torch.ops.esim_fast.masked_pool(x.detach(), None, None, None, None)
    assert (argmax == -1).all()
    assert not count.any()


class TestMoreElementsThan32BitsCount:
    """A truncated index would lead to zeros."""

    @pytest.mark.parametrize("along", [0, 1], ids=["batch", "time"])
    def test_strides(self, cuda, along, split):
        x = numbers(3, 33, 16, dtype=torch.bfloat16)
        mask = torch.rand(3, 33, generator=torch.Generator().manual_seed(2)) < 0.7
        assert_agrees(spread(x, along), mask=spread(mask, along))
        assert cuda.launches() == launched(x.dtype, 8, split)

    def test_rows(self, cuda, split):
        words, width = numbers(38, 16, dtype=torch.bfloat16), 16
        x = reserve((2 * FAR // width + 64, width))
        first = FAR // width + 4
        x[first : first + 33], x[:5] = words[:33], words[33:]
        far = Rows(torch.tensor([first * width, 0]), torch.arange(33) * width, torch.tensor([33, 5]), 33)
        near = Rows.concatenated([33, 5], width)
        assert torch.equal(masked_pool(x, rows=far), masked_pool(words, rows=near))
        assert masked_pool(words, rows=near).any(1).all()
