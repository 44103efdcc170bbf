"""A training run: epochs of steps, the best model, and checkpoints to resume from."""

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..captured import CapturedForward
from ..classifier import Classifier
from ..data import Batch, Batches, EncodedPairs, batches
from ..errors import DataError
from ..graphs import Statistics, wants_graphs
from ..memory import short_of_memory
from ..recipe import Recipe
from .averaging import MovingAverage
from .bar import progress_bar
from .capacities import plan_capacities, step_sizes
from .capture import CapturedStep
from .checkpoint import Checkpoint, random_states, set_random_states
from .curves import draw_curves
from .directory import RunDirectory
from .distributed import this_worker
from .figures import Figure, assess, check_dev, figure_of
from .losses import check_targets, class_weights, no_target
from .progress import EpochMetrics, Progress, StepMetrics
from .steps import StepResult, training_step

_EVALUATED = 256  # most pairs in a batch of the evaluation
_PREFETCH = 4  # batches prepared while a GPU computes
_RATE_HINT = "a lower learning rate (--lr) may help"
_MEMORY_HINT = "use smaller batches (--batch-size, --max-tokens) or gradient accumulation (--accumulate)"
_GPU_STEPS = 20  # between reads of a GPU's results, each of which synchronizes


class NotFiniteError(FloatingPointError):
    """The loss or the gradient of a batch is not finite.

    Attributes:
        indices: the batch's pairs, as indices into the training pairs.
    """

    def __init__(self, message: str, indices: Sequence[int]) -> None:
        super().__init__(message)
        self.indices = list(indices)


class OtherSettingsError(DataError):
    """The checkpoint belongs to a run with other settings."""

    def __init__(self, name: str, before: object, now: object) -> None:
        super().__init__(f"this run began with {name} = {before!r}, not {now!r}: resume it with the same value")
        self.name, self.before, self.now = name, before, now


def _seed_of(seed: int, rank: int) -> int:
    """A seed for each process: the first one uses the run's, the others derive theirs from it."""
    return seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0]) >> 1


