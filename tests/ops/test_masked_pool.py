"""masked_pool against its fp64 reference, in both layouts, with every mask and dtype, and with bad input."""

import math

import pytest
import torch

from benchmarks.baselines import eager_pool
from esim_fast import Rows
from esim_fast.ops import masked_pool, reference
from esim_fast.ops.backends import has_code
from tests.ops.layouts import packed_rows
from tests.ops.numerics import DTYPES, assert_as_exact_as_eager

NAN, INF = math.nan, math.inf
KERNEL = {"cpu": "cpp", "cuda": "cuda"}  # by device
WIDTHS = [1, 3, 600, 601]  # odd ones take the CUDA kernel's scalar path, 600 its 16-byte path


def forward_and_gradient(pool, x, *arguments, **options):
    x = x.detach().requires_grad_()
    v = pool(x, *arguments, **options)
    weight = torch.randn(v.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(v)
    return v.detach(), torch.autograd.grad(v, x, weight)[0]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_eager(dtype, width, device):
    generator = torch.Generator().manual_seed(width)
    ours, eager, exact = [], [], []
    for batch, length in [(5, 1), (4, 9), (3, 36), (2, 64), (1, 500)]:
        x = torch.randn(batch, length, width, generator=generator).to(device, dtype)
        lengths = torch.randint(1, length + 1, (batch,), generator=generator)
        prefix = torch.arange(length) < lengths[:, None]
        scattered = torch.rand(batch, length, generator=generator) < 0.7
        scattered[:, int(torch.randint(length, (), generator=generator))] = True
        for mask in (prefix.to(device), scattered.to(device)):
            v, gradient = forward_and_gradient(masked_pool, x, mask=mask, backend=KERNEL[device])
            exact_v, exact_gradient = forward_and_gradient(reference.masked_pool, x.double(), mask=mask)
            ours += [v, gradient]
            eager += forward_and_gradient(eager_pool, x, mask.long())
            exact += [exact_v, exact_gradient]

            assert v.dtype == gradient.dtype == dtype
            # A maximum is exact; an average has its own rounding error and that of a sum of n terms.
            assert torch.equal(v[:, width:].double(), exact_v[:, width:])
            magnitude = reference.masked_pool(x.double().abs(), mask=mask)[:, :width]
            bound = torch.finfo(dtype).eps * magnitude + length * torch.finfo(torch.float32).eps * magnitude
            assert ((v.double() - exact_v)[:, :width].abs() <= bound).all()
            assert not gradient[~mask].any()
    assert_as_exact_as_eager(ours, eager, exact)


def test_rounding_grows_slowly():
    """Sums of 16 rows and then of those sums have 16 + n/16 sequential roundings and not n."""
    n, value = 16384, torch.tensor(0.1)
    average = float(masked_pool(value.expand(1, n, 3), backend="cpp")[0, 0])
    error, half = abs(average / float(value) - 1), torch.finfo(torch.float32).eps / 2
    one_sum = float(value.expand(n).numpy().cumsum(dtype="float32")[-1]) / n
    assert error <= (16 + n / 16) * half < abs(one_sum / float(value) - 1)


def test_gradcheck(device):
    x = torch.randn(4, 6, 5, dtype=torch.float64, device=device, requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0] * 6, [0, 0, 0, 0, 0, 1], [1] * 6], device=device)
    assert torch.autograd.gradcheck(lambda x: masked_pool(x, [6, 0, 1, 4], backend=KERNEL[device]), x)
    assert torch.autograd.gradcheck(lambda x: masked_pool(x, mask=mask, backend=KERNEL[device]), x)
    rows, count = packed_rows([3, 0, 5, 1], 5)
    data = torch.randn(count, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: masked_pool(x, rows=rows.to(device), backend=KERNEL[device]), data)


