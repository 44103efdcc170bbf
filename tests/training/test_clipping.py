"""Clipping inside the optimizer's kernel, against clipping before it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esim_fast.training.clipping import clipped_update


class Run:
    """Weights in two groups, an optimizer and a scaler."""

    def __init__(self, device, fused, scale):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=generator).to(device) for shape in [(70, 3), (5,), (1,), (4,)]]
        self.weights = [weight.requires_grad_() for weight in weights]  # the last one never has a gradient
        groups = [{"params": self.weights[:2], "weight_decay": 0.1}, {"params": self.weights[2:], "lr": 0.02}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01, fused=True)
        enabled = scale is not None
        self.scaler = torch.amp.GradScaler(device, init_scale=scale or 1.0, growth_interval=3, enabled=enabled)
        self.fused = fused

    def step(self, seed, size, spoiled=None):
        """A step with a random gradient of about this norm; the norm that was found."""
        generator = torch.Generator().manual_seed(seed)
        gradients = [torch.randn(weight.shape, generator=generator) * size / 15 for weight in self.weights[:3]]
        if spoiled is not None:
            gradients[seed % 3][-1] = spoiled
        for weight, gradient in zip(self.weights, gradients, strict=False):
            weight.grad = self.scaler.scale(gradient.to(weight.device))
        return clipped_update(self.optimizer, self.scaler, 1.0, self.fused)

    @property
    def values(self):
        """Everything that a step changes."""
        states = (self.optimizer.state[weight] for weight in self.weights)
        found = [*self.weights, *(value for state in states for value in state.values())]
        return [value.detach().double().flatten().cpu() for value in (*found, torch.tensor(self.scaler.get_scale()))]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.mark.parametrize("scale", [None, 2.0**16, 1000.0])
@pytest.mark.parametrize("size", [0.5, 30.0], ids=["below", "above"])
def test_it_takes_the_same_steps(device, scale, size):
    fused, before = (Run(device, fused, scale) for fused in (True, False))
    for seed in range(10):
        norm, wanted = (run.step(seed, size) for run in (fused, before))
        torch.testing.assert_close(norm, wanted, rtol=1e-6, atol=0)
        assert (norm > 1) == (size > 1)
        # Where nothing is multiplied, or by powers of two only, the bits are the same.
        exact = size < 1 and scale != 1000.0
        tolerances = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(fused.values, before.values, **tolerances)
    assert scale is None or fused.scaler.get_scale() == scale * 8  # it grew


@pytest.mark.parametrize("spoiled", [torch.inf, torch.nan])
def test_the_scaler_skips_steps_that_are_not_finite(device, spoiled):
    fused, before = (Run(device, fused, 64.0) for fused in (True, False))
    for run in (fused, before):
        run.step(0, 30.0)
    for seed in range(1, 4):
        weights, scale = fused.values[:-1], fused.scaler.get_scale()
        for run in (fused, before):
            assert not run.step(seed, 30.0, spoiled).isfinite()
        torch.testing.assert_close(fused.values[:-1], weights, rtol=0, atol=0)
        assert fused.scaler.get_scale() == scale / 2
    for run in (fused, before):
        run.step(9, 30.0)
    torch.testing.assert_close(fused.values, before.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spoiled", [torch.inf, torch.nan])
def test_without_a_scaler_nothing_is_hidden(device, spoiled):
    run = Run(device, True, None)
    assert not run.step(0, 0.5, spoiled).isfinite()
    assert run.weights[0].isnan().any()


@pytest.mark.parametrize("scale", [None, 2.0])
def test_gradients_are_read_twice(device, scale):
    """Once for the norm, once by the optimizer."""

    class Readers(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            given = {x.data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            if given & gradients:
                found.append(operator.overloadpacket.__name__)
            return operator(*args, **(kwargs or {}))

    run, found = Run(device, True, scale), []
    run.step(0, 30.0)
    gradients = {weight.grad.data_ptr() for weight in run.weights[:3]}
    with Readers():
        clipped_update(run.optimizer, run.scaler, 1.0, True)
    assert set(found) == {"_foreach_norm", "_fused_adamw_"}


def test_the_optimizer_is_left_as_it_was(device, monkeypatch):
    run = Run(device, True, 2.0)
    run.step(0, 30.0)
    monkeypatch.setattr(run.optimizer, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.step(1, 30.0)
    assert not {"grad_scale", "found_inf"} & set(vars(run.optimizer))


def test_an_optimizer_without_a_fused_kernel():
    optimizer = torch.optim.AdamW([torch.ones(2, requires_grad=True)])
    with pytest.raises(ValueError, match=r"^fused_clipping: expected an optimizer made with fused=True, got AdamW$"):
        clipped_update(optimizer, torch.amp.GradScaler("cpu", enabled=False), 1.0, True)
