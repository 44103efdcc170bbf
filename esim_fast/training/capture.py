"""Training steps as CUDA graphs: the host copies a batch to the GPU and replays what it once launched.

A step of 32 pairs is hundreds of small kernels, and launching them takes the host longer than running them takes the
GPU. A graph launches all of them at once. It repeats the same kernels on the same addresses, so batches are padded to a
capacity (training/capacities.py), and all that differs between steps is read from one block of memory on the GPU.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data import Batch
from ..model import ESIM, is_as_made
from ..ops.backends import runs_on
from ..ops.bilstm import is_plain_fp32
from ..packed import PackedPairs, pack_pairs
from ..recipe import Recipe
from .capacities import EAGER_USES, Size, capacity_of
from .losses import no_target
from .steps import StepResult, training_step

_SLOTS = 4  # steps that the host can be ahead of the GPU
_ALIGNMENT = 16  # bytes, for vector loads


class CUDAGraphs:
    """What captured steps need of CUDA. Tests replace it to run without a GPU."""

    device = "cuda"
    new_event: Callable[[], Any] = torch.cuda.Event

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # steps run one after another, so all graphs share memory

    @staticmethod
    def obstacle(net: ESIM) -> str | None:
        """Why no graph of this network can be captured, or None."""
        backends = {getattr(module, "backend", None) for module in net.modules()}
        if backends & {"cudnn", "reference"} or not all(runs_on(name, net.device) for name in ("triton", "cuda")):
            return "only the Triton and CUDA kernels read no sizes back from the GPU"
        if not all(is_plain_fp32(module) for module in net.modules() if isinstance(module, nn.RNNBase)):
            return "the kernels need parameters in fp32"
        return None

    def capture(self, step: Callable[[], object]) -> Callable[[], object]:
        """Return a function that repeats a step, which is not executed now."""
        graph = torch.cuda.CUDAGraph()
        # Another thread may pin memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        return graph.replay


@dataclass
class Statistics:
    """How many steps were replayed and how many ran eagerly, and how many graphs were captured."""

    replayed: int = 0
    eager: int = 0
    captured: int = 0


class CapturedStep:
    """``training_step`` that replays CUDA graphs:

        sizes = step_sizes(batches(train, 32, shuffle=True, epoch=1))
        step = CapturedStep(net, optimizer, scaler, recipe, plan(sizes))
        for batch in batches(train, 32, shuffle=True, epoch=1):
            result = step([batch])

    A batch is padded to its capacity. The first two steps of a capacity run eagerly, then a graph is captured. Eager
    and replayed steps compute the same bits, so a resumed run repeats an uninterrupted one. A batch larger than every
    capacity runs eagerly as it is. So does every step of a network with hooks, replaced forward passes or a compiled
    call, and of an optimizer that is not fused; a warning says why. Graphs are captured anew when parameters were
    moved, frozen or unfrozen, the optimizer's state was loaded, or dropout was switched on or off.

    Args:
        net: the network, on an NVIDIA GPU.
        optimizer: made with ``fused=True``. Its learning rates may change between steps.
        scaler: as for ``training_step``.
        recipe: as for ``training_step``; a step has up to ``recipe.accumulate`` parts.
        capacities: from ``esim_fast.training.plan``.
        class_weights: as for ``training_step``.

    Attributes:
        statistics: counts of the steps so far.

    Raises:
        ValueError: the network is not on an NVIDIA GPU.
    """

    def __init__(
        self,
        net: ESIM,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        recipe: Recipe,
        capacities: Sequence[Size],
        class_weights: Tensor | None = None,
    ) -> None:
        if net.device.type != CUDAGraphs.device:
            raise ValueError(f"expected a network on an NVIDIA GPU, got {net.device}")
        self.statistics = Statistics()
        self._net, self._optimizer, self._scaler, self._recipe = net, optimizer, scaler, recipe
        self._capacities, self._class_weights = capacities, class_weights
        self._graphs = CUDAGraphs()
        self._inbox: _Inbox | None = None
        self._measured = torch.zeros(3, device=net.device)
        self._uses: Counter[Size] = Counter()
        self._replays: dict[Size, Callable[[], object]] = {}
        self._captured_with: object = None
        self._warned = False

    def __call__(self, parts: Sequence[Batch]) -> StepResult:
        """Run a step on a batch, whole or in parts, in memory of the CPU (it need not be pinned).

        Returns:
            As ``training_step``.
        """
        size = Size.largest(_size(part) for part in parts)
        capacity = capacity_of(size, self._capacities) if len(parts) <= self._recipe.accumulate else None
        if capacity is None or self._is_prevented():
            self.statistics.eager += 1
            moved = [part.to(self._net.device) for part in parts if len(part)]
            return self._eager(moved)
        self._forget_if_changed()
        inputs = self._inputs(parts, capacity)
        if self._inbox is None:
            most = max(_layout(self._inputs(parts[:0], each))[1] for each in self._capacities)
            self._inbox = _Inbox(most, self._net.device)
        self._inbox.receive(inputs)
        self._uses[capacity] += 1
        ...