class TestDefinition:
    """A table small enough to check by hand."""

    @pytest.mark.parametrize("backend", ["kernel", "reference"])
    @pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
    @pytest.mark.parametrize(
        ("column", "mask", "average", "maximum", "gradient"),
        [
            # gradient of average + 10 * maximum
            ([1, 2, 3], [1, 1, 1], 2, 3, [1 / 3, 1 / 3, 1 / 3 + 10]),
            ([1, 2, 3], [1, 1, 0], 1.5, 2, [0.5, 10.5, 0]),
            ([3, 2, 1], [0, 1, 1], 1.5, 2, [0, 10.5, 0.5]),
            ([2, 5, 5], [1, 1, 1], 4, 5, [1 / 3, 1 / 3 + 10, 1 / 3]),  # a tie: the first one wins
            ([5, 2, 5], [0, 1, 1], 3.5, 5, [0, 0.5, 10.5]),  # a tie with a masked value
            ([-3, -2, -3], [1, 0, 1], -3, -3, [10.5, 0, 0.5]),  # all negative: padding's 0 must not win
            ([NAN, INF, 1], [0, 0, 1], 1, 1, [0, 0, 11]),  # masked values have no effect
            ([1, NAN, 2], [1, 1, 1], NAN, NAN, [1 / 3, 1 / 3 + 10, 1 / 3]),  # NaN propagates
            ([NAN, 3, NAN], [1, 1, 1], NAN, NAN, [1 / 3 + 10, 1 / 3, 1 / 3]),  # the first NaN
            ([1, INF, 2], [1, 1, 1], INF, INF, [1 / 3, 1 / 3 + 10, 1 / 3]),
            ([7, -INF, -INF], [0, 1, 1], -INF, -INF, [0, 10.5, 0.5]),  # -inf is an ordinary value
            ([1, 2, NAN], [0, 0, 0], 0, 0, [0, 0, 0]),  # an empty sentence
        ],
    )
    def test_table(self, column, mask, average, maximum, gradient, dtype, backend, device):
        # Wide enough for every lane and the tail of a vector loop.
        x = torch.tensor(column, dtype=dtype, device=device)[None, :, None].repeat(1, 1, 37).requires_grad_()
        backend = KERNEL[device] if backend == "kernel" else backend
        v = masked_pool(x, mask=torch.tensor([mask], device=device), backend=backend)
        (v * torch.tensor([1.0] * 37 + [10.0] * 37, dtype=dtype, device=device)).sum().backward()
        for got, expected in ((v[0, :37], average), (v[0, 37:], maximum)):
            torch.testing.assert_close(got, torch.full_like(got, expected), rtol=0, atol=0, equal_nan=True)
        expected = torch.tensor(gradient, dtype=torch.float64).to(dtype)[:, None].expand(3, 37).to(device)
        torch.testing.assert_close(x.grad[0], expected, rtol=torch.finfo(dtype).eps, atol=0)

    @pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
    def test_nothing_to_pool(self, shape, device):
        x = torch.randn(shape, device=device, requires_grad=True)
        v = masked_pool(x)
        v.sum().backward()
        assert v.shape == (shape[0], 2 * shape[2])
        assert not v.any()
        assert x.grad.shape == shape


class TestLayouts:
    @pytest.mark.parametrize("width", [1, 3, 64, 600])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_rows_give_the_bits_of_padded(self, width, dtype, device):
        lengths = torch.tensor([4, 0, 36, 1, 17])
        padded = torch.randn(5, 36, width, dtype=dtype)
        padded[torch.arange(36) >= lengths[:, None]] = math.nan
        packed, count = packed_rows(lengths, width)
        for rows in (packed, Rows.concatenated(lengths, width)):
            # Two more rows than are addressed; they must not be read, and get no gradient.
            data = torch.full((count + 2, width), math.nan, dtype=dtype)
            offset = (rows.start[:, None] + rows.step) // width
            valid = torch.arange(36) < lengths[:, None]
            data[offset[valid]] = padded[valid]
            v, gradient = forward_and_gradient(masked_pool, padded.to(device), lengths)
            v_rows, gradient_rows = forward_and_gradient(masked_pool, data.to(device), rows=rows.to(device))
            assert torch.equal(v_rows, v)
            assert torch.equal(gradient_rows[offset[valid].to(device)], gradient[valid.to(device)])
            assert not gradient_rows[count:].any()

    def test_rows_narrowed_by_a_mask(self, device):
        lengths = torch.tensor([4, 2, 5])
        mask = torch.tensor([[1, 0, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 1]], device=device)
        rows, count = packed_rows(lengths, 8)
        data = torch.randn(count, 8, dtype=torch.float64, device=device)
        narrowed = {"rows": rows.to(device), "mask": mask}
        ours, expected = (forward_and_gradient(op, data, **narrowed) for op in (masked_pool, reference.masked_pool))
        torch.testing.assert_close(ours, expected)
        assert not ours[0][1].any()  # the second sentence has no words left

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),  # time-major
            lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],  # a slice of wider rows
            lambda x: torch.cat([x, x], 2)[:, :, 1 : x.shape[2] + 1],  # not aligned to 16 bytes
            lambda x: torch.stack([x, x], 3)[..., 0],  # columns that are not contiguous
            lambda x: torch.cat([x, x], 1)[:, ::2][:, : x.shape[1] // 2],  # every other token
            lambda x: x[:1].expand(5, -1, -1),  # one sentence, five times
            lambda x: x.flip(1),
        ],
    )
    def test_strides(self, view, device):
        x = view(torch.randn(4, 10, 24, device=device))
        lengths = torch.randint(0, x.shape[1] + 1, (len(x),))
        ours, expected = (forward_and_gradient(masked_pool, given, lengths) for given in (x, x.contiguous()))
        assert all(torch.equal(*both) for both in zip(ours, expected, strict=True))

    def test_masks_and_lengths_of_any_dtype(self):
        x, any_mask = torch.randn(3, 4, 5), torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]])
        for dtype in (torch.bool, torch.int64, torch.float32, torch.uint8):
            mask = any_mask.to(dtype)
            assert torch.equal(masked_pool(x, mask=mask), masked_pool(x, mask=mask.bool()))
            assert torch.equal(masked_pool(x, mask=mask.t().contiguous().t()), masked_pool(x, mask=mask))
        for dtype in (torch.int64, torch.int32, torch.uint8):
            assert torch.equal(masked_pool(x, torch.tensor([1, 4, 0], dtype=dtype)), masked_pool(x, [1, 4, 0]))

    def test_lengths_and_rows_of_any_strides(self, device):
        x, table = torch.randn(3, 4, 5, device=device), torch.tensor([[1, 9], [4, 9], [0, 9]], device=device)
        assert torch.equal(masked_pool(x, table[:, 0]), masked_pool(x, [1, 4, 0]))
        assert torch.equal(masked_pool(x, torch.tensor(2).expand(3)), masked_pool(x, [2, 2, 2]))
        rows = Rows.concatenated(torch.tensor([1, 2, 0]), 5).to(device)
        apart = [torch.stack([part, part], 1)[:, 0] for part in (rows.start, rows.step, rows.lengths)]
        data = torch.randn(3, 5, device=device)
        assert torch.equal(masked_pool(data, rows=Rows(*apart, 2)), masked_pool(data, rows=rows))


