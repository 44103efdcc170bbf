"""CUDA graphs: the host copies tensors to the GPU and launches all kernels at once.

A graph repeats the same kernels on the same addresses. So batches are padded to a few capacities, and all that differs
between batches of a capacity is copied to the same memory. Training steps (training/capture.py) and forward passes
(captured.py) share these parts.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from .model import ESIM, is_as_made
from .ops.backends import runs_on
from .ops.bilstm import is_plain_fp32

EAGER_USES = 2  # of a capacity, before a graph is captured for it

_ALIGNMENT = 16  # bytes, for vector loads
_CAPTURING = Lock()  # torch synchronizes the GPU before it captures, and must not do so during another capture


class CUDAGraphs:
    """What captured work needs from CUDA. Tests replace this class, so that they run on a CPU."""

    device = "cuda"

    def __init__(self, device: torch.device) -> None:
        if device.type != self.device:
            raise ValueError(f"expected a network on an NVIDIA GPU, got one on {device}")
        self._pool = torch.cuda.graph_pool_handle()  # one for all graphs, because no two of them run at once
        self._stream = torch.cuda.Stream(device)  # torch's own one may belong to another GPU

    @staticmethod
    def current(device: torch.device) -> AbstractContextManager[object]:
        """Make a network's GPU the current one for a while, because events and streams belong to that one."""
        return torch.cuda.device(device)

    def obstacle(self, net: ESIM) -> str | None:
        """Why the kernels that this network runs cannot be captured, or None."""
        backends = {getattr(module, "backend", None) for module in net.modules()}
        if backends & {"cudnn", "reference"} or not all(runs_on(name, net.device) for name in ("triton", "cuda")):
            return "the network does not run on the Triton and CUDA kernels, and others read sizes back from the GPU"
        if not all(is_plain_fp32(module) for module in net.modules() if isinstance(module, nn.RNNBase)):
            return "the network's LSTMs are not in fp32"
        return None

    def new_slot(self, size: int) -> tuple[Tensor, Any]:
        """Return ``size`` bytes of pinned memory, and an event."""
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        """Return a function that repeats what ``work`` launches; capturing does not execute it."""
        graph = torch.cuda.CUDAGraph()
        # In other modes, another thread that pins memory during the capture would fail.
        how: dict[str, Any] = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with _CAPTURING, torch.cuda.graph(graph, **how):
            work()
        return graph.replay


def wants_graphs(cuda_graphs: str, device: torch.device) -> bool:
    """Whether to capture CUDA graphs, for an option that is ``"on"``, ``"off"`` or ``"auto"``.

    Raises:
        ValueError: they cannot be captured here, or there is no such value.
    """
    if cuda_graphs not in ("on", "off", "auto"):
        raise ValueError(f"cuda_graphs: expected on, off or auto, got {cuda_graphs!r}")
    if cuda_graphs != "on":  # auto may be on once a run on a GPU has shown that replayed results equal eager ones
        return False
    if device.type != CUDAGraphs.device:
        raise ValueError(f"cuda_graphs: 'on' needs an NVIDIA GPU, and this device is {device}")
    return True


def obstacle(net: nn.Module) -> str | None:
    """Why this network's modules cannot be captured, or None."""
    if not isinstance(net, ESIM) or any(module._compiled_call_impl is not None for module in net.modules()):
        return "the network is compiled, or it is not an ESIM"
    if not is_as_made(net):
        return "the network has hooks or replaced forward passes"
    return None


def fixed_by_graphs(net: ESIM) -> tuple[object, ...]:
    """All of a network that a graph keeps from when it was captured: modes, and where its parameters are."""
    names = "training", "p", "backend"  # p: of dropout
    modes = [[vars(module).get(name) for name in names] for module in net.modules()]
    return modes, [(w.data_ptr(), w.dtype, w.shape, w.requires_grad) for w in net.parameters()]


@dataclass
class Statistics:
    """How often work was replayed and how often it ran eagerly, and how many graphs were captured."""

    replayed: int = 0
    eager: int = 0
    captured: int = 0


@dataclass
class Replayable:
    """The work of one capacity: ``compute`` does it on the tensors that were received last."""

    compute: Callable[[], object]
    uses: int = 0
    replay: Callable[[], object] | None = None

    def run(self, capture: Callable[[Callable[[], object]], Callable[[], object]], statistics: Statistics) -> None:
        """Do the work: eagerly at first, then captured by ``capture`` and replayed."""
        self.uses += 1
        if self.uses <= EAGER_USES:
            statistics.eager += 1
            self.compute()
            return
        if self.replay is None:
            self.replay = capture(self.compute)
            statistics.captured += 1
        statistics.replayed += 1
        self.replay()


class Inbox:
    """Memory on the GPU that receives the tensors of each use."""

    def __init__(self, slots: Sequence[tuple[Tensor, Any]], device: torch.device) -> None:
        self._slots = list(slots)  # pinned memory to copy from, with an event; the one to use next comes first
        self._memory = torch.zeros_like(slots[0][0], device=device)

    def receive(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Begin to copy tensors to the GPU in one copy.

        Returns:
            Views of the memory, which are the same for the same shapes.
        """
        slot, copied = self._slots.pop(0)
        self._slots.append((slot, copied))
        copied.synchronize()  # an earlier copy may still read the slot
        places = offsets(tensors)
        for place, tensor in zip(places, tensors, strict=False):
            _view(slot, place, tensor).copy_(tensor)
        self._memory[: places[-1]].copy_(slot[: places[-1]], non_blocking=True)
        copied.record()
        return [_view(self._memory, place, tensor) for place, tensor in zip(places, tensors, strict=False)]


def offsets(tensors: Sequence[Tensor]) -> list[int]:
    """The offset of each tensor in bytes, one after another, and then their size in all."""
    return list(accumulate((-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors), initial=0))


def _view(memory: Tensor, offset: int, like: Tensor) -> Tensor:
    return memory[offset : offset + like.nbytes].view(like.dtype).view(like.shape)
