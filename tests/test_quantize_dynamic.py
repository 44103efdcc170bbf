"""torch.ao.quantization.quantize_dynamic, which replaces nn.Linear and nn.LSTM by its own layers."""

import pytest
import torch
from torch import nn

import esim_fast
from esim_fast.compat import coetaur0
from esim_fast.quantized import inference_precision

quantization = pytest.importorskip("torch.ao.quantization")
if "qnnpack" not in (engines := torch.backends.quantized.supported_engines) and "fbgemm" not in engines:
    pytest.skip("this torch has no quantized layers", allow_module_level=True)

P, H = torch.randint(2, 50, (20, 12)), torch.randint(2, 50, (20, 9))
P[3], H[5, 4:], P[7, 1:] = 1, 1, 1


@pytest.fixture(params=[{nn.Linear}, {nn.LSTM}, {nn.Linear, nn.LSTM}], ids=["linear", "lstm", "both"])
def kinds(request):
    return request.param


@pytest.fixture
def quantize(kinds):
    def quantized(net):
        with pytest.warns(DeprecationWarning, match="quantization is deprecated"):
            return quantization.quantize_dynamic(net, kinds)

    return quantized


LAYERS = {
    nn.Linear: ["infercomposition.composition.F", "linear.mlp.1", "linear.mlp.3"],
    nn.LSTM: ["encoder.lstm", "infercomposition.composition.lstm"],
}


def error(logits, wanted):
    """Error relative to the spread of the logits."""
    return float((logits - wanted).norm() / (wanted - wanted.mean(0)).norm())


@torch.no_grad()
def test_esim(quantize, kinds):
    torch.manual_seed(0)
    net = esim_fast.ESIM(64, 40, 50, 3).eval()
    wanted, quantized = net(P, H), quantize(net)
    for kind, names in LAYERS.items():
        for name in names:
            assert ("quantized" in type(quantized.get_submodule(name)).__module__) == (kind in kinds)
    logits = quantized(P, H)
    assert 1e-5 < error(logits, wanted) < 0.2
    torch.testing.assert_close(quantized(P[:1], H[:1]), logits[:1], rtol=0.01, atol=0.01)
    assert torch.equal(net(P, H), wanted)  # the original is unchanged
    assert inference_precision("auto", torch.device("cpu"), quantized) == "fp32"  # already in int8


@torch.no_grad()
def test_coetaur0(quantize):
    torch.manual_seed(0)
    net = coetaur0.ESIM(50, 40, 64, padding_idx=1).eval()
    arguments = P, (P != 1).sum(1), H, (H != 1).sum(1)
    wanted, logits = net(*arguments)[0], quantize(net)(*arguments)[0]
    assert 1e-5 < error(logits, wanted) < 0.2
