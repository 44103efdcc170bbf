"""local_inference with autograd, autocast, torch.compile and torch.func, on empty input and on bad input."""

import pytest
import torch

from benchmarks.baselines import eager_local_inference
from esim_fast import ESIM, Rows
from esim_fast.ops import local_inference, local_inference_packed
from tests.ops.implementations import IMPLEMENTATIONS, KERNELS, as_list, case, operators
from tests.ops.layouts import packed_rows


@pytest.mark.parametrize(("backend", "device"), IMPLEMENTATIONS)
class TestNothing:
    @pytest.mark.parametrize(("lengths", "count"), [([0, 0], 0), ([], 3)], ids=["no rows", "no sentence"])
    def test_rows_of_no_sentence_are_zero_and_have_a_gradient(self, lengths, count, backend, device, poisoned):
        rows = Rows.concatenated(torch.tensor(lengths, dtype=torch.int64), 4).to(device)
        x = torch.randn(count, 4, device=device, requires_grad=True)
        m = local_inference_packed(x, rows, rows, backend=backend)
        m.sum().backward()
        assert torch.equal(m, m.new_zeros(count, 16))
        assert torch.equal(x.grad, torch.zeros_like(x))

    @pytest.mark.parametrize("other", [3, 70])
    def test_a_side_without_tokens(self, other, backend, device, poisoned):
        for la, lb in ((0, other), (other, 0), (0, 0)):
            a, b = (torch.randn(2, n, 4, device=device, requires_grad=True) for n in (la, lb))
            m_a, m_b = local_inference(a, b, backend=backend)
            assert m_a.shape == (2, la, 16)
            assert m_b.shape == (2, lb, 16)
            for x, m in ((a, m_a), (b, m_b)):
                assert torch.equal(m, torch.cat([x, 0 * x, x, 0 * x], 2))
            (m_a.sum() + m_b.sum()).backward()
            assert torch.equal(a.grad, torch.full_like(a, 2.0))

    @pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 70, 4), (2, 70, 0), (0, 0, 0)])
    def test_no_pairs_or_no_features(self, shape, backend, device):
        a = torch.randn(shape, device=device, requires_grad=True)
        m_a, m_b = local_inference(a, a, backend=backend)
        (m_a.sum() + m_b.sum()).backward()
        assert m_a.shape == m_b.shape == (*shape[:2], 4 * shape[2])
        assert a.grad.shape == shape


