"""Tensors of more than 2**31 elements, with values where a 32-bit index would wrap and zeros where it would lead."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esim_fast import Rows
from esim_fast.ops import local_inference, masked_pool
from tests.ops.large_tensors import FAR, reserve, spread

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's way to reserve addresses")]
OPERATORS = torch.ops.esim_fast
INTERPRETED = pytest.param("triton", marks=pytest.mark.interpreter, id="triton-interpreted")
HALF = torch.bfloat16


def needs_memory(gib):
    bounds = [int(re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024]
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (most := (group / "memory.max").read_text().strip()) != "max":
        bounds.append(int(most) - int((group / "memory.current").read_text()))
    free = min(bounds) / 2**30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free memory, {free:.1f} are")


def with_gradients(run, *tensors):
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    results = run(*inputs)
    results = [results] if isinstance(results, Tensor) else list(results)
    grads = [torch.linspace(-1, 1, result.numel()).view(result.shape).to(result.dtype) for result in results]
    return [*results, *torch.autograd.grad(results, inputs, grads)]


def assert_same(ours, wanted):
    assert len(ours) == len(wanted)
    for mine, other in zip(ours, wanted, strict=True):
        assert other.any()
        assert torch.equal(mine, other)


@pytest.mark.parametrize("along", [0, 1], ids=["batch", "time"])
class TestStrides:
    @pytest.mark.parametrize("backend", ["cpp", "reference"])
    def test_masked_pool(self, backend, along):
        x, mask = torch.randn(3, 4, 16).to(HALF), torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]]).bool()

        def run(x, mask=None, lengths=None):
            return with_gradients(lambda x: masked_pool(x, lengths, mask=mask, backend=backend), x)

        assert_same(run(spread(x, along), lengths=[4, 2, 4]), run(x, lengths=[4, 2, 4]))
        assert_same(run(x, spread(mask, along)), run(x, mask))

    @pytest.mark.parametrize("longest", [4, 70])
    @pytest.mark.parametrize("backend", ["cpp", "reference", INTERPRETED])
    def test_local_inference(self, backend, longest, along):
        a, b = torch.randn(2, longest, 16).to(HALF), torch.randn(2, 3, 16).to(HALF)

        def run(a, b):
            return local_inference(a, b, [2, longest], [3, 2], backend=backend)

        assert_same(with_gradients(run, spread(a, along), spread(b, along)), with_gradients(run, a, b))


class TestRows:
    """Sentences at both ends of a tensor, with nothing in between."""

    @pytest.mark.parametrize("backend", ["cpp", "reference"])
    def test_masked_pool(self, backend):
        width, sentences = 16, torch.randn(5, 16).to(HALF)
        x = reserve((2 * FAR // width + 8, width))
        first = FAR // width + 4
        x[first : first + 3], x[:2] = sentences[:3], sentences[3:]
        far = Rows(torch.tensor([first * width, 0]), torch.arange(3) * width, torch.tensor([3, 2]), 3)
        near = Rows.concatenated([3, 2], width)
        assert_same([masked_pool(x, rows=far, backend=backend)], [masked_pool(sentences, rows=near, backend=backend)])

    @pytest.mark.parametrize("backend", ["cpp", INTERPRETED])
    def test_local_inference(self, backend):
        """Only the results, four times as wide as the rows, exceed 2**31 elements."""
        width, sentences, grad_m = 16, torch.randn(5, 16).to(HALF), torch.randn(5, 64).to(HALF)
        operators = [f"local_inference_packed{'_triton' * (backend == 'triton')}{end}" for end in ("", "_backward")]
        forward, backward = (getattr(OPERATORS, name) for name in operators)
        count, far = FAR // 4 // width + 8, slice(-3, None)
        try:
            torch.empty(4 * count * width, dtype=HALF)
        except RuntimeError:
            pytest.skip("the system gives no 4 GiB of memory that is not written")
        x, all_grad_m = reserve((count, width)), reserve((count, 4 * width))
        x[far], x[:2], all_grad_m[far], all_grad_m[:2] = sentences[:3], sentences[3:], grad_m[:3], grad_m[3:]

        def addresses(*starts):
            sides = [(torch.tensor([at * width]), torch.arange(3) * width) for at in starts]
            lengths = torch.tensor([3]), torch.tensor([2])
            return *sides[0], lengths[0], None, *sides[1], lengths[1], None, 3, 2, True

        near = addresses(0, 3)
        wanted = [forward(sentences, *near), backward(grad_m, sentences, *near)]
        ours = forward(x, *addresses(count - 3, 0))
        ours_grad = backward(all_grad_m, x, *addresses(count - 3, 0))
        assert_same([torch.cat([result[far], result[:2]]) for result in (ours, ours_grad)], wanted)

    def test_masks(self):
        """A mask of more than 2**31 positions, in which only the last sentence has words."""
        pairs, longest, width = 2**10 + 1, 2**21, 8
        x, mask, lengths = torch.randn(4, width), reserve((pairs, longest), torch.bool), torch.zeros(pairs).long()
        mask[-1, :4], lengths[-1] = torch.tensor([True, False, True, True]), 4
        step = torch.arange(longest) * width
        rows = Rows(torch.zeros(pairs).long(), step, lengths, longest)
        few = Rows(torch.zeros(1).long(), step[:4], lengths[-1:], 4)
        pooled = masked_pool(x, rows=rows, mask=mask)[-1:]
        ours = local_inference(x, x.clone(), a_rows=rows, b_rows=rows, a_mask=mask, b_mask=mask)
        wanted = local_inference(x, x.clone(), a_rows=few, b_rows=few, a_mask=mask[-1:, :4], b_mask=mask[-1:, :4])
        assert_same([pooled, *ours], [masked_pool(x, rows=few, mask=mask[-1:, :4]), *wanted])


@pytest.mark.interpreter
class TestTritonPrograms:
    """Runs only the programs of the last pair, in a batch whose tensors all have more than 2**31 elements."""

    @staticmethod
    def run_last_pair(launches, pairs):
        from triton.runtime.interpreter import interpreter_builder as builder

        for planned in launches:
            of_a_pair = planned.programs // pairs
            first = planned.programs - of_a_pair
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(builder, "set_grid_dim", lambda *_: None)
                patch.setattr(builder, "grid_dim", (planned.programs, 1, 1), raising=False)
                at = lambda x, y, z, first=first: vars(builder).update(grid_idx=(first + x, y, z))  # noqa: E731
                patch.setattr(builder, "set_grid_idx", at)
                planned.kernel[(of_a_pair,)](*planned.arguments, **planned.constants, **planned.options)

    # Tensors stay below 16 GiB, because the system rejects larger ones than its memory even if unwritten.
    @pytest.mark.parametrize(("pairs", "length", "width"), [(2**25 + 1, 64, 1), (3 * 2**17 + 1, 70, 80)], ids=str)
    def test_last_pair(self, pairs, length, width):
        from esim_fast.ops.triton import local_inference as kernels

        sentences, masks = torch.randn(2, length, width).to(HALF), torch.rand(2, length) < 0.7
        grads = torch.randn(2, length, 4 * width).to(HALF)

        def run(pairs):
            a, b, m_a, m_b, grad_m_a, grad_m_b, grad_a, grad_b = (
                reserve((pairs, length, times * width)) for times in (1, 1, 4, 4, 4, 4, 1, 1)
            )
            a_mask, b_mask = reserve((pairs, length), torch.bool), reserve((pairs, length), torch.bool)
            a[-1], b[-1] = sentences
            grad_m_a[-1], grad_m_b[-1] = grads
            a_mask[-1], b_mask[-1] = masks
            addresses = (None, None, None, a_mask, None, None, None, b_mask, length, length, False)
            sides = kernels.sides_of(a, b, addresses)
            for plan, tensors in (
                (kernels.plan_forward, (m_a, m_b)),
                (kernels.plan_backward, (grad_m_a, grad_m_b, grad_a, grad_b)),
            ):
                try:
                    launches = plan(*sides, *tensors)
                except RuntimeError:
                    pytest.skip("the system gives no 45 GiB of memory that is not written")
                self.run_last_pair(launches, pairs)
            return [tensor[-1].clone() for tensor in (m_a, m_b, grad_a, grad_b)]

        assert_same(run(pairs), run(1))


def test_a_gradient_that_is_written_as_a_whole():
    """It takes 4 GiB of memory."""
    needs_memory(6)
    rows, width = 2**22 + 8, 256
    argmax = torch.full((2, width), rows - 1, dtype=torch.int32)
    grad_v = torch.randn(2, 2 * width).to(HALF)
    lengths, count = torch.tensor([0, rows]), torch.tensor([0, rows], dtype=torch.int32)
    grad_x = OPERATORS.masked_pool_backward(grad_v, argmax, count, None, None, lengths, None, rows)
    average, maximum = grad_v[1].float().split(width)
    share = average / rows
    assert_same([grad_x[1, -1], grad_x[1, -2]], [(share + maximum).to(HALF), share.to(HALF)])
    assert not grad_x[0, -1].any()
