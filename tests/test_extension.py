"""The compiled extension: what it says of itself, and that it is the one that runs."""

import shutil

import pytest
import torch

import esim_fast


def test_build_info():
    info = esim_fast.build_info()
    assert info["cpu"] is True
    assert info["torch_target"] == "2.10"
    assert info["built_with_torch"].split(".")[0] == torch.__version__.split(".")[0]
    assert all(architecture[0].isdigit() for architecture in info["cuda"])


def test_cuda_code_for_the_gpus_that_people_have():
    built = {architecture.removesuffix("+PTX") for architecture in esim_fast.build_info()["cuda"]}
    if not built:
        pytest.skip("built without nvcc" if shutil.which("nvcc") is None else "built with ESIM_FAST_CUDA=0")
    assert {"8.0", "9.0"} <= built


def test_the_kernel_is_the_default():
    """On the CPU pooling goes through the operator, not through plain PyTorch."""
    with torch.profiler.profile() as profile:
        esim_fast.ops.masked_pool(torch.zeros(1, 2, 3))
    assert "esim_fast::masked_pool" in {event.name for event in profile.events()}
