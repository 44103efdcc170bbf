"""torch.compile and torch.export of whole networks give the same results, with one compilation."""

import random
import subprocess
from contextlib import contextmanager

import pytest
import torch
from packaging.version import Version
from torch import nn

import esim_fast
from esim_fast.compat import coetaur0
from esim_fast.layers import VariationalDropout
from esim_fast.padded import pad_pairs
from tests.ops.cuda_on_cpu import compiler
from tests.processes import output_of

WORDS, WIDTH, HIDDEN, LABELS = 50, 12, 8, 3


def network(**options):
    torch.manual_seed(0)
    return esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, **options).eval()


def batch(pairs, p_length, h_length, seed=0):
    """Ids padded with 1, and lengths that may be 0."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for longest in (p_length, h_length):
        ids = torch.randint(2, WORDS, (pairs, longest), generator=generator)
        lengths = torch.randint(0, longest + 1, (pairs,), generator=generator)
        sides.append((ids.masked_fill(torch.arange(longest) >= lengths[:, None], 1), lengths))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def results(function, net, *arguments, **options):
    """Logits, and the gradients of the parameters and of given vectors."""
    leaves = [parameter for parameter in net.parameters() if parameter.requires_grad]
    leaves += [x for x in options.get("embedded", ()) if x.requires_grad]
    logits = function(*arguments, **options)
    weights = torch.arange(1.0, LABELS + 1, dtype=logits.dtype)
    return logits, *torch.autograd.grad((logits * weights).sum(), leaves, materialize_grads=True)


@contextmanager
def as_when_compiled():
    """Runs the code path of compilers without a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        yield