class TestIntegration:
    def arguments(self, device, layout):
        x = torch.randn(4, 9, 12, device=device)
        lengths = torch.tensor([3, 9, 0, 5], device=device)
        if layout == "lengths":
            return x, None, None, lengths, None
        if layout == "mask":
            return x, None, None, None, torch.rand(4, 9, device=device) < 0.5
        rows, count = packed_rows([3, 9, 0, 5], 12)
        rows = rows.to(device)
        return torch.randn(count, 12, device=device), rows.start, rows.step, rows.lengths, None

    @pytest.mark.parametrize("layout", ["lengths", "mask", "rows"])
    def test_opcheck(self, device, layout):
        arguments = self.arguments(device, layout)
        torch.library.opcheck(torch.ops.esim_fast.masked_pool, arguments)
        v, argmax, count = torch.ops.esim_fast.masked_pool(*arguments)
        backward = (torch.randn_like(v), argmax, count, *arguments[1:], arguments[0].shape[-2])
        torch.library.opcheck(torch.ops.esim_fast.masked_pool_backward, backward)

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile(self, device, dynamic):
        x, _, _, lengths, _ = self.arguments(device, "lengths")

        def eager(x, lengths):
            return masked_pool(x.sin(), lengths).cos()

        compiled = torch.compile(eager, fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(*(forward_and_gradient(run, x, lengths) for run in (compiled, eager)))

    def test_compile_with_rows(self):
        data, start, step, lengths, _ = self.arguments("cpu", "rows")
        rows = Rows(start, step, lengths, 9)
        compiled = torch.compile(lambda x: masked_pool(x, rows=rows), fullgraph=True)
        got, expected = forward_and_gradient(compiled, data), forward_and_gradient(masked_pool, data, rows=rows)
        assert all(torch.equal(*both) for both in zip(got, expected, strict=True))

    def test_autocast_keeps_the_dtype(self, device):
        x = torch.randn(2, 3, 4, device=device, requires_grad=True)
        with torch.autocast(device, torch.bfloat16):
            v = masked_pool(x)
        v.sum().backward()
        assert v.dtype == x.grad.dtype == torch.float32

    def test_torch_func(self, device):
        x, lengths = torch.randn(6, 2, 3, 4, device=device), torch.tensor([2, 3])
        together = torch.func.vmap(lambda x: masked_pool(x, lengths))(x)
        torch.testing.assert_close(together, torch.stack([masked_pool(one, lengths) for one in x]))
        results = []
        for backend in (None, "reference"):
            jacobian = torch.func.jacrev(lambda x, which=backend: masked_pool(x, lengths, backend=which))(x[0])
            grad = torch.func.grad(lambda x, which=backend: masked_pool(x, [2, 3], backend=which).square().sum())(x[0])
            results.append((jacobian, grad))
        torch.testing.assert_close(*results)

    def test_second_derivatives(self):
        """They raise or are correct: a gradient penalty is fine where the pooling's gradient is constant."""
        x, w = torch.randn(2, 3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
        (gradient,) = torch.autograd.grad(masked_pool(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="masked_pool has no second derivative"):
            gradient.square().sum().backward()

        def penalty(backend):
            y = masked_pool(x * w, backend=backend).sum() + (x**3).sum()
            (gradient,) = torch.autograd.grad(y, x, create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), (x, w))

        torch.testing.assert_close(penalty("cpp"), penalty("reference"))


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["8.0", "9.0+PTX"], (8, 0), True),
        (["8.0", "9.0+PTX"], (8, 9), True),  # machine code runs on its generation
        (["8.0", "9.0+PTX"], (12, 0), True),  # PTX runs on later GPUs
        (["8.0", "9.0"], (12, 0), False),
        (["8.6"], (8, 0), False),
        (["8.0", "9.0+PTX"], (7, 5), False),
        (["9.0a"], (9, 0), True),
        (["9.0a"], (10, 0), False),
        (["10.0a+PTX"], (10, 3), False),
        ([], (9, 0), False),
    ],
)
def test_which_gpus_have_a_kernel(architectures, capability, expected):
    assert has_code(tuple(architectures), capability) is expected


