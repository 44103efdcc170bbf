"""The compiled extension: its build information, and that its ops run."""

import shutil

import pytest
import torch

import esim_fast
from tests.processes import output_of


def test_build_info():
    info = esim_fast.build_info()
    assert info["cpu"] is True
    assert info["torch_target"] == "2.10"
    assert info["built_with_torch"].split(".")[0] == torch.__version__.split(".")[0]
    assert all(architecture[0].isdigit() for architecture in info["cuda"])


def test_cuda_code_for_common_gpus():
    built = {architecture.removesuffix("+PTX") for architecture in esim_fast.build_info()["cuda"]}
    if not built:
        pytest.skip("built without nvcc" if shutil.which("nvcc") is None else "built with ESIM_FAST_CUDA=0")
    assert {"8.0", "9.0"} <= built


@pytest.mark.parametrize(("backend", "kernel"), [(None, True), ("cpp", True), ("reference", False)])
def test_the_requested_backend_runs(backend, kernel):
    x = torch.zeros(1, 2, 3, requires_grad=True)
    with torch.profiler.profile() as profile:
        esim_fast.ops.masked_pool(x, backend=backend).sum().backward()
        m_a, m_b = esim_fast.ops.local_inference(x, x.detach(), backend=backend)
        (m_a.sum() + m_b.sum()).backward()
    ours = {event.name for event in profile.events() if event.name.startswith("esim_fast::")}
    names = {f"esim_fast::{op}{end}" for op in ("masked_pool", "local_inference") for end in ("", "_backward")}
    assert ours == (names if kernel else set())


TRITON = {"bilstm_triton", "local_inference_packed_triton", "masked_pool"}


@pytest.mark.parametrize(
    ("backend", "device", "kernels"),
    [
        ("cpp", "cpu", {"bilstm_pack", "bilstm_states", "local_inference_packed", "masked_pool"}),
        ("reference", "cpu", set()),
        pytest.param("triton", "cpu", TRITON, marks=pytest.mark.interpreter),
        pytest.param("triton", "cuda", TRITON, marks=pytest.mark.gpu),
        pytest.param("cudnn", "cuda", TRITON - {"bilstm_triton"}, marks=pytest.mark.gpu),
        pytest.param("cuda", "cuda", TRITON, marks=pytest.mark.gpu),
    ],
)
def test_a_network_runs_every_op_that_has_the_backend_on_it(backend, device, kernels):
    """All other ops run on their best backend."""
    net = esim_fast.ESIM(4, 4, 9, 3, device, backend=backend).eval()
    ids = torch.tensor([[2, 3, 4]], device=device)
    with torch.profiler.profile() as profile, torch.no_grad():
        net(ids, ids)
    ours = {event.name for event in profile.events() if event.name.startswith("esim_fast::")}
    assert ours == {f"esim_fast::{kernel}" for kernel in kernels}


@pytest.mark.parametrize("backend", ["cuda", "cudnn"])
def test_a_backend_that_no_op_can_run_on_here(backend):
    for device in ("cpu", None):
        with pytest.raises(ValueError, match=f"^backend='{backend}' cannot run any op on cpu$"):
            esim_fast.ESIM(4, 4, 9, 3, device, backend=backend)
    with pytest.raises(ValueError, match=f"^backend='{backend}' cannot run any op on cpu$"):
        esim_fast.Classifier.from_pretrained("nowhere", device="cpu", backend=backend)


def test_a_meta_network_takes_any_backend():
    assert esim_fast.ESIM(4, 4, 9, 3, "meta", backend="cpp").device.type == "meta"


def test_without_triton():
    program = "import sys, esim_fast; from esim_fast.ops.triton import runtime; "
    program += "print('triton' in sys.modules, runtime.AVAILABLE)"
    printed = output_of(program, TRITON_INTERPRET="0")
    assert torch.version.cuda or printed.split() == ["False", "False"]
