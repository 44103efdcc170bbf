"""A run: epochs of training steps, the best model kept, checkpoints to go on from."""

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..classifier import Classifier
from ..data import Batch, EncodedPairs, batches
from ..errors import DataError
from ..memory import short_of_memory
from ..recipe import Recipe
from .averaging import MovingAverage
from .bar import progress_bar
from .checkpoint import Checkpoint, random_states, set_random_states
from .curves import draw_curves
from .directory import RunDirectory
from .distributed import this_worker
from .figures import Figure, assess, check_dev, figure_of
from .losses import check_targets, class_weights, no_target
from .progress import EpochMetrics, Progress, StepMetrics
from .steps import StepResult, training_step

_EVALUATED = 256  # pairs at a time, at most
_PREFETCH = 4  # batches; while a GPU computes
_RATE_HINT = "a lower learning rate (--lr) may help"
_MEMORY_HINT = "smaller batches (--batch-size, --max-tokens) or more parts of them (--accumulate) take less"
_GPU_STEPS = 20  # between looks at what they measured: looking makes a GPU wait


class NotFiniteError(FloatingPointError):
    """A batch whose loss or gradient is not finite.

    Attributes:
        indices: where its pairs stand among the training pairs.
    """

    def __init__(self, message: str, indices: Sequence[int]) -> None:
        super().__init__(message)
        self.indices = list(indices)


class OtherSettingsError(DataError):
    """A checkpoint of a run that was started otherwise."""

    def __init__(self, name: str, before: object, now: object) -> None:
        super().__init__(f"this run began with {name} = {before!r}, not {now!r}: resume it with that")
        self.name, self.before, self.now = name, before, now


def _seed_of(seed: int, rank: int) -> int:
    """Another seed for each process, which no other run has; the first process keeps the run's."""
    return seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0]) >> 1


