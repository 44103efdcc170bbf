"""Training steps as CUDA graphs: the host copies a batch to the GPU and launches a whole step at once.

A step of 32 pairs is more than a hundred small kernels, and launching them takes longer than running them. A graph
repeats the same kernels on the same addresses. So batches are padded to a capacity (training/capacities.py), and all
that differs between steps is copied to the same memory (graphs.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from .. import graphs
from ..data import Batch
from ..graphs import Inbox, Replayable, Statistics
from ..layers import kept_gradient, keyed_dropout
from ..model import ESIM
from ..ops.backends import runs_on
from ..ops.cross_entropy import MOST_LABELS
from ..ops.embedding import occurrences
from ..recipe import Recipe
from ..traps import warn
from .capacities import Size, capacity_of
from .losses import no_target
from .steps import StepResult, training_step

_SLOTS = 4  # steps that the host may be ahead of the GPU


class CapturedStep:
    """A ``training_step`` that captures CUDA graphs and replays them. It has not run on a GPU yet.

        loader = batches(train, 32, shuffle=True, epoch=1)
        step = CapturedStep(net, optimizer, scaler, recipe, plan_capacities(step_sizes(loader)))
        for batch in loader:
            result = step([batch])

    Each batch is padded to its capacity. A capacity's first two steps run eagerly, on the padded batch, then a graph is
    captured. Batches larger than every capacity run eagerly and unpadded. So does every step while the network has
    hooks, replaced forward passes or a compiled call, or runs on other kernels than Triton's and CUDA's, or the
    optimizer is not fused; a warning says why. Graphs are dropped when parameters have been moved, frozen or unfrozen,
    the optimizer's state has been loaded, or the network's mode has changed. Gradients are not kept: ``.grad`` is None
    after a step. After a step whose loss is not finite, make a new object: without a scaler, the memory of the
    embedding's gradient is not finite either.

    Args:
        net: the network, on an NVIDIA GPU.
        optimizer: made with ``fused=True``. Learning rates may change between steps, other options may not.
        scaler: as for ``training_step``.
        recipe: as for ``training_step``.
        capacities: from ``esim_fast.training.plan_capacities``.
        workers: as for ``training_step``. Processes may have different capacities, and replay while others do not.
        class_weights: as for ``training_step``.
        seed: the seed of dropout, a different one for each process; None is the recipe's.

    Attributes:
        statistics: counts of ``replayed`` and ``eager`` steps and of ``captured`` graphs so far.
        steps: the number of steps so far; set it when training resumes. Dropout's masks are functions of the seed and
            this number (``esim_fast.ops.dropout``), so they are the same whether a step is captured or not.

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
        workers: int = 1,
        class_weights: Tensor | None = None,
        seed: int | None = None,
    ) -> None:
        self.statistics, self.steps = Statistics(), 0
        self._net, self._optimizer, self._scaler, self._recipe = net, optimizer, scaler, recipe
        self._capacities, self._workers, self._class_weights = capacities, workers, class_weights
        self._graphs = graphs.CUDAGraphs(net.device)
        self._obstacle_of_kernels = self._graphs.obstacle(net)
        fits = net.device.type == "cuda" and runs_on("triton", net.device) and net.config.num_labels <= MOST_LABELS
        self._loss_backend = "triton" if fits else None
        self._seed = recipe.seed if seed is None else seed
        self._inbox: Inbox | None = None
        self._measured = torch.zeros(len(StepResult._fields), device=net.device)
        self._steps: dict[tuple[Size, int], Replayable] = {}  # by capacity and number of parts
        self._captured_with: tuple[object, object] | None = None
        self._has_warned = False

    def __call__(self, parts: Sequence[Batch]) -> StepResult:
        """Run a step.

        Args:
            parts: a batch in the CPU's memory, whole or in parts; it need not be pinned.

        Returns:
            As ``training_step``.
        """
        with self._graphs.current(self._net.device):
            return self._run(parts)

    def _run(self, parts: Sequence[Batch]) -> StepResult:
        self.steps += 1
        capacity = capacity_of(Size.largest(map(_size, parts)), self._capacities)
        if capacity is None or len(parts) > self._recipe.accumulate or self._is_prevented():
            self.statistics.eager += 1
            moved = [part.to(self._net.device) for part in parts if len(part)]
            return self._train(moved, self._key.to(self._net.device))
        self._drop_stale_graphs()
        padded = [self._padded(part, capacity) for part in parts]
        if self._inbox is None:
            largest = self._padded(parts[0], Size.largest(self._capacities))
            needed = graphs.offsets(self._tensors([largest] * self._recipe.accumulate))[-1]
            slots = [self._graphs.new_slot(needed) for _ in range(_SLOTS)]
            self._inbox = Inbox(slots, self._net.device)
        received = self._inbox.receive(self._tensors(padded))
        step = self._steps.get((capacity, len(parts)))
        if step is None:
            step = self._steps[capacity, len(parts)] = Replayable(partial(self._compute, padded, received))
        step.run(self._capture, self.statistics)
        loss_sum, correct, norm = self._measured.clone()
        return StepResult(loss_sum, correct.long(), norm)

    def _capture(self, step: Callable[[], object]) -> Callable[[], object]:
        with _options(self._optimizer, "capturable", [True] * len(self._optimizer.param_groups)):
            return self._graphs.capture(step)

    def _compute(self, padded: Sequence[Batch], received: Sequence[Tensor]) -> None:
        """Run a step on received tensors, in memory that does not move. The padded batches only give the sizes."""
        rates, whole, key, *others = received
        parts, words = [], []
        for part, tokens, addresses, labels, *places in zip(padded, *[iter(others)] * 5, strict=True):
            pairs = replace(part.pairs, tokens=tokens, addresses=addresses)
            parts.append(replace(part, pairs=pairs, labels=labels, whole=whole))
            words.append((tokens, *places))
        with _options(self._optimizer, "lr", list(rates)), kept_gradient(self._table, words):
            result = self._train(parts, key, fused_clipping=True)
        self._measured.copy_(torch.stack([value.float() for value in result]))

    def _train(self, parts: Sequence[Batch], key: Tensor, **options: Any) -> StepResult:
        more = self._scaler, self._recipe, self._workers, self._class_weights, self._loss_backend
        with keyed_dropout(key):
            result = training_step(self._net, parts, self._optimizer, *more, **options)
        self._optimizer.zero_grad()  # later steps use the memory of these gradients
        return result

    @property
    def _key(self) -> Tensor:
        """The key of this step's dropout."""
        return torch.tensor([self._seed, self.steps])

    def _padded(self, part: Batch, capacity: Size) -> Batch:
        """Pad a batch with rows and pairs that change neither the loss nor the gradient."""
        pairs = replace(part.pairs, longest=(capacity.premise, capacity.hypothesis))
        pairs = pairs.with_capacity(capacity.rows, capacity.pairs, padding_idx=self._net.config.padding_idx)
        labels = cast(Tensor, part.labels)
        labels = torch.cat([labels, no_target(labels).expand(capacity.pairs - len(part))])
        return replace(part, pairs=pairs, labels=labels)

    def _tensors(self, padded: Sequence[Batch]) -> list[Tensor]:
        """All that differs between steps of a capacity, in the order in which ``_compute`` takes it.

        Numbers are tensors, too, because a graph would keep those of the captured step.
        """
        rates = torch.tensor([group["lr"] for group in self._optimizer.param_groups], dtype=torch.float32)
        whole = torch.tensor(padded[0].whole, dtype=torch.float32)
        tensors = [rates, whole, self._key]
        for part in padded:
            places = occurrences(part.pairs.tokens, self._net.config.padding_idx)
            tensors += [part.pairs.tokens, part.pairs.addresses, cast(Tensor, part.labels), *places]
        return tensors

    def _is_prevented(self) -> bool:
        """Whether steps cannot be captured now; warns the first time."""
        reason = self._obstacle()
        if reason is not None and not self._has_warned:
            warn(f"training steps run eagerly, not as CUDA graphs: {reason}")
            self._has_warned = True
        return reason is not None

    def _obstacle(self) -> str | None:
        if (reason := graphs.obstacle(self._net)) is not None:
            return reason
        groups = self._optimizer.param_groups
        weights = (weight for group in groups for weight in group["params"])
        if any(weight._backward_hooks or weight._post_accumulate_grad_hooks for weight in weights):
            return "parameters have hooks"
        scales = getattr(self._optimizer, "_step_supports_amp_scaling", False)  # in its kernel, as clipping needs
        if not scales or not all(group.get("fused") for group in groups):
            return "the optimizer was not made with fused=True"
        return self._obstacle_of_kernels

    def _drop_stale_graphs(self) -> None:
        """Forget graphs that were captured with other addresses or another mode."""
        now = len(self._optimizer.param_groups), graphs.fixed_by_graphs(self._net)
        state = self._optimizer.state
        if self._captured_with is None or self._captured_with[0] != now or self._captured_with[1] is not state:
            self._steps.clear()
            self._table = torch.zeros_like(self._net.embedding.weight)
            self._captured_with = now, state


def _size(part: Batch) -> Size:
    return Size(len(part), len(part.pairs.tokens), *part.pairs.longest)


@contextmanager
def _options(optimizer: torch.optim.Optimizer, name: str, values: Sequence[Any]) -> Iterator[None]:
    """Change an option of each group of parameters for a while."""
    groups = optimizer.param_groups
    before = [group[name] for group in groups]
    for group, value in zip(groups, values, strict=True):
        group[name] = value
    try:
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group[name] = value
