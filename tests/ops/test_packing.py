"""Packed parameters are never used after a parameter has changed, however it changed."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from esim_fast.layers import project
from esim_fast.ops import bilstm, int8, packing, products
from esim_fast.ops.packing import packed

BATCH_SIZES = torch.tensor([4, 3, 3, 1])


class Net(nn.Module):
    """Both layers that cache packed parameters, so two entries."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(12, 20, bidirectional=True)
        self.linear = nn.Linear(40, 8)

    def forward(self, x):
        return project(self.linear, bilstm(self.lstm, x, BATCH_SIZES, backend="cpp"))


def make_net():
    """A network after a prediction, and its input."""
    net, x = Net(), torch.randn(11, 12)
    predict(net, x)
    return net, x


@torch.no_grad()
def predict(net, x):
    return net(x)


def step(optimizer):
    """A step with gradients of 1."""

    def change(net):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer(net.parameters()).step()

    return change


@torch.no_grad()
def in_place(net):
    net.lstm.weight_hh_l0.mul_(0.5)


@torch.inference_mode()
def in_place_in_inference_mode(net):
    net.lstm.weight_hh_l0.mul_(0.5)


@torch.no_grad()
def one_element(net):
    net.linear.weight[3, 4] += 1


def data_of_each(net):
    for parameter in net.parameters():
        parameter.data.mul_(0.5)


def numpy_array(net):
    array = net.lstm.weight_ih_l0_reverse.detach().numpy()
    array *= 0.5


def other_data(net):
    for parameter in net.parameters():
        parameter.data = parameter.data * 0.5


def other_data_again(net):
    for _ in range(5):  # the next one gets the freed memory
        other_data(net)


def other_parameter(net):
    net.lstm.weight_hh_l0_reverse = nn.Parameter(torch.ones(80, 20))


@torch.no_grad()
def same_memory_of_another(net):
    net.lstm.weight_hh_l0_reverse[3, 4] += 1
    other = nn.Parameter(net.lstm.weight_hh_l0_reverse.data)
    other.add_(0)  # the same version counter as the first one
    net.lstm.weight_hh_l0_reverse = other


def loaded(**options):
    return lambda net: net.load_state_dict({name: x * 0.5 for name, x in net.state_dict().items()}, **options)


def parametrized(net):
    parametrize.register_parametrization(net.linear, "weight", nn.Softplus())


def parametrized_and_changed(net):
    parametrized(net)
    predict(net, torch.randn(11, 12))
    in_place(net)
    net.linear.parametrizations.weight.original.data.mul_(0.5)