X = torch.zeros(2, 3, 4)
ON_META = torch.ones(2, 3, device="meta")


class TestBadInput:
    @pytest.mark.parametrize(
        ("x", "options", "error", "message"),
        [
            (torch.zeros(3, 4), {}, ValueError, r"x must be \[batch, length, D\] .*got shape \[3, 4\]"),
            (X.long(), {}, TypeError, "x must be float32, .* got torch.int64"),
            ([[1.0]], {}, TypeError, "x must be a tensor, got list"),
            (X, {"lengths": [1, 4]}, ValueError, r"lengths\[1\] = 4, expected 0 to 3"),
            (X, {"lengths": [-1, 4]}, ValueError, r"lengths\[0\] = -1, expected 0 to 3"),
            (X, {"lengths": [1]}, ValueError, r"lengths must have shape \[2\].* got \[1\]"),
            (X, {"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers, got torch.float32"),
            (X, {"lengths": torch.ones(2, 3).bool()}, TypeError, "pass a mask as mask="),
            (X, {"mask": torch.ones(2, 4)}, ValueError, r"mask must have shape \[2, 3\], got \[2, 4\]"),
            (X, {"mask": [[1, 1, 1]] * 2}, TypeError, "mask must be a tensor, got list"),
            (X, {"mask": ON_META}, ValueError, "mask is on meta, but the input is on cpu"),
            (X, {"lengths": [1, 2], "mask": torch.ones(2, 3)}, ValueError, "not both"),
            (X, {"backend": "triton"}, ValueError, "backend='triton' cannot run masked_pool on cpu"),
        ],
    )
    def test_padded(self, x, options, error, message):
        with pytest.raises(error, match=message):
            masked_pool(x, **options)

    def rows(self, start=(0, 8), step=(0, 4), lengths=(2, 1), max_length=2):
        return Rows(torch.tensor(start), torch.tensor(step), torch.tensor(lengths), max_length)

    def test_rows(self):
        x = torch.zeros(3, 4)
        assert masked_pool(x, rows=self.rows()).shape == (2, 8)
        for wrong, error, message in [
            (lambda: masked_pool(torch.zeros(1, 3, 4), rows=self.rows()), ValueError, r"x must be \[N, D\]"),
            (lambda: masked_pool(x, [2, 1], rows=self.rows()), ValueError, "pass rows or lengths, not both"),
            (lambda: masked_pool(x[None], self.rows()), TypeError, "pass them as rows="),
            (lambda: masked_pool(x, rows=(0, 8)), TypeError, "rows must be esim_fast.Rows, got tuple"),
            (lambda: masked_pool(x, rows=self.rows(lengths=(2, 2))), ValueError, "element 12 of an input with 3 rows"),
            (lambda: masked_pool(x, rows=self.rows(start=(-4, 8))), ValueError, "addresses element -4"),
            (lambda: masked_pool(x, rows=self.rows(start=(1, 8))), ValueError, "multiples of D = 4"),
            (lambda: masked_pool(x, rows=self.rows(start=(0, 4))), ValueError, "its own row, but two tokens share one"),
            (lambda: masked_pool(x, rows=self.rows(lengths=(3, 1))), ValueError, r"rows.lengths\[0\] = 3, expected 0"),
            (lambda: self.rows(lengths=(1, 1, 1)), ValueError, "one entry for each sequence, got 2 and 3"),
            (lambda: self.rows(max_length=3), ValueError, "max_length = 3 must lie between 0 and the 2 entries"),
            (lambda: self.rows(start=(0.0, 8.0)), TypeError, "Rows.start must be an int64 tensor, got torch.float32"),
            (lambda: self.rows(start=((0, 8),)), ValueError, r"one dimension, got shape \[1, 2\]"),
        ]:
            with pytest.raises(error, match=message):
                wrong()