class Trainer:
    """One run of training. A new one stands where the run begins, or where its checkpoint stopped; :meth:`run` is the
    first to write anything and to seed torch's generators.

    Args:
        model: what is trained, in place, on its device. In a process group, one process for each worker, with equal
            weights.
        train, dev: labeled pairs, in the model's word ids. A network with one output learns scores (regression), which
            are floats; others learn labels, which are ids.
        recipe: how.
        directory: of what the run leaves behind, see :class:`esim_fast.training.directory.RunDirectory`.
        settings: what else a checkpoint has to agree in, such as a digest of the data.
        resume: go on from the directory's checkpoint, if there is one.
        checkpoint_steps: steps of an epoch after which a checkpoint is written; one is at the end of each epoch, too.
        on_begin: called by :meth:`run` when the directory could be written to, before the first step.
        on_epoch: called with what was measured, after an epoch is done and before its checkpoint is written.
        on_step: called with what each step has measured, some steps later on a GPU.
        should_stop: asked after each step; if it says so, a checkpoint is written and the run ends with
            KeyboardInterrupt. Several processes must all be told so after the same step.

    Raises:
        ValueError: there are no pairs, or their labels are not what the network learns; the recipe does not fit them;
            dev does not define what is to choose the best epoch; ``checkpoint_steps`` is not positive.
        DataError: the checkpoint is damaged, or of another run.
        FileExistsError: the directory holds a model, and ``resume`` is not set.
        OSError: the directory or its checkpoint cannot be read.
    """

    def __init__(
        self,
        model: Classifier,
        train: EncodedPairs,
        dev: EncodedPairs,
        recipe: Recipe,
        directory: str | os.PathLike[str],
        *,
        settings: dict[str, Any] | None = None,
        resume: bool = False,
        checkpoint_steps: int = 1000,
        on_begin: Callable[[], object] | None = None,
        on_epoch: Callable[[EpochMetrics], object] | None = None,
        on_step: Callable[[StepMetrics], object] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        for name, pairs in (("train", train), ("dev", dev)):
            check_targets(name, pairs, model)
        if checkpoint_steps < 1:
            raise ValueError(f"checkpoint_steps must be positive, got {checkpoint_steps}")
        self.train, self.dev, self.recipe = train, dev, recipe
        self.figure: Figure = figure_of(recipe.best_by, model.labels)  # by which epochs are compared
        check_dev(self.figure, model, dev)
        self.class_weights = class_weights(recipe, model, train)
        self.checkpoint_steps = checkpoint_steps
        self.on_begin, self.on_epoch, self.on_step, self.should_stop = on_begin, on_epoch, on_step, should_stop
        self.directory = RunDirectory(directory)
        self.worker = this_worker()
        self.net, self.device, self.is_regression = model.net, model.net.device, model.task == "regression"
        # The number of epochs may change between a run and its continuation.
        self.settings = {**asdict(recipe), **(settings or {})}
        if self.figure == figure_of(None, model.labels):  # however it is asked for
            self.settings["best_by"] = None
        del self.settings["epochs"], self.settings["patience"]

        parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        vectors = [parameter for parameter in parameters if parameter is self.net.embedding.weight]
        others = [parameter for parameter in parameters if parameter is not self.net.embedding.weight]
        groups = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.average = MovingAverage(self.net, recipe.ema_decay) if recipe.ema_decay else None
        self.progress = Progress()
        self.steps_of_epoch = 0  # in hand
        self.look_every = _GPU_STEPS if self.device.type == "cuda" else 1  # steps
        # What is evaluated and saved.
        self.model = copy.copy(model)
        self.model.training = {"recipe": recipe.as_dict(), **(model.training or {})}
        if self.average is not None:
            self.model.net = self.average.net

        self._random: dict[str, Tensor] = {}  # states of the generators to go on from
        self.worker.wait()  # for what an earlier run of these processes writes
        checkpoint = self.directory.open(resume)
        self.resumed = checkpoint is not None
        if checkpoint is not None:
            self._restore(checkpoint)
        if len(set(self.worker.gather((self.progress.epoch, self.progress.batch)))) > 1:
            raise DataError(f"{self.directory.path}: processes find different checkpoints; all must see the same files")
        self.parallel: nn.Module = self.net

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or the last ones brought nothing."""
        return self.recipe.is_over(self.progress.ranks(self.figure))

    @property
    def best(self) -> EpochMetrics | None:
        """What the best epoch so far measured, whose model is kept."""
        return self.progress.best(self.figure)

    def run(self) -> list[EpochMetrics]:
        """Trains to the end, and leaves the best model, the last one, metrics and curves in the directory.

        Returns:
            What each epoch measured, earlier ones of a resumed run included.

        Raises:
            NotFiniteError: a batch's loss or gradient, or the loss on dev, is not finite. The last checkpoint is older.
            MemoryError: a batch was too large.
            OSError: the directory cannot be written to; what it had is still there.
            KeyboardInterrupt: ``should_stop`` said so; a checkpoint is written.
        """
        torch.manual_seed(_seed_of(self.recipe.seed, self.worker.rank))  # of dropout
        set_random_states(self._random, self.device)
        if self.worker.count > 1 and self.parallel is self.net:
            self.parallel = DistributedDataParallel(self.net, gradient_as_bucket_view=True)
        if self.worker.leads:
            self.directory.begin(self.model, self.progress.history, described=self.resumed and self.is_over)
        if self.on_begin is not None:
            self.on_begin()
        try:
            if not self.resumed:  # a full disk shows now, and not after an epoch
                self._save_checkpoint()
            while not self.is_over:
                self._train_epoch()
                self._end_epoch()
        except BaseException:
            with contextlib.suppress(Exception):  # which would hide what went wrong
                self._draw_curves()
            raise
        self._draw_curves()
        self.worker.wait()  # until all is written
        return self.progress.history

    def _draw_curves(self) -> None:
        if self.worker.leads and self.best is not None:
            draw_curves(self.progress.history, self.best, self.figure, self.directory.curves)

    def _train_epoch(self) -> None:
        """Goes through what is left of the epoch in hand."""
        recipe, progress, on_gpu = self.recipe, self.progress, self.device.type == "cuda"
        self.net.train()
        loader = batches(
            self.train,
            None if recipe.max_tokens else recipe.batch_size,
            max_tokens=recipe.max_tokens,
            shuffle=True,
            seed=recipe.seed,
            epoch=progress.epoch,
            start=progress.batch,
            shard=self.worker,
            parts=recipe.accumulate,
            prefetch=_PREFETCH if on_gpu else 0,
            pin_memory=on_gpu,
        )
        left = len(loader) // recipe.accumulate
        self.steps_of_epoch = progress.batch + left
        unseen: list[tuple[StepResult, list[Tensor]]] = []  # steps that nobody has looked at, and their pairs
        begin = time.perf_counter()
        title = f"epoch {progress.epoch}/{recipe.epochs}"
        with progress_bar(title, progress.batch, self.steps_of_epoch, disable=not self.worker.leads) as bar:
            for done, parts in enumerate(zip(*[iter(loader)] * recipe.accumulate, strict=True), start=1):
                unseen.append((self._step(parts), [part.indices for part in parts]))
                progress.batch += 1
                progress.steps += 1
                bar.update()
                stopping = self.should_stop is not None and self.should_stop()
                saving = stopping or done == left or progress.batch % self.checkpoint_steps == 0
                if saving or len(unseen) == self.look_every:
                    self._look(unseen)
                    unseen.clear()
                    loss, accuracy = (total / max(1, progress.seen) for total in (progress.loss_sum, progress.correct))
                    said = "" if self.is_regression else f", accuracy {accuracy:.2%}"
                    bar.set_postfix_str(f"loss {loss:.4f}{said}", refresh=False)
                if saving and (stopping or done < left):
                    progress.seconds += time.perf_counter() - begin
                    begin = time.perf_counter()
                    self._save_checkpoint()
                if stopping:
                    raise KeyboardInterrupt
        progress.seconds += time.perf_counter() - begin

    def _step(self, parts: Sequence[Batch]) -> StepResult:
        """One training step on (this process's share of) a batch."""
        progress = self.progress
        rate = self.recipe.rate(progress.steps, progress.ranks(self.figure))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.worker.count > 1:  # gradients are exchanged of all parameters, so that each part has to have some
            parts = [part if len(part.pairs.tokens) else self._with_words(part) for part in parts]
        else:
            parts = [part for part in parts if len(part)]
        with _naming_what_is_too_large(lambda: self._name(parts)):
            moved = [part.to(self.device) for part in parts]
            result = training_step(
                self.parallel, moved, self.optimizer, self.scaler, self.recipe, self.worker.count, self.class_weights
            )
        if self.average is not None:
            self.average.update(self.net, progress.steps + 1, self.steps_of_epoch)
        return result

    def _with_words(self, part: Batch) -> Batch:
        """A part without words, and a pair that has some, but counts for nothing."""
        extended = self.train[[*part.indices.tolist(), int(self.train.lengths.sum(1).argmax())]]
        labels = cast(Tensor, part.labels)
        labels = torch.cat([labels, no_target(labels)])
        return replace(extended, labels=labels, whole=part.whole)

    def _look(self, unseen: list[tuple[StepResult, list[Tensor]]]) -> None:
        """Adds up what steps have measured, and sees to it that it is finite."""
        progress = self.progress
        measured = torch.stack([torch.stack([value.float() for value in result]) for result, _ in unseen]).tolist()
        first = progress.batch - len(unseen) + 1
        for batch, ((loss, correct, norm), (_, indices)) in enumerate(zip(measured, unseen, strict=True), start=first):
            for name, value in (("loss", loss), ("gradient's norm", norm)):
                # In fp16 a gradient may overflow: the scaler passes over such steps.
                if not math.isfinite(value) and not (name != "loss" and self.scaler.is_enabled()):
                    # The norm is that of all processes: the pairs of this one need not be the cause.
                    guilty = torch.cat(indices).tolist() if name == "loss" or self.worker.count == 1 else []
                    where = f"epoch {progress.epoch}, batch {batch}"
                    raise NotFiniteError(f"{where}: the {name} is {value}; {_RATE_HINT}", guilty)
            progress.loss_sum += loss
            progress.correct += int(correct)
            progress.seen += sum(map(len, indices))
            if self.on_step is not None and self.worker.leads:
                step = progress.steps - progress.batch + batch
                rate = self.recipe.rate(step - 1, progress.ranks(self.figure))
                self.on_step(StepMetrics(step, sum(map(len, indices)), loss, rate, norm))

    def _end_epoch(self) -> None:
        """Evaluates, and keeps what the epoch has brought."""
        begin = time.perf_counter()
        progress, ranks = self.progress, self.progress.ranks(self.figure)
        loss_sum, correct = self._settle()
        on_dev = self._assess()
        progress.seconds += time.perf_counter() - begin
        metrics = EpochMetrics(
            epoch=progress.epoch,
            train_loss=loss_sum / len(self.train),
            train_accuracy=None if self.is_regression else correct / len(self.train),
            learning_rate=self.recipe.rate(progress.steps - 1, ranks),
            seconds=round(progress.seconds, 3),
            **{f"dev_{name}": value for name, value in on_dev.items()},
        )
        progress.history.append(metrics)
        progress.epoch += 1
        progress.batch = progress.correct = progress.seen = 0
        progress.loss_sum = progress.seconds = 0.0
        if self.worker.leads:
            self.directory.keep(self.model, progress.history, best=metrics is self.best)
            if self.on_epoch is not None:
                self.on_epoch(metrics)
        # Last, so that an epoch whose results were not all kept is run again.
        self._save_checkpoint()

    def _assess(self) -> dict[str, Any]:
        """On the dev pairs, in batches that take no more memory than training does."""
        recipe = self.recipe
        size = None if recipe.max_tokens else min(_EVALUATED, max(1, 4 * recipe.batch_size // recipe.accumulate))
        with _naming_what_is_too_large(lambda: f"epoch {self.progress.epoch}, evaluation on dev"):
            sizes = {"batch_size": size, "max_tokens": recipe.max_tokens}
            found = assess(self.figure, self.model, self.dev, worker=self.worker, **sizes)
        if not math.isfinite(found["loss"]):
            raise NotFiniteError(f"epoch {self.progress.epoch}: the loss on dev is {found['loss']}; {_RATE_HINT}", [])
        return found

    def _settle(self) -> tuple[float, int]:
        """Leaves the sums of all workers with the one that leads; returns those of loss and correct answers to all."""
        progress = self.progress
        sums = torch.tensor([progress.loss_sum, progress.correct, progress.seen], dtype=torch.float64)
        loss_sum, correct, seen = self.worker.total(sums.to(self.device) if self.worker.count > 1 else sums).tolist()
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        if self.worker.leads:
            progress.loss_sum, progress.correct, progress.seen = loss_sum, int(correct), int(seen)
        return loss_sum, int(correct)

    def _save_checkpoint(self) -> None:
        self._settle()
        self._random = random_states(self.device)
        random = self.worker.gather(self._random)
        if self.worker.leads:
            states = {name: owner.state_dict() for name, owner in self._stateful().items()}
            Checkpoint(self.settings, asdict(self.progress), states, random).save(self.directory.checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            for name, now in self.settings.items():
                if checkpoint.settings.get(name) != now:
                    raise OtherSettingsError(name, checkpoint.settings.get(name), now)
            self.progress = Progress.from_dict(checkpoint.progress)
            self._random = checkpoint.restore(self._stateful(), self.device, self.worker.rank)
        except OtherSettingsError:
            raise
        except DataError as error:
            raise DataError(f"{self.directory.checkpoint}: {error}") from error
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of a tensor
            raise DataError(f"{self.directory.checkpoint}: not a checkpoint of esim-fast: {error}") from error
        if not self.worker.leads:  # has the sums of all
            self.progress.loss_sum, self.progress.correct, self.progress.seen = 0.0, 0, 0

    def _stateful(self) -> dict[str, Any]:
        average = {} if self.average is None else {"average": self.average.net}
        return {"net": self.net, "optimizer": self.optimizer, "scaler": self.scaler, **average}

    def _name(self, parts: Sequence[Batch]) -> str:
        """Says which batch is in hand, and how large it is."""
        words = sum(len(part.pairs.tokens) for part in parts)
        longest = max(int(self.train.lengths[part.indices.numpy()].max()) for part in parts)
        largest = max(len(part) for part in parts)
        divided = "" if len(parts) == 1 else f" in parts of {largest}"
        return (
            f"epoch {self.progress.epoch}, batch {self.progress.batch + 1} ({sum(map(len, parts))} pairs{divided}, "
            f"{words} words, sentences of up to {longest})"
        )


@contextlib.contextmanager
def _naming_what_is_too_large(what: Callable[[], str]) -> Iterator[None]:
    """Turns what says that memory is short into a MemoryError that says what for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = short_of_memory(error)
        if reason is None:
            raise
        raise MemoryError(f"{what()}: {reason}; {_MEMORY_HINT}") from error
