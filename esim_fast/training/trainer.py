"""The training loop: Adam, clipping, a learning rate that halves when dev accuracy stalls, the best model kept."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..classifier import Classifier
from ..data import Batch, EncodedPairs, batches
from .checkpoint import Checkpoint

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_PREFETCH = 4  # batches; while a GPU computes
_STEPS_PER_UPDATE = 20  # of the progress bar: reading the loss makes a GPU wait


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's.

    Raises:
        ValueError: a value makes no sense.
    """

    epochs: int = 10
    batch_size: int = 32
    max_words: int | None = None  # in a batch, whose number of pairs is then as it comes
    learning_rate: float = 4e-4
    clip: float = 10.0
    seed: int = 0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "clip"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.max_words is not None and self.max_words < 1:
            raise ValueError(f"max_words must be positive, got {self.max_words}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2**63 - 1, got {self.seed}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``; accuracies are fractions of one, training figures are taken with dropout."""

    epoch: int
    train_loss: float
    train_accuracy: float
    dev_accuracy: float
    learning_rate: float
    seconds: float


def accuracy(model: Classifier, pairs: EncodedPairs) -> float:
    """The fraction of labelled pairs that the model gets right."""
    return float((model.logits(pairs).argmax(1).numpy() == pairs.labels).mean())


def fit(
    model: Classifier,
    train: EncodedPairs,
    dev: EncodedPairs,
    recipe: Recipe,
    *,
    on_best: Callable[[], object],
    on_epoch: Callable[[EpochMetrics], object],
    checkpoint_path: Path | None = None,
    resume_from: Checkpoint | None = None,
    settings: dict[str, Any] | None = None,
) -> float:
    """Trains ``model.net`` in place, on its device.

    Args:
        on_best: called when dev accuracy is the best so far, before ``on_epoch``: the moment to save the model.
        on_epoch: called after each epoch, before its checkpoint is saved, with what was measured.
        checkpoint_path: where to leave the state of the run after each epoch.
        resume_from: where to go on.
        settings: kept in checkpoints.

    Returns:
        The best dev accuracy.

    Raises:
        DataError: ``resume_from`` belongs to another run.
        FloatingPointError: the loss of an epoch is not finite.
    """
    net, device = model.net, model.net.device
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=recipe.learning_rate, fused=device.type in ("cpu", "cuda"))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, mode="max", factor=0.5, patience=0)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    stateful = {"net": net, "optimiser": optimiser, "scheduler": scheduler, "scaler": scaler}

    torch.manual_seed(recipe.seed)  # of dropout
    done, best, history = 0, -math.inf, []
    if resume_from is not None:
        done, best, history = resume_from.epoch, resume_from.best_accuracy, list(resume_from.metrics)
        resume_from.restore(stateful, device)

    for epoch in range(done + 1, recipe.epochs + 1):
        begin = time.perf_counter()
        learning_rate = optimiser.param_groups[0]["lr"]
        loss, train_accuracy = _run_epoch(net, train, recipe, epoch, optimiser, scaler)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss of epoch {epoch} is {loss}: try a lower learning rate")
        dev_accuracy = accuracy(model, dev)
        scheduler.step(dev_accuracy)
        metrics = EpochMetrics(
            epoch, loss, train_accuracy, dev_accuracy, learning_rate, round(time.perf_counter() - begin, 3)
        )
        history.append(asdict(metrics))
        if dev_accuracy > best:
            best = dev_accuracy
            on_best()
        on_epoch(metrics)
        # Last, so that an epoch whose results were not all kept is run again.
        if checkpoint_path is not None:
            progress = {"settings": settings or {}, "epoch": epoch, "best_accuracy": best, "metrics": history}
            Checkpoint.take(stateful, device, **progress).save(checkpoint_path)
    return best


def training_step(
    net: nn.Module, batch: Batch, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Forward and backward pass, clipping and update; a GPU is not waited for, but for the scaler of fp16.

    Returns:
        The mean loss and the logits ``[B, num_labels]`` of the batch, detached.
    """
    device, autocast_dtype = batch.pairs.tokens.device, PRECISIONS[recipe.precision]
    with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
        logits = net(batch.pairs)
        loss = nn.functional.cross_entropy(logits, batch.labels)
    optimiser.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, recipe.clip)
    scaler.step(optimiser)
    scaler.update()
    return loss.detach(), logits.detach()


def _run_epoch(
    net: nn.Module,
    train: EncodedPairs,
    recipe: Recipe,
    epoch: int,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[float, float]:
    """One pass over the training pairs; returns mean loss and accuracy."""
    device = net.device
    loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    net.train()
    on_gpu = device.type == "cuda"
    loader = batches(
        train,
        None if recipe.max_words else recipe.batch_size,
        max_words=recipe.max_words,
        shuffle=True,
        seed=recipe.seed,
        epoch=epoch,
        prefetch=_PREFETCH if on_gpu else 0,
        pin_memory=on_gpu,
    )
    interval = 0.2 if sys.stderr.isatty() else 10.0  # seconds; a log file needs few lines
    description = f"epoch {epoch}/{recipe.epochs}"
    bar = tqdm(loader, desc=description, unit="batch", leave=False, dynamic_ncols=True, mininterval=interval)
    for step, batch in enumerate(bar, start=1):
        batch = batch.to(device)
        loss, logits = training_step(net, batch, optimiser, scaler, recipe)
        loss_sum += loss * len(batch)
        correct += (logits.argmax(1) == batch.labels).sum()
        seen += len(batch)
        if step % _STEPS_PER_UPDATE == 0:
            bar.set_postfix(
                loss=f"{float(loss_sum) / seen:.4f}", accuracy=f"{float(correct) / seen:.2%}", refresh=False
            )
    return float(loss_sum) / seen, float(correct) / seen
