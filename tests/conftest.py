"""Fixtures that several test files share."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread per worker and per process that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it on import

import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from packaging.version import Version

if not torch.cuda.is_available():
    # Runs Triton's kernels on CPU tensors. Triton reads it on import.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Makes cuBLAS, and so cuDNN's LSTMs, deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# By default torch runs fp32 LSTMs on a GPU in TF32, whose rounding the tests do not allow for.
torch.backends.cudnn.allow_tf32 = False

# A slow machine must not fail a test.
settings.register_profile("esim_fast", deadline=None, max_examples=40)
settings.register_profile("nightly", deadline=None, max_examples=1500)
settings.load_profile("esim_fast")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for the tests, apart from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESIM_FAST_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``once(name, make)``: a folder filled by ``make`` once for all test workers."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(base / f"{name}.lock"):
            if not (base / name).exists():
                unfinished = base / f"{name}-unfinished"
                unfinished.mkdir(exist_ok=True)
                make(unfinished)
                unfinished.rename(base / name)
        return base / name

    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real corpora and vectors, ``ESIM_FAST_DATA`` or ``../shared/data`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ESIM_FAST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (set ESIM_FAST_DATA)")
    return folder


@pytest.fixture
def curves() -> None:
    """Draws training curves, which other tests skip because it takes most of a short run's time."""


@pytest.fixture(autouse=True)
def _without_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "curves" not in request.fixturenames and (trainer := sys.modules.get("esim_fast.training.trainer")):
        monkeypatch.setattr(trainer, "draw_curves", lambda *_: None)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that must not be loaded; checks afterwards that it was not."""
    from tests.untrusted.hostile import in_disguise  # here, because it imports esim_fast

    with in_disguise(tmp_path) as content:
        yield content


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {"gpu": None if torch.cuda.is_available() else "no NVIDIA GPU here", "interpreter": no_interpreter()}
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Hides GPUs from tests without the mark ``gpu`` and from the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        if torch.cuda.is_available() and not item.get_closest_marker("gpu"):
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return (yield)


def no_interpreter() -> str | None:
    """The reason why Triton's interpreter cannot run here, or None."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed here"
    if not triton.knobs.runtime.interpret:
        return "Triton's interpreter is off here (TRITON_INTERPRET=1), because the kernels run on the GPU"
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        return f"the interpreter of Triton {triton.__version__} fails with numpy {np.__version__}"
    return None
