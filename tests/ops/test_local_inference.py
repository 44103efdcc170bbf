"""local_inference follows the paper's equations for each sentence, and nothing outside a sentence affects it.

The reference is compared with the equations in fp64, and the kernels in each dtype within the bounds of numerics.py.
"""

import functools
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.baselines import eager_local_inference
from esim_fast import Rows
from esim_fast.ops import local_inference, local_inference_packed
from tests.ops.implementations import IMPLEMENTATIONS, KERNELS, as_list, case, operators
from tests.ops.layouts import LAYOUTS, packed_rows
from tests.ops.numerics import DTYPES, assert_as_exact_as_eager, error_norm
from tests.ops.pairs import Pairs
from tests.processes import output_of


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@settings(max_examples=100)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**20),
    score=st.sampled_from([1e-3, 1.0, 1e3, 1e4]),
    layout=st.sampled_from([*LAYOUTS, "one tensor"]),
)
def test_fp64_equals_the_equations(backend, lengths, width, seed, score, layout):
    pairs = Pairs.draw(lengths, width, seed, score)
    for got, expected in zip(pairs.through_the_op(layout, "cpu", backend, seed), pairs.expected(), strict=True):
        for ours, exact in zip(got, expected, strict=True):
            # The softmax turns a rounding error of a large score into a relative error of a weight.
            scale = max(1.0, score, score**2 / 1000)
            torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize(("backend", "device"), [IMPLEMENTATIONS[0], *KERNELS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_cases(dtype, backend, device, poisoned):
    ours, eager, exact = [], [], []
    product = torch.finfo(torch.float32).eps
    # A GPU compiles for each width and tile.
    widths = [1, 7, 16, 30, 64, 72, 130] if device == "cpu" else [7, 64, 130]

    # The interpreter is a hundred times slower than C++, and on a GPU each new kernel takes a second to compile.
    many = 150 if dtype == torch.float32 and backend == "cpp" else 60
    examples = {"triton-cpu": 24, "triton-cuda": 30}.get(f"{backend}-{device}", many)

    @settings(max_examples=examples)
    @given(
        # Tiles are 16, 32 and 64 tokens wide; longer sentences take many tiles.
        longest=st.sampled_from([(5, 9), (16, 17), (33, 20), (64, 3), (70, 12), (9, 100)]),
        shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=2),
        width=st.sampled_from(widths),
        seed=st.integers(0, 2**20),
        score=st.sampled_from([1e-2, 1.0, 30.0, 1e4]),
        layout=st.sampled_from([*LAYOUTS, "one tensor"]),
        elsewhere=st.sampled_from([math.nan, math.inf]),
    )
    def one(longest, shares, width, seed, score, layout, elsewhere):
        lengths = [tuple(round(share * n) for share, n in zip(pair, longest, strict=True)) for pair in shares]
        pairs = Pairs.draw(lengths, width, seed, score, dtype)
        everything = pairs.expected(dtype), pairs.expected(), pairs.bounds(product)
        got = pairs.through_the_op(layout, device, backend, seed, elsewhere)
        for results, *expected in zip(got, *everything, strict=True):
            for result, in_dtype, value, bound in zip(results, *expected, strict=True):
                assert result.dtype == dtype
                assert ((result.double() - value).abs() <= bound).all()
                if score > 100:  # then one case's rounding outweighs all others, and only the bounds apply
                    continue
                # Every case has the same weight, whatever the size of its values and its scores' rounding.
                size = max(float(bound.norm()), 1e-30)
                ours.append(result.double() / size)
                eager.append(in_dtype.double() / size)
                exact.append(value / size)

    one()
    assert_as_exact_as_eager(ours, eager, exact)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
class TestKernels:
    """The kernels against the equations in fp64."""

    @pytest.mark.parametrize(
        ("lengths", "width", "layout"),
        [
            ([(14, 8), (3, 12), (16, 16)], 600, "one tensor"),  # SNLI's width
            ([(35, 19), (20, 4)], 201, "mask"),
            ([(5, 6)], 2048, "mask"),
            ([(82, 62), (60, 3)], 72, "one tensor"),  # SNLI's longest
            ([(205, 1), (40, 64)], 24, "mask"),
            # 4 tiles by 2 blocks of features, and 8 by 4 in the backward pass.
            ([(113, 3)], 400, "one tensor"),
            ([(300, 7), (0, 4), (3, 0)], 5, "one tensor"),
        ],
        ids=str,
    )
    def test_sizes(self, lengths, width, layout, backend, device, poisoned):
        pairs = Pairs.draw(lengths, width, dtype=torch.float32)
        # The interpreter needs seconds for each.
        expected, allowed = pairs.expected(), pairs.bounds(torch.finfo(torch.float32).eps)
        for given_as in [layout] if (backend, device) == ("triton", "cpu") else ["mask", "one tensor"]:
            got = pairs.through_the_op(given_as, device, backend)
            for results, values, bounds in zip(got, expected, allowed, strict=True):
                for result, value, bound in zip(results, values, bounds, strict=True):
                    assert ((result.double() - value).abs() <= bound).all()
                    assert error_norm([result], [value]) <= 1e-5 * float(value.norm())

    def test_the_longest_sentences(self, backend, device):
        """The online softmax goes through all tiles of 4,096 tokens (fewer in the interpreter)."""
        longest = 512 if (backend, device) == ("triton", "cpu") else 4096
        pairs = Pairs.draw([(longest, 3)], 3, dtype=torch.float32)
        for results, values in zip(pairs.through_the_op("lengths", device, backend), pairs.expected(), strict=True):
            for result, value in zip(results, values, strict=True):
                torch.testing.assert_close(result.double(), value, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("lengths", [[(9, 4), (0, 3), (16, 0)], [(70, 5), (3, 66)]], ids=str)
    def test_same_bits_in_every_layout_and_every_time(self, lengths, backend, device):
        pairs = Pairs.draw(lengths, 12, dtype=torch.float32)
        first = pairs.through_the_op("lengths", device, backend)
        for layout in ("lengths", "concatenated", "packed", "one tensor"):
            for once, again in zip(first, pairs.through_the_op(layout, device, backend), strict=True):
                assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),  # time-major
            lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],  # a slice of wider rows
            lambda x: torch.cat([x, x], 2)[:, :, 3 : x.shape[2] + 3],  # not aligned to 16 bytes
            lambda x: torch.cat([x, x[:, :, :1]], 2)[:, :, : x.shape[2]],  # rows that are not aligned to 16 bytes
            lambda x: torch.cat([x, x], 1)[:, ::2][:, : x.shape[1] // 2],  # every other token
            lambda x: x[:1].expand(3, -1, -1),  # one sentence, three times
        ],
    )
    def test_strides(self, view, backend, device):
        a, b = view(torch.randn(3, 10, 24, device=device)), view(torch.randn(3, 6, 24, device=device))
        grad_m = [torch.randn(len(x), x.shape[1], 96, device=device) for x in (a, b)]
        results = []
        for x, y in ((a, b), (a.contiguous(), b.contiguous())):
            x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
            m = local_inference(x, y, [3, 0, 5], [2, 3, 0], backend=backend)
            # Gradients with other strides are used without a copy.
            apart = [torch.stack([g, g], 3)[..., 0] for g in grad_m]
            results.append([*m, *torch.autograd.grad(m, (x, y), apart)])
        assert all(torch.equal(ours, contiguous) for ours, contiguous in zip(*results, strict=True))

    @pytest.mark.parametrize("lengths", [([5, 3], [4, 16]), ([70, 3], [5, 66])], ids=["one tile", "many tiles"])
    def test_right_padding(self, lengths, backend, device, poisoned):
        """Lengths on the CPU allow a small tile, however wide the padding is."""
        a, b = (torch.randn(2, n, 8, device=device) for n in (150, 81))
        counts = [torch.arange(x.shape[1]) < torch.tensor(n)[:, None] for x, n in zip((a, b), lengths, strict=True)]
        results = []
        for which in (backend, "reference"):
            x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
            m = local_inference(x, y, *lengths, backend=which)
            (m[0].square().sum() + m[1].square().sum()).backward()
            results.append([*m, x.grad, y.grad])
        for ours, expected, there in zip(*results, counts * 2, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
            assert not ours[~there.to(device)].any()

    @pytest.mark.parametrize("length", [20, 70])
    def test_scores_that_overflow_are_seen(self, length, backend, device):
        """All are minus infinity, and their softmax is NaN and not an alignment with nothing."""
        a, b = (torch.full((1, length, 1), value, device=device).requires_grad_() for value in (-1e30, 1e30))
        m = local_inference(a, b, backend=backend)
        assert all(side[..., 1].isnan().all() for side in m)
        gradients = torch.autograd.grad(m, (a, b), [torch.ones_like(side) for side in m])
        assert all(gradient.isnan().all() for gradient in gradients)

    def test_nan_and_infinity_stay_in_their_pair(self, backend, device):
        a, b = (torch.randn(3, 5, 8, device=device) for _ in range(2))
        a[1, 2, 0], b[2, 0, 3] = math.nan, math.inf
        got = [local_inference(a, b, [5, 4, 3], [5, 3, 4], backend=which) for which in (backend, "reference")]
        for ours, expected in zip(*got, strict=True):
            torch.testing.assert_close(ours, expected, equal_nan=True)
            assert ours[0].isfinite().all()
        assert not got[0][0][1, 4:].any()  # nor its padding

    @pytest.mark.parametrize("length", [10, 70])
    def test_one_of_two_results(self, length, backend, device):
        """The other result's gradient is None."""
        a, b = (torch.randn(2, length, 8, device=device) for _ in range(2))
        for side in (0, 1):
            gradients = []
            for which in (backend, "reference"):
                x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
                local_inference(x, y, [4, length], backend=which)[side].square().sum().backward()
                gradients.append((x.grad, y.grad))
            for ours, expected in zip(*gradients, strict=True):
                largest = float(expected.abs().max())
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.interpreter
def test_many_tiles_take_memory_for_the_longest_sentence_not_for_padding():
    from esim_fast.ops.triton import local_inference as kernels

    a, b = (torch.empty(32, 2048, 8, device="meta") for _ in range(2))
    sides = kernels.sides_of(a, b, [None] * 8 + [70, 70, False])
    launches = kernels.plan_backward(*sides, *(torch.empty(32, 2048, 32, device="meta") for _ in range(2)), a, b)
    arguments = {id(argument): argument for planned in launches for argument in planned.arguments}.values()
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor) and argument.dim() == 3]
    matrices = [tensor for tensor in tensors if tensor.shape[2] not in (8, 32)]
    assert len(matrices) == 6
    assert all(matrix.shape == (32, 70, 80) for matrix in matrices)


