"""For the tests of ops."""

import pytest
import torch


@pytest.fixture
def poisoned():
    """New memory holds NaN, so that what nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
