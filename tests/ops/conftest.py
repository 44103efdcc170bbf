"""Fixtures of the tests of ops."""

import pytest
import torch


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
    from tests.ops.cuda_on_cpu import cuda_on_cpu  # here, because it imports torch's compiler helpers

    return cuda_on_cpu(once, "masked_pool_cuda")


@pytest.fixture(scope="session")
def _bilstm_cuda_library(once):
    from tests.ops.cuda_on_cpu import cuda_on_cpu  # here, because it imports torch's compiler helpers

    return cuda_on_cpu(once, "bilstm_cuda")


@pytest.fixture
def bilstm_cuda(_bilstm_cuda_library, poisoned):
    """The CUDA kernels of the BiLSTM on a large GPU with clusters, on which unwritten results are NaN."""
    _bilstm_cuda_library.set(multiprocessors=10**6, capability=90, policy=0, seed=0)
    _bilstm_cuda_library.launches()
    return _bilstm_cuda_library