# Prints errors relative to their bounds. A separate program, because the processor is detected once per process.
ON_ONE_PROCESSOR = """
import torch
from tests.ops.pairs import Pairs
eps = torch.finfo(torch.float32).eps
worst = 0.0
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for width in (3, 30, 72):
        pairs = Pairs.draw([(14, 8), (3, 21), (7, 0)], width, dtype=dtype)
        everything = zip(pairs.through_the_op("mask", "cpu", "cpp"), pairs.expected(), pairs.bounds(eps))
        for results, values, bounds in everything:
            for result, value, bound in zip(results, values, bounds):
                if len(result):
                    worst = max(worst, float(((result.double() - value).abs() / bound).max()))
print(worst)
"""


NO_ROWS = dict.fromkeys(["a_start", "a_step", "b_start", "b_step"])


class TestCpp:
    """Properties of the CPU kernels only."""

    @pytest.mark.parametrize("capability", ["default", "avx2"])
    def test_other_processors(self, capability):
        assert 0 < float(output_of(ON_ONE_PROCESSOR, ATEN_CPU_CAPABILITY=capability)) <= 1

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_every_number_of_16_bits(self, dtype):
        """Without a hypothesis, premises do not change, and two gradients are added and rounded once."""
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1024, 1, 64)
        x.requires_grad_()
        m, _ = local_inference(x, x.new_zeros(1024, 0, 64), backend="cpp")
        other = x.detach().flatten()[torch.randperm(2**16)].view_as(x)
        grad_m = torch.cat([x.detach(), 0 * x.detach(), other, torch.zeros_like(x)], 2)
        (grad_x,) = torch.autograd.grad(m, x, grad_m)
        for got, expected in ((m[..., :64], x), (grad_x, (x.float() + other.float()).to(dtype))):
            assert ((got == expected) | (got.isnan() & expected.isnan())).all()

    @pytest.mark.parametrize("backward", [False, True])
    @pytest.mark.parametrize(
        ("layout", "change", "message"),
        [
            ("lengths", {"a_lengths": [3, 10, 0]}, r"lengths\[1\] = 10, expected 0 to 9"),
            ("lengths", {"b_lengths": [3, -1, 0]}, r"lengths\[1\] = -1, expected 0 to 7"),
            ("lengths", {"a_lengths": [3, 9]}, "one entry for each of the 3 sequences"),
            ("lengths", {"a_step": [0, 0, 0]}, "start and step must be given together"),
            ("lengths", {"b": torch.zeros(3, 7, 13)}, "same dtype, width and number"),
            ("lengths", {"b": torch.zeros(3, 7, 12).half()}, "same dtype, width and number"),
            ("lengths", {"b": torch.zeros(2, 7, 12), "b_lengths": [1, 2]}, "number of sentences"),
            ("lengths", {"a": torch.zeros(9, 12)}, "needs"),
            ("lengths", {"a_mask": torch.ones(3, 8, dtype=torch.bool)}, "mask must be"),
            ("one tensor", {"a_start": [0, 10**6, 0]}, r"start\[1\] \+ step\[0\] is outside x"),
            ("one tensor", {"b_start": [-12, 0, 0]}, r"start\[0\] \+ step\[0\] is outside x"),
            ("one tensor", {"b_step": [2**62] * 9, "b_start": [2**62] * 3}, "is outside x"),
            ("one tensor", {"a_longest": 10}, "longest = 10 must lie between 0 and the 9 entries of step"),
            ("one tensor", {"a_longest": -1}, "longest = -1 must lie between 0 and the 9 entries of step"),
            ("one tensor", {"a_longest": 2}, "expected 0 to 2"),
            ("one tensor", {"a_lengths": None}, "needs lengths"),
            ("one tensor", {"x": torch.zeros(3, 9, 12), **NO_ROWS}, "start and step must be given for both sides"),
            ("one tensor", {"b_step": [[0], [1]]}, "step must be"),
        ],
    )
    def test_direct_calls_are_checked(self, layout, change, message, backward):
        arguments, (run, run_backward) = case("cpu", layout), operators("cpp", layout)
        names = ["x"] if layout == "one tensor" else ["a", "b"]
        names += [f"{side}_{part}" for side in "ab" for part in ("start", "step", "lengths", "mask")]
        names += ["a_longest", "b_longest", "every_row"]
        grad_m = as_list(run(*arguments))
        change = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in change.items()}
        given = {**dict(zip(names, arguments, strict=True)), **change}
        with pytest.raises(RuntimeError, match=message):
            run_backward(*grad_m, *given.values()) if backward else run(*given.values())

    @pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are not heeded here")
    def test_too_little_memory_for_the_buffers(self):
        """Rows of one value have buffers of a whole cache line each, many times the size of the result."""
        import resource

        premises, hypotheses = torch.ones(4, 500_000, 1), torch.ones(4, 1, 1)
        local_inference(premises[:, :1], hypotheses, backend="cpp")  # starting threads takes memory, too
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, most))
        try:
            with pytest.raises(MemoryError):
                local_inference(premises, hypotheses, backend="cpp")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (before, most))

    def test_gradients_of_a_wrong_shape_raise(self):
        arguments = case("cpu", "lengths")
        forward, backward = operators("cpp", "lengths")
        m_a, m_b = forward(*arguments)
        for wrong in ((m_a[:, :5], m_b), (m_a, m_b[..., :12]), (m_a.half(), m_b), (m_a, m_b[0])):
            with pytest.raises(RuntimeError, match="must have the shape and dtype of its results"):
                backward(*wrong, *arguments)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradcheck(backend):
    a, b = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    a_mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    masked = functools.partial(local_inference, b_lengths=[5, 2], a_mask=a_mask, backend=backend)
    assert torch.autograd.gradcheck(masked, (a.requires_grad_(), b.requires_grad_()))
    rows = Rows.concatenated(torch.tensor([2, 0, 1]), 4), Rows.concatenated(torch.tensor([1, 3, 0]), 4)
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    of_rows = functools.partial(local_inference, a_rows=rows[0], b_rows=rows[1], backend=backend)
    assert torch.autograd.gradcheck(of_rows, (a.requires_grad_(), b.requires_grad_()))


