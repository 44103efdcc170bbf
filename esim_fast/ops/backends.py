"""The backends of each op, and where they can run.

* ``"cpp"``: C++ kernels for the CPU
* ``"cuda"``: CUDA kernels, on NVIDIA GPUs that the build has code for
* ``"triton"``: Triton kernels, on NVIDIA GPUs with compute capability 8.0 or higher, or interpreted on the CPU
* ``"cudnn"``: ``torch.nn.LSTM`` on NVIDIA GPUs
* ``"reference"``: plain PyTorch, on any device
"""

import re
from collections.abc import Sequence
from functools import cache

import torch

from ..extension import build_info
from .checks import constant_when_compiled
from .triton import runtime

# For each op, the best one first; on a CPU, Triton's interpreter is for testing only. What no GPU has run yet must be
# asked for: the CUDA kernel of bilstm, which is not here, and the kernels behind "reference", which runs everywhere.
BACKENDS = {
    "bilstm": ("cpp", "triton", "cudnn", "reference"),
    "local_inference": ("cpp", "triton", "reference"),
    "masked_pool": ("cpp", "cuda", "reference"),
    "dropout": ("reference", "triton"),
    "cross_entropy": ("reference", "triton"),
}
_KNOWN = (None, "cpp", "cuda", "triton", "cudnn", "reference")
_CUDA_ARCHITECTURES = tuple(build_info()["cuda"])


@constant_when_compiled
def runs_on(backend: str, device: torch.device) -> bool:
    """Whether a backend can run on a device at all, regardless of op and dtype."""
    if backend == "cpp":
        return device.type == "cpu"
    if backend == "triton":
        return runtime.can_run(device)
    if backend == "reference":
        return True
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    if backend == "cudnn":
        return torch.backends.cudnn.enabled and torch.backends.cudnn.is_available()
    return has_code(_CUDA_ARCHITECTURES, torch.cuda.get_device_capability(device))


@cache
def has_code(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether code built for these architectures ("8.0", "9.0a", "12.0+PTX") runs on a GPU of this capability."""
    for architecture in architectures:
        major, minor = (int(number) for number in re.findall(r"\d+", architecture))
        if (major, minor) == capability:
            return True
        # Machine code runs on later GPUs of its generation, PTX on all later ones; "a" and "f" targets on neither.
        tied = "a" in architecture or "f" in architecture
        later = (major, minor) < capability and (major == capability[0] or architecture.endswith("+PTX"))
        if later and not tied:
            return True
    return False


def choose(backend: str | None, op: str, order: Sequence[str], x: torch.Tensor) -> str:
    """Return the backend to run: the requested one, or the best that can run on the device of ``x``.

    Args:
        backend: the requested backend, or None.
        op: name of the op, for messages.
        order: backends of the op that support this input, the best one first.
        x: the input.

    Raises:
        ValueError: the requested backend cannot run. It is never replaced by another one.
    """
    for name in order if backend is None else (backend,):
        if name in order and runs_on(name, x.device):
            return name
    possible = ", ".join(repr(name) for name in order if runs_on(name, x.device))
    raise ValueError(f"backend={backend!r} cannot run {op} on {x.device} in {x.dtype}; available here: {possible}")


def backends_of_ops(
    backend: str | None, device: torch.device | str | None = None, bilstm_backend: str | None = None
) -> dict[str, str | None]:
    """Return the backend of each op in a model for ``backend``: None for ops that do not have it.

    Args:
        backend: the requested backend, or None.
        device: the model's device; None if it may be any device of this machine.
        bilstm_backend: a backend for the BiLSTMs alone, or None.

    Raises:
        ValueError: there is no such backend, or it cannot run any op there.
    """
    devices = [torch.device(place) for place in (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])]
    if device is not None and torch.device(device).type != "meta":  # a model on meta may be moved to any device
        devices = [torch.device(device)]
    for name, requested in (("backend", backend), ("bilstm_backend", bilstm_backend)):
        if requested not in _KNOWN:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, _KNOWN))}, got {requested!r}")
        if requested is not None and not any(runs_on(requested, possible) for possible in devices):
            raise ValueError(f"{name}={requested!r} cannot run any op on {' or '.join(map(str, devices))}")
    chosen = {op: backend if backend in known else None for op, known in BACKENDS.items()}
    return chosen if bilstm_backend is None else {**chosen, "bilstm": bilstm_backend}
