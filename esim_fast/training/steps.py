"""A training step, and evaluation."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import autocast_dtype
from ..data import Batch, EncodedPairs
from ..model import ESIM
from ..recipe import Recipe
from ..scoring import Forward, scored_batches
from .clipping import clipped_update
from .distributed import ALONE, Worker, add_gradients
from .losses import summed_loss


class StepResult(NamedTuple):
    """Scalars that a training step measured, on its device.

    Attributes:
        loss_sum: float, the loss summed over this process's pairs.
        correct: int64, how many of those pairs the network got right, with dropout; 0 in regression.
        gradient_norm: float, the norm of the whole batch's gradient before clipping.
    """

    loss_sum: Tensor
    correct: Tensor
    gradient_norm: Tensor


def training_step(
    net: nn.Module,
    parts: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    workers: int = 1,
    class_weights: Tensor | None = None,
    loss_backend: str | None = None,
    fused_clipping: bool = False,
) -> StepResult:
    """Run forward, backward, gradient clipping and the optimizer's update, without a GPU sync.

    The loss is cross entropy for labels and squared error for scores.

    Args:
        net: an ``esim_fast.ESIM``, or one wrapped in DistributedDataParallel.
        parts: a batch on the network's device, whole or in parts. The parts' gradients add up to the batch's.
        optimizer: updates the parameters.
        scaler: scales the loss under fp16; pass a disabled one otherwise.
        recipe: its precision, label smoothing and largest gradient norm are used.
        workers: how many processes share the batch. For a network that is not wrapped in DistributedDataParallel, this
            function adds up their gradients.
        class_weights: float32 ``[number of labels]``, the weight of each label's pairs.
        loss_backend: ``backend`` of ``esim_fast.ops.cross_entropy``.
        fused_clipping: whether the optimizer's kernel scales the gradients as it reads them; for optimizers made with
            ``fused=True``. Not the default, because it has not run on a GPU yet.
    """
    dtype, smoothing = autocast_dtype(recipe.precision), recipe.label_smoothing
    parallel = net if isinstance(net, DistributedDataParallel) else None  # which averages gradients
    optimizer.zero_grad()
    losses, correct = [], []
    for index, part in enumerate(parts):
        device, labels = part.pairs.tokens.device, cast(Tensor, part.labels)
        with contextlib.ExitStack() as stack:
            if parallel is not None and index < len(parts) - 1:
                stack.enter_context(parallel.no_sync())
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = net(part.pairs)
                loss, right = summed_loss(logits, labels, smoothing, class_weights, loss_backend)
            share = (1 if parallel is None else workers) / part.whole
            scaler.scale(loss * share).backward()
        losses.append(loss.detach())
        correct.append(right)
    if workers > 1 and parallel is None:
        add_gradients(weight for group in optimizer.param_groups for weight in group["params"])
    norm = clipped_update(optimizer, scaler, recipe.max_grad_norm, fused_clipping)
    return StepResult(cast(Tensor, sum(losses)), cast(Tensor, sum(correct)), norm)


class Score(NamedTuple):
    """Loss and accuracy on labeled pairs.

    Attributes:
        loss: mean cross entropy; in regression, mean squared error.
        accuracy: from 0 to 1; None in regression.
    """

    loss: float
    accuracy: float | None


def evaluate(
    net: ESIM,
    pairs: EncodedPairs,
    *,
    batch_size: int | None = 256,
    max_tokens: int | None = None,
    worker: Worker = ALONE,
    logits: Tensor | None = None,
    forward: Forward | None = None,
) -> Score:
    """Compute loss and accuracy on labeled pairs, without dropout.

    Args:
        net: the network.
        pairs: labeled pairs, in its word ids.
        batch_size: pairs in a batch, as in ``esim_fast.data.batches``.
        max_tokens: tokens in a batch, as in ``esim_fast.data.batches``.
        worker: this process's place among those that share the pairs. Each pair is counted once, and every process
            gets the result.
        logits: float32 zeros ``[n, number of labels]``, filled in place with the logits of all pairs. With several
            processes, on the network's device.
        forward: as in ``esim_fast.scoring.scored_batches``.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=net.device if worker.count > 1 else "cpu")
    how: dict[str, Any] = {"max_tokens": max_tokens, "shard": worker, "forward": forward}
    for batch, scores in scored_batches(net, pairs, batch_size, **how):
        labels = cast(Tensor, batch.labels)
        loss, correct = summed_loss(scores, labels)
        sums[0] += float(loss)
        sums[1] += int(correct)
        if logits is not None:
            logits[batch.indices] = scores.to(logits.device)
    loss, accuracy = (worker.total(sums) / len(pairs)).tolist()
    if logits is not None:
        worker.total(logits)  # each row is zero in every process except one
    return Score(loss, None if net.config.num_labels == 1 else accuracy)