def test_equals_the_eager_notebook_at_ordinary_scores():
    a, b = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    a_mask, b_mask = torch.arange(7) < torch.tensor([[7], [2], [4]]), torch.arange(5) < torch.tensor([[5], [1], [3]])
    ours = local_inference(a, b, a_mask=a_mask, b_mask=b_mask)
    eager = eager_local_inference(a, b, a_mask, b_mask)
    for m, expected, mask in zip(ours, eager, (a_mask, b_mask), strict=True):
        torch.testing.assert_close(m[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_half_precision_is_rounded_once(dtype, backend):
    a, b = torch.randn(2, 6, 32).to(dtype), torch.randn(2, 4, 32).to(dtype)
    m_a, _ = local_inference(a, b, backend=backend)
    exact, _ = local_inference(a.double(), b.double())
    assert m_a.dtype == dtype
    torch.testing.assert_close(m_a.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("backward", [False, True])
def test_no_shape_depends_on_values(backward):
    """On meta tensors, everything that would synchronize with a GPU raises."""
    rows = [Rows.concatenated(torch.tensor(lengths), 4) for lengths in ([2, 0, 1], [1, 3, 0])]
    a_rows, b_rows = (Rows(*(t.to("meta") for t in (r.start, r.step, r.lengths)), r.max_length) for r in rows)
    x = torch.randn(7, 4, device="meta", requires_grad=backward)
    m_a, m_b = local_inference(x, torch.randn(7, 4, device="meta"), a_rows=a_rows, b_rows=b_rows)
    m = local_inference_packed(x, a_rows, b_rows)
    assert m_a.shape == m_b.shape == m.shape == (7, 16)
    if backward:
        (m_a.sum() + m.sum()).backward()


class TestWithoutDifference:
    @pytest.mark.parametrize("backend", ["cpp", "reference"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("width", [1, 7, 64, 600])  # results of 4 MB are streamed
    def test_the_other_parts_and_gradients_are_the_same(self, width, dtype, backend, poisoned):
        lengths_a, lengths_b = [3, 0, 20, 5] * 10, [2, 7, 31, 0] * 10
        rows, count = packed_rows(lengths_a + lengths_b, width)
        half = len(lengths_a)
        sides = [
            Rows(rows.start[these], rows.step, rows.lengths[these], 31) for these in (slice(half), slice(half, None))
        ]
        mask = torch.rand(half, 31) < 0.8  # rows outside it are zero
        x = torch.randn(count, width).to(dtype).requires_grad_()
        whole = local_inference_packed(x, *sides, a_mask=mask, backend=backend)
        m = local_inference_packed(x, *sides, a_mask=mask, difference=False, backend=backend)
        of_word, aligned, _, product = whole.chunk(4, 1)
        assert torch.equal(m, torch.cat([of_word, aligned, product], 1))
        grad_m = torch.randn_like(m)
        of_word, aligned, product = grad_m.chunk(3, 1)
        grad_whole = torch.cat([of_word, aligned, torch.zeros_like(aligned), product], 1)
        (expected,), (grad,) = torch.autograd.grad(whole, x, grad_whole), torch.autograd.grad(m, x, grad_m)
        assert torch.equal(grad, expected)

    def test_opcheck(self):
        arguments = *case("cpu", "one tensor"), False
        forward, backward = operators("cpp", "one tensor")
        torch.library.opcheck(forward, arguments)
        torch.library.opcheck(backward, (torch.randn_like(forward(*arguments)), *arguments))

    @pytest.mark.interpreter
    def test_triton_always_writes_it(self):
        rows = [Rows.concatenated([2, 0], 4), Rows(torch.tensor([8, 12]), torch.arange(3) * 4, torch.tensor([1, 3]), 3)]
        with pytest.raises(ValueError, match="backend='triton' cannot run local_inference"):
            local_inference_packed(torch.randn(6, 4), *rows, difference=False, backend="triton")