@pytest.mark.parametrize(("backend", "device"), KERNELS)
class TestIntegration:
    @pytest.mark.parametrize("longest", [9, 70])
    @pytest.mark.parametrize("layout", ["lengths", "mask", "one tensor"])
    def test_opcheck(self, backend, device, layout, longest):
        arguments = case(device, layout, longest)
        forward, backward = operators(backend, layout)
        torch.library.opcheck(forward, arguments)
        grad_m = [torch.randn_like(m) for m in as_list(forward(*arguments))]
        torch.library.opcheck(backward, (*grad_m, *arguments))

    @pytest.mark.parametrize(("longest", "dynamic"), [(9, True), (70, False)])
    def test_compile(self, backend, device, longest, dynamic):
        a, b = torch.randn(3, longest, 12, device=device), torch.randn(3, 7, 12, device=device)
        lengths = torch.tensor([3, longest, 0], device=device)

        def function(a, b, lengths):
            m_a, m_b = local_inference(a.sin(), b, lengths, backend=backend)
            return m_a.square().sum() + m_b.cos().sum()

        results = []
        for run in (function, torch.compile(function, fullgraph=True, dynamic=dynamic)):
            x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
            loss = run(x, y, lengths)
            results.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
        for eager, compiled in zip(*results, strict=True):
            torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("shared", ["lengths", "mask", "everything", "rows"])
    def test_compile_of_tensors_that_serve_both_sides(self, backend, device, shared):
        n = torch.tensor([3, 5], device=device)
        options = {
            "lengths": {"a_lengths": n, "b_lengths": n},
            "mask": dict.fromkeys(("a_mask", "b_mask"), torch.rand(2, 5, device=device) < 0.5),
            "everything": {},
        }
        if shared == "rows":
            rows, count = packed_rows([3, 5, 2, 4], 12)
            rows = rows.to(device)
            options["rows"] = {
                "a_rows": Rows(rows.start[:2], rows.step, rows.lengths[:2], 5, 8),
                "b_rows": Rows(rows.start[2:], rows.step, rows.lengths[2:], 4, 6),
            }
            a = b = torch.randn(count, 12, device=device)
        else:
            a, b = torch.randn(2, 5, 12, device=device), torch.randn(2, 5, 12, device=device)

        def function(a, b):
            b = a if shared in ("rows", "everything") else b
            m_a, m_b = local_inference(a, b, **options[shared], backend=backend)
            return m_a.square().sum() + m_b.sum()

        gradients = []
        # Problems with them occur while the graph is made, before any kernel is compiled.
        for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
            x = a.clone().requires_grad_()
            gradients.append(torch.autograd.grad(run(x, b), x)[0])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)

    def test_autocast_gives_autocasts_dtype(self, backend, device):
        a, b = torch.randn(2, 3, 8, device=device, requires_grad=True), torch.randn(2, 4, 8, device=device)
        with torch.autocast(device, torch.bfloat16):
            m_a, m_b = local_inference(a, b, backend=backend)
            kept, _ = local_inference(a.half(), b.half(), backend=backend)
        assert m_a.dtype == m_b.dtype == torch.bfloat16
        assert kept.dtype == torch.float16
        m_a.float().sum().backward()
        assert a.grad.dtype == torch.float32

    def test_forward_mode_raises(self, backend, device):
        a, b = torch.randn(2, 3, 8, device=device), torch.randn(2, 4, 8, device=device)
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            torch.func.jvp(lambda a: local_inference(a, b, backend=backend)[0], (a,), (torch.ones_like(a),))

    def test_torch_func(self, backend, device):
        a, b = torch.randn(2, 3, 4, device=device), torch.randn(2, 5, 4, device=device)

        def loss(a, backend):
            m_a, m_b = local_inference(a, b, [2, 3], backend=backend)
            return m_a.square().sum() + m_b.square().sum()

        gradient = torch.func.grad(loss)(a, backend)
        torch.testing.assert_close(gradient, torch.func.grad(loss)(a, "reference"), rtol=1e-4, atol=1e-4)
        both = torch.stack([a, 2 * a])
        together = torch.func.vmap(lambda a: local_inference(a, b, [2, 3], backend=backend)[1])(both)
        one_by_one = torch.stack([local_inference(a, b, [2, 3], backend=backend)[1] for a in both])
        torch.testing.assert_close(together, one_by_one)

    def test_second_derivative_raises(self, backend, device):
        a, b = torch.randn(2, 3, 4, device=device, requires_grad=True), torch.randn(2, 3, 4, device=device)
        m_a, _ = local_inference(a, b, backend=backend)
        (gradient,) = torch.autograd.grad(m_a.square().sum(), a, create_graph=True)
        with pytest.raises(RuntimeError, match="local_inference has no second derivative"):
            gradient.square().sum().backward()
        # A gradient penalty through another path must not be silently wrong.
        w = torch.randn(4, device=device, requires_grad=True)
        m_a, _ = local_inference(a * w, b, backend=backend)
        (gradient,) = torch.autograd.grad(m_a.sum() + (a**3).sum(), a, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(gradient.square().sum(), (a, w))

    def test_memory_saved_for_the_backward_pass(self, backend, device):
        """At SNLI's shapes, at most half of eager's: only the encoded sentences are saved."""
        count = 4 if (backend, device) == ("triton", "cpu") else 32
        lengths_p = torch.randint(5, 21, (count,))
        lengths_h = torch.randint(3, 13, (count,))
        p, h = (torch.randn(count, int(n.max()), 600, device=device) for n in (lengths_p, lengths_h))
        p_mask, h_mask = ((torch.arange(int(n.max())) < n[:, None]).to(device) for n in (lengths_p, lengths_h))

        def saved(function):
            storages = {}

            def pack(x):
                storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                kept = function(p.clone().requires_grad_(), h.clone().requires_grad_())
            del kept
            return sum(storages.values())

        ours = saved(lambda p, h: local_inference(p, h, a_mask=p_mask, b_mask=h_mask, backend=backend))
        eager = saved(lambda p, h: eager_local_inference(p, h, p_mask.long(), h_mask.long()))
        inputs = 4 * (p.numel() + h.numel())
        assert inputs <= ours <= 1.01 * inputs
        assert ours <= eager / 2

    def test_esim_takes_the_same_steps_as_with_the_reference(self, backend, device):
        """Three training steps with the kernels and three in plain PyTorch."""
        generator = torch.Generator().manual_seed(0)
        p, h = (torch.randint(2, 30, (4, n), generator=generator).to(device) for n in (7, 20))
        p[1, 3:], h[0, 15:], h[2, :] = 1, 1, 1
        labels = torch.tensor([0, 1, 2, 1], device=device)
        torch.manual_seed(1)
        start = ESIM(8, 6, 30, 3, device, dropout=0.0).state_dict()
        losses, weights = [], []
        for which in (backend, "reference"):
            net = ESIM(8, 6, 30, 3, device, dropout=0.0, backend=which)
            net.load_state_dict(start)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
            for _ in range(3):
                loss = torch.nn.functional.cross_entropy(net(p, h), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses.append(loss.item())
            weights.append([*net.state_dict().values()])
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)


X = torch.zeros(2, 3, 4)
ON_META = "backend='cpp' cannot run local_inference on meta .*; available here: 'reference'"
STRIDES = r"a must have contiguous values in its last dimension, got strides \[12, 1, 3\]"
IN_FP64 = "backend='triton' cannot run local_inference on cpu in torch.float64; available here: 'cpp', 'reference'"


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (X[:, 0], X, {}, ValueError, r"a must be \[batch, length, D\] .*shape \[2, 4\]"),
        (X, torch.zeros(2, 3, 5), {}, ValueError, "same width D, got 4 and 5"),
        (X, X[:1], {}, ValueError, "the same number of sentences, got 2 and 1"),
        (X, X.half(), {}, TypeError, "same dtype, got torch.float32 and"),
        (X, X.to("meta"), {}, ValueError, "a is on cpu, but b is on meta"),
        (X, X, {"a_lengths": [3, 4]}, ValueError, r"a_lengths\[1\] = 4"),
        (X, X, {"b_mask": torch.ones(3, 2)}, ValueError, "b_mask must have shape"),
        (X, X, {"backend": "cuda"}, ValueError, "backend='cuda' cannot run"),
        (X.to("meta"), X.to("meta"), {"backend": "cpp"}, ValueError, ON_META),
        (X.double(), X.double(), {"backend": "triton"}, ValueError, IN_FP64),
        (torch.zeros(2, 4, 3).mT, X, {}, ValueError, STRIDES),
    ],
)
def test_bad_input(a, b, options, error, message):
    with pytest.raises(error, match=message):
        local_inference(a, b, **options)


def test_bad_rows():
    rows, x = Rows.concatenated([2, 1], 4), torch.zeros(6, 4)
    with pytest.raises(ValueError, match="must not share rows of one tensor, but both address element 0"):
        local_inference_packed(x, rows, rows)
    with pytest.raises(TypeError, match=r"b_rows must be esim_fast\.Rows, got NoneType"):
        local_inference_packed(x, rows, None)
    wrong = Rows(rows.start, rows.step, rows.lengths, 2, tokens=4)
    with pytest.raises(ValueError, match=r"a_rows.tokens = 4, but the lengths sum to 3"):
        local_inference(x, x.clone(), a_rows=wrong, b_rows=rows)
    with pytest.raises(TypeError, match=r"Rows.tokens must be an int or None, got float"):
        Rows(rows.start, rows.step, rows.lengths, 2, tokens=3.0)
