"""What is done with one batch: a training step, and evaluation."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import autocast_dtype
from ..data import Batch, EncodedPairs
from ..model import ESIM
from ..recipe import Recipe
from ..scoring import scored_batches
from .distributed import ALONE, Worker
from .losses import correct_answers, summed_loss


class StepResult(NamedTuple):
    """What a training step measured, on the device of its tensors, which is not waited for."""

    loss_sum: Tensor  # [], over this process's pairs of the batch
    correct: Tensor  # [], how many of them the network got right, with dropout; 0 of scores
    gradient_norm: Tensor  # [], before clipping, of the whole batch


def training_step(
    net: nn.Module,
    parts: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    workers: int = 1,
    class_weights: Tensor | None = None,
) -> StepResult:
    """Forward and backward pass, clipping and update; a GPU is not waited for.

    The loss is the cross entropy of labels, or the squared error of scores.

    Args:
        net: an :class:`esim_fast.ESIM`, or one in DistributedDataParallel.
        parts: one batch, on the network's device, or the parts of one; their gradients add up to the batch's.
        workers: processes that work on the batch, of whose gradients DistributedDataParallel takes the average.
        class_weights: float32 ``[number of labels]``, how much the pairs of each label count.
    """
    dtype, smoothing = autocast_dtype(recipe.precision), recipe.label_smoothing
    optimizer.zero_grad()
    losses, correct = [], []
    for index, part in enumerate(parts):
        device, labels = part.pairs.tokens.device, cast(Tensor, part.labels)
        with contextlib.ExitStack() as stack:
            if isinstance(net, DistributedDataParallel) and index < len(parts) - 1:
                stack.enter_context(net.no_sync())
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = net(part.pairs)
                loss = summed_loss(logits, labels, smoothing, class_weights)
            scaler.scale(loss * (workers / part.whole)).backward()
        losses.append(loss.detach())
        correct.append(correct_answers(logits.detach(), labels))
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # On a CPU, skip multiplying by one. On a GPU, reading the norm would make the CPU wait.
    if norm.device.type != "cpu" or not norm <= recipe.max_grad_norm:
        nn.utils.clip_grads_with_norm_(parameters, recipe.max_grad_norm, norm)
    scaler.step(optimizer)
    scaler.update()
    return StepResult(cast(Tensor, sum(losses)), cast(Tensor, sum(correct)), norm)


class Score(NamedTuple):
    """How good a network is on labeled pairs."""

    loss: float  # mean cross entropy; of scores, mean squared error
    accuracy: float | None  # fraction of one; of scores there is none


def evaluate(
    net: ESIM,
    pairs: EncodedPairs,
    *,
    batch_size: int | None = 256,
    max_tokens: int | None = None,
    worker: Worker = ALONE,
    logits: Tensor | None = None,
) -> Score:
    """Loss and accuracy on labeled pairs, without dropout.

    Args:
        batch_size, max_tokens: of what is evaluated at a time, as for :func:`esim_fast.data.batches`.
        worker: several processes share the pairs out: each pair is counted once, and all of them get the result.
        logits: zeros ``[n, number of labels]`` that become the raw scores of all pairs; of several processes, on the
            network's device.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=net.device if worker.count > 1 else "cpu")
    for batch, scores in scored_batches(net, pairs, batch_size, max_tokens=max_tokens, shard=worker):
        labels = cast(Tensor, batch.labels)
        sums[0] += float(summed_loss(scores, labels))
        sums[1] += int(correct_answers(scores, labels))
        if logits is not None:
            logits[batch.indices] = scores.to(logits.device)
    loss, accuracy = (worker.total(sums) / len(pairs)).tolist()
    if logits is not None:
        worker.total(logits)  # each of its rows is zero in all processes but one
    return Score(loss, None if net.config.num_labels == 1 else accuracy)
