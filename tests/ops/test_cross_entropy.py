"""Cross entropy and correct answers, against PyTorch's in fp64."""

import math
import re

import pytest
import torch
from torch.nn import functional

from esim_fast.ops import cross_entropy
from tests.ops.implementations import IMPLEMENTATIONS
from tests.ops.numerics import DTYPES

BACKENDS = [case for case in IMPLEMENTATIONS if case.values[0] != "cpp"]
NO_LABEL = -100


def exact(logits, labels, smoothing, weights):
    """The loss, the correct answers and the gradient of 0.7 times the loss, in fp64."""
    logits = logits.detach().double().requires_grad_()
    weights = None if weights is None else weights.double()
    loss = functional.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
    return loss.detach(), (logits.argmax(1) == labels).sum(), torch.autograd.grad(0.7 * loss, logits)[0]


def run(logits, labels, smoothing, weights, backend):
    logits = logits.detach().requires_grad_()
    loss, correct = cross_entropy(logits, labels, smoothing, weights, backend=backend)
    return loss.detach().cpu(), correct.cpu(), torch.autograd.grad(0.7 * loss, logits)[0].cpu()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("pairs", "classes"), [(32, 3), (300, 3), (1, 1), (0, 4), (5, 130), (3, 4096), (700, 2)])
@pytest.mark.usefixtures("poisoned")
def test_equals_torchs(pairs, classes, dtype, backend, device):
    torch.manual_seed(pairs)
    logits, labels = torch.randn(pairs, classes).mul(4).to(dtype), torch.randint(classes, (pairs,))
    labels[torch.rand(pairs) < 0.3] = NO_LABEL
    weights = torch.rand(classes)
    weights[0] = 0
    for smoothing, given in ((0.0, None), (0.1, None), (0.3, weights), (1.0, None)):
        on_device = None if given is None else given.to(device)
        found = run(logits.to(device), labels.to(device), smoothing, on_device, backend)
        loss, correct, grad = exact(logits, labels, smoothing, given)
        assert (found[0].dtype, found[1].dtype, found[2].dtype) == (torch.float32, torch.int64, dtype)
        torch.testing.assert_close(found[0].double(), loss, rtol=1e-5, atol=1e-5)
        assert found[1] == correct
        # The interpreter rounds bf16 down.
        torch.testing.assert_close(found[2].double(), grad, rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=1e-6)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_pairs_without_a_label_have_no_part(backend, device):
    logits, labels = torch.randn(300, 3, device=device), torch.randint(3, (300,), device=device)
    wanted = run(logits[:200], labels[:200], 0.1, None, backend)
    logits[200:], labels[200:] = torch.nan, NO_LABEL
    loss, correct, grad = run(logits, labels, 0.1, None, backend)
    torch.testing.assert_close(loss, wanted[0])
    assert correct == wanted[1]
    torch.testing.assert_close(grad[:200], wanted[2])
    assert backend == "reference" or not grad[200:].any()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_extreme_logits(backend, device):
    inf = torch.inf
    # The label wins by far, ties with an earlier one, ties with a later one while another is impossible.
    logits = torch.tensor([[0, 1, 1e30], [1, 5, 5], [-inf, 0, 0]], device=device)
    loss, correct, grad = run(logits, torch.tensor([2, 2, 1], device=device), 0.0, None, backend)
    assert loss == pytest.approx(math.log(2 + math.exp(-4)) + math.log(2))
    assert correct == 2
    assert grad.isfinite().all()


@pytest.mark.interpreter
class TestOperator:
    def test_opcheck(self):
        given = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, -100]), torch.rand(5), 0.1
        torch.library.opcheck(torch.ops.esim_fast.cross_entropy_triton.default, given)
        torch.library.opcheck(torch.ops.esim_fast.cross_entropy_triton_backward.default, (torch.tensor(0.5), *given))

    def test_second_derivative(self):
        logits = torch.randn(3, 4, requires_grad=True)
        loss, _ = cross_entropy(logits, torch.tensor([0, 1, 2]), backend="triton")
        (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad.square().sum().backward()

    def test_labels_outside_are_bounded(self):
        logits = torch.randn(4, 3)
        found = run(logits, torch.tensor([0, 3, -1, 2**40]), 0.0, None, "triton")
        wanted = run(logits, torch.tensor([0, *[NO_LABEL] * 3]), 0.0, None, "triton")
        assert all(torch.equal(*both) for both in zip(found, wanted, strict=True))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"logits": torch.randn(3, 4).t()}, "contiguous"),
            ({"logits": torch.randn(4, 0)}, "at least 1"),
            ({"labels": torch.zeros(3).long()}, "int64 [4]"),
            ({"labels": torch.zeros(4)}, "int64 [4]"),
            ({"class_weights": torch.ones(2)}, "contiguous [3]"),
            ({"grad_loss": torch.ones(2)}, "float32 scalar"),
        ],
    )
    def test_direct_calls(self, changes, message):
        given = {"grad_loss": torch.ones(()), "logits": torch.randn(4, 3), "labels": torch.zeros(4).long()}
        given |= {"class_weights": None, "smoothing": 0.0}
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.esim_fast.cross_entropy_triton_backward(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a float32, float16, bfloat16 or float64 tensor, got list"),
        ({"labels": torch.zeros(3)}, TypeError, "labels must be int64, got torch.float32"),
        ({"labels": torch.zeros(4).long()}, ValueError, "[B, at least 1] and [B], got [3, 2] and [4]"),
        ({"logits": torch.randn(3, 0)}, ValueError, "got [3, 0] and [3]"),
        ({"smoothing": 1.5}, ValueError, "smoothing must lie between 0 and 1, got 1.5"),
        ({"class_weights": torch.ones(3)}, ValueError, "class_weights must be [2], got shape [3]"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' cannot run cross_entropy on cpu"),
    ],
)
def test_wrong_input(changes, error, message):
    given = {"logits": torch.randn(3, 2), "labels": torch.zeros(3).long()}
    with pytest.raises(error, match=re.escape(message)):
        cross_entropy(**{**given, **changes})
