"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A slow machine is no failure.
settings.register_profile("esim_fast", deadline=None)
settings.load_profile("esim_fast")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real corpora and vectors, ``ESIM_FAST_DATA`` or ``../shared/data`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ESIM_FAST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (set ESIM_FAST_DATA)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


def pytest_configure() -> None:
    # On a GPU torch runs fp32 LSTMs in TF32 unless told otherwise, and no test could bound that rounding.
    torch.backends.cudnn.allow_tf32 = False