class Trainer:
    """Train a classifier, from the start or from a checkpoint.

    Creating a trainer reads the checkpoint, if any. It writes nothing and leaves torch's generators alone until
    ``run``.

    Args:
        model: the classifier, trained in place on its device. In a process group, every process passes one with the
            same weights.
        train: labeled pairs to train on, in the model's word ids. A network with one output learns float scores
            (regression); other networks learn label ids.
        dev: labeled pairs that choose the best epoch, in the same form.
        recipe: the hyperparameters.
        directory: where the run writes its files, see ``esim_fast.training.directory.RunDirectory``.
        settings: other values that must match the checkpoint's, such as a digest of the data.
        resume: continue from the directory's checkpoint, if there is one.
        checkpoint_steps: steps between the checkpoints within an epoch. Another is written at its end.
        cuda_graphs: ``"on"`` captures training steps (``CapturedStep``) and the evaluation on dev as CUDA graphs,
            ``"off"`` runs them eagerly. ``"auto"`` is ``"off"``, because captured steps have not run on a GPU yet.
        on_begin: called by ``run`` once the directory has been written to, before the first step.
        on_epoch: called with the metrics of each epoch, before its checkpoint is written.
        on_step: called with the metrics of each step; on a GPU, some steps later.
        should_stop: called after each step. If it returns true, the run writes a checkpoint and raises
            KeyboardInterrupt. In a process group, it must return true after the same step in every process.

    Raises:
        ValueError: there are no pairs, their labels do not suit the network, the recipe does not suit them, the figure
            that chooses the best epoch is not defined on dev, ``checkpoint_steps`` is not positive, or steps cannot be
            captured on the model's device.
        DataError: the checkpoint is damaged or belongs to another run.
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
        cuda_graphs: str = "auto",
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
        self.figure: Figure = figure_of(recipe.best_by, model.labels)
        check_dev(self.figure, model, dev)
        self.class_weights = class_weights(recipe, model, train)
        self.checkpoint_steps = checkpoint_steps
        self.on_begin, self.on_epoch, self.on_step, self.should_stop = on_begin, on_epoch, on_step, should_stop
        self.directory = RunDirectory(directory)
        self.worker = this_worker()
        self.net, self.device, self.is_regression = model.net, model.net.device, model.task == "regression"
        self.settings = {**asdict(recipe), **(settings or {})}
        captures = wants_graphs(cuda_graphs, self.device)
        self.settings["cuda_graphs"] = "on" if captures else None  # dropout draws other masks then
        if self.figure == figure_of(None, model.labels):  # the default, whether named or not
            self.settings["best_by"] = None
        del self.settings["epochs"], self.settings["patience"]  # a resumed run may change them

        parameters = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        vectors = [parameter for parameter in parameters if parameter is self.net.embedding.weight]
        others = [parameter for parameter in parameters if parameter is not self.net.embedding.weight]
        groups = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.average = MovingAverage(self.net, recipe.ema_decay) if recipe.ema_decay else None
        self.progress = Progress()
        self.steps_of_epoch = 0
        self.look_every = _GPU_STEPS if self.device.type == "cuda" else 1  # steps
        # The model to evaluate and save, with averaged weights if the recipe asks for them.
        self.model = copy.copy(model)
        self.model.training = {"recipe": recipe.as_dict(), **(model.training or {})}
        if self.average is not None:
            self.model.net = self.average.net

        self._random: dict[str, Tensor] = {}  # states of the generators, from the checkpoint
        self.worker.wait()  # an earlier run of these processes may still be writing
        checkpoint = self.directory.open(resume)
        self.resumed = checkpoint is not None
        if checkpoint is not None:
            self._restore(checkpoint)
        if len(set(self.worker.gather((self.progress.epoch, self.progress.batch)))) > 1:
            raise DataError(
                f"{self.directory.path}: processes see different checkpoints; the directory must be on a shared disk"
            )
        self.parallel: nn.Module = self.net
        self.captured: CapturedStep | None = None
        self.forward: CapturedForward | None = None  # of the evaluation
        if captures:
            # Always those of the first epoch, so that a resumed run has the same.
            capacities = plan_capacities(step_sizes(self._batches(epoch=1), recipe.accumulate))
            trained = self.net, self.optimizer, self.scaler, recipe, capacities, self.worker.count, self.class_weights
            self.captured = CapturedStep(*trained, seed=_seed_of(recipe.seed, self.worker.rank))
            self.forward = CapturedForward(self.model.net)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done or patience has run out."""
        return self.recipe.is_over(self.progress.ranks(self.figure))

    @property
    def best(self) -> EpochMetrics | None:
        """Metrics of the best epoch so far, whose model the directory holds."""
        return self.progress.best(self.figure)

    def run(self) -> list[EpochMetrics]:
        """Train to the end and write the best model, the last model, metrics and curves to the directory.

        Returns:
            Metrics of every epoch, including those before a resumption.

        Raises:
            NotFiniteError: the loss or gradient of a batch, or the loss on dev, is not finite. No checkpoint is
                written; the last one is intact.
            MemoryError: a batch was too large.
            OSError: the directory cannot be written to. Every file in it is complete, old or new.
            KeyboardInterrupt: ``should_stop`` returned true. A checkpoint has been written.
        """
        torch.manual_seed(_seed_of(self.recipe.seed, self.worker.rank))  # for dropout
        set_random_states(self._random, self.device)
        if self.worker.count > 1 and self.captured is None and self.parallel is self.net:
            self.parallel = DistributedDataParallel(self.net, gradient_as_bucket_view=True)
        if self.worker.leads:
            self.directory.begin(self.model, self.progress.history, described=self.resumed and self.is_over)
        if self.on_begin is not None:
            self.on_begin()
        try:
            if not self.resumed:  # so that a full disk fails now and not after an epoch
                self._save_checkpoint()
            while not self.is_over:
                self._train_epoch()
                self._end_epoch()
        except BaseException:
            with contextlib.suppress(Exception):  # it would hide the first error
                self._draw_curves()
            raise
        self._draw_curves()
        self.worker.wait()  # until the first process has written everything
        return self.progress.history

    def _draw_curves(self) -> None:
        if self.worker.leads and self.best is not None:
            draw_curves(self.progress.history, self.best, self.figure, self.directory.curves)

    def _train_epoch(self) -> None:
        """Train on the remaining batches of the current epoch."""
        recipe, progress = self.recipe, self.progress
        self.net.train()
        if self.captured is not None:
            self.captured.statistics = Statistics(progress.replayed, progress.eager, progress.captured)
            self.captured.steps = progress.steps
        loader = self._batches(progress.epoch, start=progress.batch)
        left = len(loader) // recipe.accumulate
        self.steps_of_epoch = progress.batch + left
        unseen: list[tuple[StepResult, list[Tensor]]] = []  # results not read yet, and the indices of their pairs
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

    def _batches(self, epoch: int, start: int = 0) -> Batches:
        """This process's parts of an epoch's batches."""
        recipe, on_gpu = self.recipe, self.device.type == "cuda"
        return batches(
            self.train,
            None if recipe.max_tokens else recipe.batch_size,
            max_tokens=recipe.max_tokens,
            shuffle=True,
            seed=recipe.seed,
            epoch=epoch,
            start=start,
            shard=self.worker,
            parts=recipe.accumulate,
            prefetch=_PREFETCH if on_gpu else 0,
            pin_memory=on_gpu and self.captured is None,  # captured steps have pinned memory of their own
        )

    def _step(self, parts: Sequence[Batch]) -> StepResult:
        """One training step on this process's share of a batch."""
        progress = self.progress
        rate = self.recipe.rate(progress.steps, progress.ranks(self.figure))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.worker.count > 1:  # every process needs a gradient of every parameter, from every part
            parts = [part if len(part.pairs.tokens) else self._with_words(part) for part in parts]
        else:
            parts = [part for part in parts if len(part)]
        with _naming_what_is_too_large(lambda: self._name(parts)):
            if self.captured is not None:
                result = self.captured(parts)
            else:
                result = training_step(
                    self.parallel,
                    [part.to(self.device) for part in parts],
                    self.optimizer,
                    self.scaler,
                    self.recipe,
                    self.worker.count,
                    self.class_weights,
                )
        if self.average is not None:
            self.average.update(self.net, progress.steps + 1, self.steps_of_epoch)
        return result

    def _with_words(self, part: Batch) -> Batch:
        """An empty part, extended by a pair that has words but no weight in the loss."""
        extended = self.train[[*part.indices.tolist(), int(self.train.lengths.sum(1).argmax())]]
        labels = cast(Tensor, part.labels)
        labels = torch.cat([labels, no_target(labels)])
        return replace(extended, labels=labels, whole=part.whole)

    def _look(self, unseen: list[tuple[StepResult, list[Tensor]]]) -> None:
        """Read the results of steps, check that they are finite and add them up."""
        progress = self.progress
        measured = torch.stack([torch.stack([value.float() for value in result]) for result, _ in unseen]).tolist()
        if self.captured is not None:
            progress.replayed, progress.eager, progress.captured = astuple(self.captured.statistics)
        first = progress.batch - len(unseen) + 1
        for batch, ((loss, correct, norm), (_, indices)) in enumerate(zip(measured, unseen, strict=True), start=first):
            for name, value in (("loss", loss), ("gradient's norm", norm)):
                # In fp16 a gradient may overflow; the scaler skips such steps.
                if not math.isfinite(value) and not (name != "loss" and self.scaler.is_enabled()):
                    # The norm is over all processes, so the cause may lie in another one's pairs.
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
        """Evaluate on dev and save the epoch's models and metrics."""
        begin = time.perf_counter()
        progress, ranks = self.progress, self.progress.ranks(self.figure)
        loss_sum, correct = self._settle()
        on_dev = self._assess()
        progress.seconds += time.perf_counter() - begin
        graphs: dict[str, int] = {}
        if self.captured is not None:
            graphs = {"replayed_steps": progress.replayed, "eager_steps": progress.eager}
            graphs["captured_graphs"] = progress.captured
        metrics = EpochMetrics(
            epoch=progress.epoch,
            train_loss=loss_sum / len(self.train),
            train_accuracy=None if self.is_regression else correct / len(self.train),
            learning_rate=self.recipe.rate(progress.steps - 1, ranks),
            seconds=round(progress.seconds, 3),
            **{f"dev_{name}": value for name, value in on_dev.items()},
            **graphs,
        )
        progress.history.append(metrics)
        progress.epoch += 1
        progress.batch = progress.correct = progress.seen = 0
        progress.replayed = progress.eager = progress.captured = 0
        progress.loss_sum = progress.seconds = 0.0
        if self.worker.leads:
            self.directory.keep(self.model, progress.history, best=metrics is self.best)
            if self.on_epoch is not None:
                self.on_epoch(metrics)
        # Last, so that an epoch whose results were not all saved runs again.
        self._save_checkpoint()

    def _assess(self) -> dict[str, Any]:
        """Evaluate on dev, in batches that take no more memory than training."""
        recipe = self.recipe
        size = None if recipe.max_tokens else min(_EVALUATED, max(1, 4 * recipe.batch_size // recipe.accumulate))
        with _naming_what_is_too_large(lambda: f"epoch {self.progress.epoch}, evaluation on dev"):
            how = {"batch_size": size, "max_tokens": recipe.max_tokens, "forward": self.forward}
            found = assess(self.figure, self.model, self.dev, worker=self.worker, **how)
        if not math.isfinite(found["loss"]):
            raise NotFiniteError(f"epoch {self.progress.epoch}: the loss on dev is {found['loss']}; {_RATE_HINT}", [])
        return found

    def _settle(self) -> tuple[float, int]:
        """Move all workers' sums to the first worker; return the total loss and correct answers to every worker."""
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
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # comparing tensors raises RuntimeError
            raise DataError(f"{self.directory.checkpoint}: not a checkpoint of esim-fast: {error}") from error
        if not self.worker.leads:  # the first worker has everybody's sums
            self.progress.loss_sum, self.progress.correct, self.progress.seen = 0.0, 0, 0

    def _stateful(self) -> dict[str, Any]:
        average = {} if self.average is None else {"average": self.average.net}
        return {"net": self.net, "optimizer": self.optimizer, "scaler": self.scaler, **average}

    def _name(self, parts: Sequence[Batch]) -> str:
        """The current batch and its size, for a message."""
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
    """Turn any out-of-memory error into a MemoryError that names the batch."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = short_of_memory(error)
        if reason is None:
            raise
        raise MemoryError(f"{what()}: {reason}; {_MEMORY_HINT}") from error
