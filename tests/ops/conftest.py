"""Fixtures of the tests of ops."""

import sys

import pytest
import torch

from tests.ops.cuda_on_cpu import LIBRARY, CudaOnCpu, build, compiler


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def poisoned():
    """Fills new memory with NaN, so that unwritten results are seen, and makes nondeterministic operations raise."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """Sets the number of threads and restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cuda(once):
    """The CUDA kernels of pooling, compiled for the CPU."""
    if sys.platform != "linux":
        pytest.skip("CUDA code is built for Linux alone")
    if (command := compiler()) is None:
        pytest.skip("no C++ compiler here to build CUDA code for the CPU")
    return CudaOnCpu(once("cuda-on-cpu", lambda folder: build(folder, command)) / LIBRARY)
