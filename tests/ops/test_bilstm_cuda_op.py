"""The op and the model with the persistent CUDA kernels of the BiLSTM, compiled for the CPU."""

import copy
import math
import sys

import pytest
import torch
from torch import nn

from esim_fast import ESIM, pack_pairs
from esim_fast.ops import backends, bilstm, bilstm_backends, persistent
from tests.ops import test_bilstm
from tests.ops.bilstm_steps import DTYPES, Batch, rounded
from tests.ops.cuda_on_cpu import NAMESPACE
from tests.ops.numerics import assert_as_exact_as_eager

UNITS = [1, 7, 64, 77, 128, 200, 256, 300, 511, 512]


class Tf32Product(torch.autograd.Function):
    """``a @ b.t()``, with operands rounded to TF32 as in cuDNN's LSTMs, forward and backward."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return (rounded(a, "tf32") @ rounded(b, "tf32").t()).float()

    @staticmethod
    def backward(ctx, grad):
        a, b, grad = (rounded(x, "tf32") for x in (*ctx.saved_tensors, grad))
        return (grad @ b).float(), (grad.t() @ a).float()


def in_tf32(lstm, x, batch_sizes):
    """An LSTM step by step, because no CPU has TF32."""
    results = []
    for direction, (w_ih, w_hh, b_ih, b_hh) in enumerate(lstm.all_weights):
        gates = Tf32Product.apply(x, w_ih) + b_ih + b_hh
        steps = list(gates.split(batch_sizes.tolist()))
        h = c = x.new_zeros(0, lstm.hidden_size)
        states = [None] * len(steps)
        for t in reversed(range(len(steps))) if direction else range(len(steps)):
            size = len(steps[t])
            h, c = (torch.cat([old, old.new_zeros(max(size - len(old), 0), old.shape[1])])[:size] for old in (h, c))
            i, f, g, o = (steps[t] + Tf32Product.apply(h, w_hh)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            states[t] = h = o.sigmoid() * c.tanh()
        results.append(torch.cat(states))
    return torch.cat(results, 1)


@pytest.fixture
def _on_cpu(bilstm_cuda, monkeypatch):
    """The op may be asked for the CUDA kernels on the CPU."""
    runs_on = backends.runs_on
    for module in (backends, persistent, sys.modules["esim_fast.ops.bilstm"]):
        monkeypatch.setattr(module, "runs_on", lambda backend, device: backend == "cuda" or runs_on(backend, device))
    for name, operator in bilstm_cuda.operators().items():
        monkeypatch.setattr(torch.ops.esim_fast, name, operator)


@pytest.mark.usefixtures("_on_cpu")
class TestOp:
    @pytest.mark.parametrize("precision", DTYPES)
    def test_as_exact_as_torch(self, precision, monkeypatch):
        """Over layers of all sizes, the states and the gradients of the inputs and parameters."""
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", precision == "tf32")
        families, dtype = ([], [], []), DTYPES[precision]
        for units in UNITS:
            if units > 320 and dtype == torch.float32:
                continue
            case = lstm, x, batch_sizes, grad_y = test_bilstm.make([6, 4, 3, 3, 1], 20, units, seed=units)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                ours = test_bilstm.run(*case, "cuda")
            if precision == "tf32":
                y = in_tf32(lstm, x, batch_sizes)
                theirs = [y.detach(), *torch.autograd.grad(y, [x, *lstm.parameters()], grad_y)]
            else:
                in_dtype = copy.deepcopy(lstm).to(dtype), x.detach().to(dtype).requires_grad_()
                theirs = test_bilstm.run(*in_dtype, batch_sizes, grad_y, "reference")
            exact = test_bilstm.exactly(*case)
            for family, results in zip(families, (ours, theirs, exact), strict=True):
                family.append(results)
        for number in range(len(exact)):  # each kind of result by itself
            assert_as_exact_as_eager(*([results[number] for results in family] for family in families))

    def test_padding(self):
        lstm, x, batch_sizes, grad_y = test_bilstm.make([4, 4, 4], 5, 9)
        padding = torch.tensor([0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 1]).bool()
        results = []
        for backend in ("cuda", "cpp"):
            y = bilstm(lstm, x.masked_fill(padding[:, None], math.nan), batch_sizes, padding=padding, backend=backend)
            gradients = torch.autograd.grad(y[~padding], [*lstm.parameters()], grad_y[~padding])
            results.append([y[~padding].detach(), *gradients])
        torch.testing.assert_close(*results)

    def test_only_on_request(self):
        lstm, x, batch_sizes, _ = test_bilstm.make([4, 2], 5, 9)
        assert "cuda" in bilstm_backends(lstm, x, batch_sizes)
        assert bilstm_backends(lstm, x, batch_sizes)[0] == "cpp"

    @pytest.mark.parametrize(("units", "room"), [(321, 10**6), (9, 0)], ids=["too many units", "no room"])
    def test_where_it_cannot_run(self, bilstm_cuda, units, room):
        bilstm_cuda.set(multiprocessors=room)
        lstm, x, batch_sizes, _ = test_bilstm.make([4, 2], 5, units)
        assert "cuda" not in bilstm_backends(lstm, x, batch_sizes)
        with pytest.raises(ValueError, match="backend='cuda' cannot run bilstm on cpu"):
            bilstm(lstm, x, batch_sizes, backend="cuda")

    def test_gradients(self):
        """They are separate tensors, backward can be repeated, and second derivatives raise."""
        lstm, x, batch_sizes, grad_y = test_bilstm.make([3, 2], 4, 5)
        y = bilstm(lstm, x, batch_sizes, backend="cuda")
        gradients = torch.autograd.grad(y, [*lstm.parameters()], grad_y, retain_graph=True)
        before = [gradient.clone() for gradient in gradients]
        for gradient in gradients:
            gradient.mul_(2)
        assert all(torch.equal(after, 2 * old) for after, old in zip(gradients, before, strict=True))
        again = torch.autograd.grad(y, [*lstm.parameters()], grad_y, retain_graph=True)
        assert all(torch.equal(one, other) for one, other in zip(again, before, strict=True))
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            (gradient.square().sum() + y.sum()).backward()
        lstm.requires_grad_(False)
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            torch.func.jvp(lambda x: bilstm(lstm, x, batch_sizes, backend="cuda"), (x.detach(),), (x.detach(),))

    def test_esim_takes_the_same_steps(self, bilstm_cuda):
        tokens = torch.randint(2, 9, (2, 3, 5), generator=torch.Generator().manual_seed(0))
        pairs = pack_pairs(*tokens, [4, 1, 3], [2, 5, 0])
        labels = torch.tensor([0, 2, 1])
        histories = []
        for backend in ("reference", "cuda"):
            torch.manual_seed(0)
            net = ESIM(10, 12, 9, 3, bilstm_backend=backend).train()
            optimizer = torch.optim.AdamW(net.parameters(), 0.01)
            losses = []
            for step in range(3):
                torch.manual_seed(step)  # dropout
                loss = nn.functional.cross_entropy(net(pairs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            histories.append([*losses, *(parameter.detach() for parameter in net.parameters())])
        assert len(bilstm_cuda.launches()) == 3 * 4  # two layers, forward and backward
        torch.testing.assert_close(*histories, rtol=1e-4, atol=1e-5)


@pytest.fixture
def fakes(bilstm_cuda):
    """The operators for the CPU know the shapes of their results."""
    with torch.library._scoped_library(NAMESPACE, "FRAGMENT") as library:
        for name, fake in (("bilstm_cuda", persistent._fake), ("bilstm_cuda_backward", persistent._backward_fake)):
            torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        yield bilstm_cuda.operators()


def test_opcheck(fakes):
    batch = Batch.draw([3, 2, 2, 1], 9, "bf16")
    gates = batch.padded(batch.inputs)
    torch.library.opcheck(fakes["bilstm_cuda"].default, (gates, *batch.layer()))
    _, c, _ = fakes["bilstm_cuda"](gates, *batch.layer())
    given = batch.padded(batch.grad_y), c, gates, *batch.layer()
    torch.library.opcheck(fakes["bilstm_cuda_backward"].default, given)


@pytest.mark.usefixtures("_on_cpu", "fakes")
@pytest.mark.parametrize("training", [True, False])
def test_compiled_as_one_graph(training):
    lstm, x, batch_sizes, grad_y = test_bilstm.make([5, 3, 3], 6, 7)
    first_row = batch_sizes.cumsum(0) - batch_sizes

    def op(x):
        return bilstm(lstm, x, batch_sizes, first_row=first_row, backend="cuda")

    wanted = [op(x)]
    with torch._dynamo.config.patch(allow_rnn=True), torch.set_grad_enabled(training):
        results = [torch.compile(op, fullgraph=True, backend="aot_eager")(x)]
    if training:
        for y in (wanted, results):
            y += torch.autograd.grad(y[0], [x, *lstm.parameters()], grad_y)
    assert all(torch.equal(one, other) for one, other in zip(results, wanted, strict=True))