CHANGES = {
    "in place": in_place,
    "in place in inference mode": in_place_in_inference_mode,
    "one element": one_element,
    "data": data_of_each,
    "numpy": numpy_array,
    "other data": other_data,
    "other data again": other_data_again,
    "other parameter": other_parameter,
    "same memory of another": same_memory_of_another,
    "load_state_dict": loaded(),
    "load_state_dict, assigned": loaded(assign=True),
    "to fp16 and back": lambda net: net.half().float(),
    "fused Adam": step(lambda parameters: torch.optim.Adam(parameters, fused=True)),
    "foreach Adam": step(lambda parameters: torch.optim.Adam(parameters, foreach=True)),
    "foreach SGD": step(lambda parameters: torch.optim.SGD(parameters, 0.1, foreach=True)),
    "for-loop SGD": step(lambda parameters: torch.optim.SGD(parameters, 0.1, foreach=False)),
    "parametrized": parametrized,
    "parametrized and changed": parametrized_and_changed,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_noticed(change):
    net, x = make_net()
    before = predict(net, x)
    change(net)
    after = predict(net, x)
    assert torch.equal(after, predict(copy.deepcopy(net), x))  # a copy has nothing cached
    assert not torch.equal(after, before)


@pytest.mark.parametrize("name", [name for name, _ in Net().named_parameters()])
def test_a_change_of_each_parameter_is_noticed(name):
    for data in (False, True):
        net, x = make_net()
        parameter = net.get_parameter(name)
        (parameter.data if data else parameter.detach()).add_(0.5)
        assert torch.equal(predict(net, x), predict(copy.deepcopy(net), x))


def test_replaced_parameters():
    net, x = make_net()
    other = copy.deepcopy(net)
    other_data(other)
    before = predict(net, x)
    with torch.no_grad():
        called = torch.func.functional_call(net, dict(other.named_parameters()), (x,))
    assert torch.equal(called, predict(other, x))
    assert torch.equal(predict(net, x), before)


def test_autograd_does_not_use_the_cache():
    net, x = Net(), torch.randn(11, 12)
    with torch.inference_mode():  # what is packed there is also used outside
        net(x)
    wanted = predict(net, x)
    ours = net(x)
    torch.testing.assert_close(ours, wanted)
    assert all(gradient.any() for gradient in torch.autograd.grad(ours.sum(), net.parameters()))
    net.requires_grad_(False)
    assert torch.equal(net(x), wanted)  # nothing needs recording
    x.requires_grad_()
    assert torch.autograd.grad(net(x).sum(), x)[0].any()


@pytest.mark.skipif(not products._BF16, reason="oneDNN has no bf16 on this processor")
def test_bf16_autocast():
    net, x = make_net()
    recorded = torch.autocast("cpu", torch.bfloat16)(net)(x)
    predict_bf16 = torch.autocast("cpu", torch.bfloat16)(predict)
    assert predict_bf16(net, x).dtype == torch.bfloat16
    torch.testing.assert_close(predict_bf16(net, x), recorded, rtol=2**-6, atol=2**-8)
    in_place(net)
    assert torch.equal(predict_bf16(net, x), predict_bf16(copy.deepcopy(net), x))
    assert torch.equal(predict(net, x), predict(copy.deepcopy(net), x))  # fp32 is cached beside it


@pytest.mark.skipif(not int8.LANES, reason="this processor has no VNNI")
@torch.no_grad()
def test_int8():
    net, x = make_net()

    def quantized(net):
        return int8.linear(net.linear, int8.bilstm(net.lstm, x, BATCH_SIZES))

    before = quantized(net)
    in_place(net)
    other_data(net)
    assert not torch.equal(quantized(net), before)
    assert torch.equal(quantized(net), quantized(copy.deepcopy(net)))


class Maker:
    """Counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *parameters):
        self.calls += 1
        return torch.cat([parameter.detach().flatten() for parameter in parameters])


def test_made_once():
    gc.collect()
    make, others = Maker(), Maker()
    parameters = nn.Parameter(torch.randn(70, 300)), nn.Parameter(torch.full((3,), torch.nan))
    values = [packed(make, *parameters) for _ in range(3)]
    assert make.calls == 1
    assert values[0] is values[1] is values[2]
    before = len(packing._kept)
    for n in range(100):
        parameters[0].data.add_(1)
        packed(make, *parameters)
        assert make.calls == 2 + n
    parameters[0].data = parameters[0].data.view(300, 70)
    packed(make, *parameters)
    assert make.calls == 102
    packed(others, *parameters)
    packed(make, *parameters[::-1])
    assert others.calls == 1
    assert len(packing._kept) == before + 2


def test_nothing_outlives_its_parameters():
    gc.collect()
    before = len(packing._kept)
    net, x = make_net()
    for _ in range(3):
        in_place(net)
        predict(net, x)
    assert len(packing._kept) == before + 2
    copy.deepcopy(net)
    gc.disable()
    try:
        del net
        assert len(packing._kept) == before  # freed at once, because there are no cycles
    finally:
        gc.enable()


class Subclass(torch.Tensor):
    pass


with torch.inference_mode():
    INFERENCE_TENSOR = torch.randn(8, 4)


NOT_KEPT = {
    "inference tensor": INFERENCE_TENSOR,
    "subclass": torch.randn(8, 4).as_subclass(Subclass),
    "strides": torch.randn(8, 4).t(),
    "fp64": torch.randn(8, 4).double(),
    "sparse": torch.randn(8, 4).to_sparse(),
    "meta": torch.randn(8, 4, device="meta"),
    "empty": torch.randn(0, 4),
    "number": torch.tensor(1.0),
}
MODES = {
    "fake mode": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "forward": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize(
    ("x", "mode"),
    [*((x, nullcontext) for x in NOT_KEPT.values()), *((torch.randn(8, 4), mode) for mode in MODES.values())],
    ids=[*NOT_KEPT, *MODES],
)
def test_parameters_that_are_not_cached(x, mode):
    with mode():
        assert packed(Maker(), x) is None


@pytest.mark.parametrize("change", [torch.t, lambda x: x.view(torch.int32)], ids=["strides", "dtype"])
def test_parameters_that_are_no_longer_cached(change):
    """The memory and the shape stay the same."""
    make, weight = Maker(), torch.randn(8, 8)
    assert packed(make, weight) is not None
    weight.data = change(weight.data)
    assert packed(make, weight) is None


def test_transforms_see_everything():
    make, weight, seen = Maker(), torch.randn(8, 4), []
    assert packed(make, weight) is not None
    torch.func.vmap(lambda x: seen.append(packed(make, weight)) or x)(torch.zeros(3))
    torch.jit.trace(lambda x: seen.append(packed(make, weight)) or x + 1, torch.zeros(3), check_trace=False)
    assert seen == [None, None]


def test_several_threads():
    net, x = Net(), torch.randn(11, 12)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            wanted = predict(copy.deepcopy(net), x)
            results = pool.map(lambda _: predict(net, x), range(16))
            assert all(torch.equal(result, wanted) for result in results)
            in_place(net)


def test_memory_can_be_resized():
    """As in sharded training, which frees weights and restores them."""
    net, x = make_net()
    expected, weight = predict(net, x), net.linear.weight
    values, storage = weight.detach().clone(), weight.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    weight.data.copy_(values)
    assert torch.equal(predict(net, x), expected)