@pytest.fixture
def compiled_once():
    """``torch.compile(…, fullgraph=True, dynamic=True)``; a second compilation is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield lambda function, backend="eager": torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    assert not torch._dynamo.config.allow_rnn  # set only while a network is traced
    torch._dynamo.reset()


class TestCompile:
    def test_thirty_batches(self, compiled_once):
        net, draw = network(), random.Random(0)
        compiled = compiled_once(net, "aot_eager")
        sizes = [(7, 9, 5), *([draw.randint(2, 20), draw.randint(2, 30), draw.randint(2, 30)] for _ in range(29))]
        for number, size in enumerate(sizes):
            arguments = batch(*size, seed=number)
            if number == 3:  # only empty sentences
                arguments = *arguments[:2], *(torch.zeros_like(lengths) for lengths in arguments[2:])
            got, wanted = results(compiled, net, *arguments), results(net, net, *arguments)
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        with pytest.raises(torch._dynamo.exc.RecompileError, match=r"2 <= .*size\(\)\[0\]"):
            compiled(*batch(1, 9, 5))  # torch.compile specializes on size 1 and compiles again

    def test_ids_without_lengths(self, compiled_once):
        net = network()
        compiled = compiled_once(net)
        scattered = torch.tensor([[1, 5, 1, 6], [3, 1, 1, 1]]), torch.tensor([[1, 1, 9], [4, 4, 1]])
        for ids in (batch(4, 5, 6)[:2], scattered):
            torch.testing.assert_close(compiled(*ids), net(*ids), rtol=1e-5, atol=1e-5)

    def test_coetaur0(self, compiled_once):
        torch.manual_seed(0)
        net = coetaur0.ESIM(WORDS, WIDTH, HIDDEN, padding_idx=1).eval()
        compiled = compiled_once(net)
        for size in ((4, 5, 6), (3, 9, 2)):
            p, h, p_lengths, h_lengths = batch(*size)
            arguments = p, p_lengths, h, h_lengths
            torch.testing.assert_close(compiled(*arguments), net(*arguments), rtol=1e-5, atol=1e-5)

    def test_a_network_without_kernels_has_several_graphs(self):
        """nn.LSTM runs between them."""
        net = network().double()
        arguments = batch(4, 5, 6)
        got = results(torch.compile(net, backend="eager"), net, *arguments)
        torch.testing.assert_close(got, results(net, net, *arguments))


class TestPadded:
    """The code path of compilers, run without a compiler, which is fast enough for many cases."""

    @pytest.mark.parametrize("seed", range(20))
    def test_random_batches(self, seed):
        draw = random.Random(seed)
        net = network(variant=draw.choice(["paper", "notebook"]), padding_idx=draw.choice([None, 1]))
        arguments = batch(draw.randint(1, 9), draw.randint(1, 12), draw.randint(1, 12), seed)
        wanted = results(net, net, *arguments)
        with as_when_compiled():
            got = results(net, net, *arguments)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("backend", [None, "reference", pytest.param("triton", marks=pytest.mark.interpreter)])
    def test_backends(self, backend):
        if backend == "triton":
            pytest.importorskip("triton")
        net, arguments = network(backend=backend), batch(3, 4, 2, seed=1)
        wanted = results(network(), net, *arguments)
        with as_when_compiled():
            got = results(net, net, *arguments)
        torch.testing.assert_close(got, results(net, net, *arguments), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-5)

    def test_padding_has_no_effect(self):
        net = network()
        p, h, p_lengths, h_lengths = batch(5, 8, 6)
        p_lengths[0] = 0  # so that the first row is padding
        vectors = [torch.randn(*ids.shape, WIDTH, requires_grad=True) for ids in (p, h)]
        spoilt = []
        for x, lengths in zip(vectors, (p_lengths, h_lengths), strict=True):
            behind = torch.arange(x.shape[1]) >= lengths[:, None]
            spoilt.append(x.detach().masked_fill(behind[:, :, None], torch.nan).requires_grad_())
        wanted = results(net, net, None, None, p_lengths, h_lengths, embedded=vectors)
        with as_when_compiled():
            got = results(net, net, None, None, p_lengths, h_lengths, embedded=spoilt)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

    def test_invalid_ids_in_padding(self):
        net = network(padding_idx=None)
        p, h, p_lengths, h_lengths = batch(5, 8, 6)
        wanted = net(p, h, p_lengths, h_lengths)
        with as_when_compiled():
            none = (ids.masked_fill(ids == 1, WORDS + 7) for ids in (p, h))
            torch.testing.assert_close(net(*none, p_lengths, h_lengths), wanted, rtol=1e-5, atol=1e-5)

    def test_lengths_are_clamped_to_the_padded_length(self):
        net = network(padding_idx=None)
        p, h = batch(3, 4, 6)[:2]
        wanted = net(p, h, [4, 4, 0], [6, 2, 5])
        with as_when_compiled():
            got = net(p, h, torch.tensor([4, 5, -1]), torch.tensor([99, 2, 5]))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

    def test_variational_dropout(self):
        p, h, p_lengths, h_lengths = batch(3, 4, 6)
        pairs = pad_pairs(p, h, p_lengths, h_lengths)
        y = VariationalDropout(0.5)(torch.ones(6 * 6, 40), pairs).view(6, 6, 40)
        assert torch.equal(y, y[:1].expand(6, -1, -1))  # the same in every time step
        assert {*y.unique().tolist()} == {0.0, 2.0}
        assert len(y[0].unique(dim=0)) == 6


class TestExport:
    @pytest.fixture(scope="class")
    def program(self):
        net = network()
        pairs, p, h = (torch.export.Dim(name) for name in ("pairs", "p", "h"))
        shapes = {0: pairs, 1: p}, {0: pairs, 1: h}, {0: pairs}, {0: pairs}
        return torch.export.export(net, batch(7, 9, 5), dynamic_shapes=shapes)

    @pytest.mark.parametrize("size", [(7, 9, 5), (4, 3, 8), (20, 40, 3), (2, 2, 2), (1, 6, 9), (1, 1, 1)])
    def test_any_batch(self, program, size):
        if 1 in size and Version(torch.__version__) < Version("2.13"):
            pytest.skip("not tried with exporters before torch 2.13")
        arguments = batch(*size, seed=3)
        torch.testing.assert_close(program.module()(*arguments), network()(*arguments), rtol=1e-5, atol=1e-5)

    def test_saved_and_loaded(self, program, tmp_path):
        torch.export.save(program, tmp_path / "esim.pt2")
        loaded, arguments = torch.export.load(tmp_path / "esim.pt2"), batch(3, 4, 5)
        torch.testing.assert_close(loaded.module()(*arguments), network()(*arguments), rtol=1e-5, atol=1e-5)


# Even fake CUDA tensors need a device guard, which a CPU-only torch does not have.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::DeviceGuardImplRegistrar registrar(
    c10::DeviceType::CUDA, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>());
"""
FAKE_CUDA = """
import ctypes, sys, torch
if len(sys.argv) > 1:
    ctypes.CDLL(sys.argv[1])
from torch._subclasses.fake_tensor import FakeTensorMode
import esim_fast
from esim_fast.ops import backends
from esim_fast.ops.checks import constant_when_compiled

backends.runs_on = constant_when_compiled(lambda backend, device: backend in ("triton", "cuda"))
targets = []

def keep(module, _inputs=()):
    graphs = [part.graph for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    targets.extend(f"{node.target} {node.args}" for graph in graphs for node in graph.nodes)
    return module.forward

def batch(pairs, p, h):
    return *(torch.empty(pairs, n, dtype=torch.int64) for n in (p, h)), *(torch.empty(pairs, dtype=torch.int64),) * 2

with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), torch.no_grad():
    net = esim_fast.ESIM(8, 12, 50, 3).eval()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=keep)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in ((7, 9, 5), (3, 4, 8)):
            logits = compiled(*batch(*size))
            print(logits.device.type, list(logits.shape))
    shapes = [{0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}] * 2 + [{0: torch.export.Dim.AUTO}] * 2
    keep(torch.export.export(net, batch(7, 9, 5), dynamic_shapes=tuple(shapes)).graph_module)
for name in ("bilstm_triton", "local_inference_packed_triton", "masked_pool"):
    print(name, sum(f"esim_fast.{name}" in target for target in targets))
"""


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="older compilers stop at a message of their own fake tensors"
)
def test_fake_cuda_tensors(tmp_path):
    pytest.importorskip("triton")
    arguments = []
    if torch.version.cuda is None:
        if (command := compiler()) is None:
            pytest.skip("no C++ compiler here to give a CPU-only torch a guard of CUDA devices")
        from torch.utils import cpp_extension

        (tmp_path / "guard.cpp").write_text(GUARD)
        arguments = [str(tmp_path / "guard.so")]
        folders = [*(f"-I{path}" for path in cpp_extension.include_paths())]
        folders += [f"-L{path}" for path in cpp_extension.library_paths()]
        flags = ["-std=c++17", "-shared", "-fPIC", str(tmp_path / "guard.cpp"), "-o", *arguments]
        subprocess.run([*command, *flags, *folders, "-lc10"], check=True)
    lines = output_of(FAKE_CUDA, *arguments).splitlines()
    assert lines[:2] == ["cuda [7, 3]", "cuda [3, 3]"]
    counts = dict(line.split() for line in lines[2:])
    # Both graphs have two LSTMs, one local inference and one pooling.
    assert counts == {"bilstm_triton": "4", "local_inference_packed_triton": "2", "masked_pool": "2"}


class TestTorchScript:
    REFUSED = (
        r"^TorchScript does not support ESIM: use torch\.export\.export\(net, …\), or `esim-fast export` for ONNX$"
    )

    @pytest.fixture(params=["esim_fast", "coetaur0"])
    def net(self, request):
        return network() if request.param == "esim_fast" else coetaur0.ESIM(WORDS, WIDTH, HIDDEN)

    @pytest.mark.filterwarnings("ignore")  # torch deprecates both
    def test_trace(self, net):
        p, h, p_lengths, h_lengths = batch(2, 3, 4)
        arguments = (p, h) if isinstance(net, esim_fast.ESIM) else (p, p_lengths, h, h_lengths)
        with pytest.raises(TypeError, match=self.REFUSED):
            torch.jit.trace(net, arguments)

    @pytest.mark.filterwarnings("ignore")
    def test_script(self, net):
        with pytest.raises(TypeError, match=self.REFUSED):
            torch.jit.script(net)
        with pytest.raises(TypeError, match=self.REFUSED):
            torch.jit.script(nn.Sequential(net))
