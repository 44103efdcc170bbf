"""``esim-fast train``: train a model on files of sentence pairs."""

import argparse
import contextlib
import hashlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import torch
from tqdm import tqdm

from ..classifier import Classifier
from ..config import check_precision
from ..data import BadRow, load_vectors
from ..errors import DataError
from ..files import write_json
from ..memory import short_of_memory
from ..ops import products
from ..recipe import ModelOptions
from ..terminal import is_watched
from ..training import EpochMetrics, NotFiniteError, Recipe, Trainer
from ..training.directory import RunDirectory
from ..training.distributed import joined, lost_connection, started_by_torchrun, this_worker
from ..training.figures import Figure, assess
from ..training.initialization import new_network
from ..training.loggers import RunLog
from ..training.trainer import OtherSettingsError
from . import common, decisions
from .corpora import TrainingData, TrainingFiles, find_files, read_files
from .options import UsageError, say
from .recipe import OPTION_NAMES, recipe_of

# Options saved with a model unless they have these defaults, so that --config repeats the run.
_WRITTEN_DOWN: dict[str, Any] = {
    **{"columns": None, "quoted": False, "delimiter": None, "map_labels": {}, "skip_bad_rows": False, "limit": None},
    **{"task": "classification", "calibrate": False, "threshold": None},
}
_SEEDS = "seeds.json"  # the results of --seeds
# What a run cannot change when it is resumed, apart from options.
_DATA = {"pairs": "training or dev pairs", "words": "words", "vectors": "word vectors"}


def run(options: argparse.Namespace) -> int | None:
    if options.extend_vocabulary is not None and not options.vectors:
        raise UsageError("--extend-vocabulary needs --vectors")
    files = find_files(options)
    recipe, model = recipe_of(options, sample=not (options.train or options.data))
    if options.vectors and hasattr(options, "embedding_dim"):
        raise UsageError("--embedding-dim and --vectors exclude each other")
    device = common.device_of(options)
    common.check_possible(check_precision, recipe.precision, device)
    common.check_bilstm_backend(options, device)
    common.check_room(options, device, recipe.precision, model.hidden_size)
    output = Path(options.output)
    runs = {recipe.seed: output}
    if options.seeds:
        if recipe.seed + options.seeds > 2**63:
            raise UsageError(f"--seeds {options.seeds}: the last seed would be above 2**63 - 1")
        if RunDirectory(output).checkpoint.exists():
            raise UsageError(f"{output} holds a run with a single seed; choose another directory for --seeds")
        if not (output / _SEEDS).exists():
            RunDirectory(output).check(resume=False)
        elif not options.resume:
            raise UsageError(f"{output} already holds runs; use --resume, or choose another directory")
        runs = {seed: output / f"seed-{seed}" for seed in range(recipe.seed, recipe.seed + options.seeds)}
    for directory in runs.values():
        RunDirectory(directory).check(options.resume)
    data = read_files(files, options)
    decisions.check(options, data)
    results: list[_Result] = []
    caught: list[int] = []
    try:
        with contextlib.ExitStack() as stack:
            if not started_by_torchrun():  # several processes would stop after different steps
                stack.enter_context(_noting_signals(caught))
            try:
                device = stack.enter_context(joined(device))
            except ValueError as error:
                raise UsageError(str(error)) from error
            for seed, directory in runs.items():
                plan = _Plan(options, files, data, replace(recipe, seed=seed), model, directory, device)
                results.append(_train_one(plan, first=not results, should_stop=lambda: bool(caught)))
            if options.seeds and this_worker().leads:
                _summarize_seeds(output, results, options.tokenizer)
    except KeyboardInterrupt:
        if this_worker().leads:
            there = "" if this_worker().count == 1 else ", which continues from the last checkpoint"
            say(f"esim-fast: interrupted; to continue, run the same command with --resume{there}")
        return 128 + (caught[0] if caught else signal.SIGINT)
    except RuntimeError as error:
        if short_of_memory(error) is not None or not lost_connection(error):
            raise
        say("esim-fast: another process of this run has ended")
        return 2
    return None


@dataclass(frozen=True)
class _Plan:
    """All that one model is made of."""

    options: argparse.Namespace
    files: TrainingFiles
    data: TrainingData
    recipe: Recipe
    model: ModelOptions
    directory: Path
    device: torch.device


@dataclass(frozen=True)
class _Result:
    """The result of training one model."""

    plan: _Plan
    best: EpochMetrics
    figure: Figure  # the dev figure that chose the best epoch
    test: dict[str, Any] | None  # figures on the test pairs

    def value(self, part: str) -> float | None:
        """Return the figure on dev or on the test pairs, or None without test pairs."""
        if part == "dev":
            return getattr(self.best, f"dev_{self.figure.field}")
        return None if self.test is None else self.test[self.figure.field]


def _train_one(plan: _Plan, first: bool, should_stop: Callable[[], bool]) -> _Result:
    """Train one model and print its result; with ``first``, also describe the data."""
    options, data, recipe, worker = plan.options, plan.data, plan.recipe, this_worker()
    classifier, found, bad = _new_classifier(plan)
    train, dev = data.encode_train(classifier.vocabulary), data.encode(data.dev, classifier.vocabulary)
    words = hashlib.sha256("\n".join(classifier.vocabulary.words).encode()).hexdigest()
    weight = classifier.net.embedding.weight
    log = RunLog(options.log if worker.leads else [], plan.directory, _say_beside_bars)

    def begin() -> None:
        if not trainer.is_over:
            config = {**recipe.as_dict(), **asdict(plan.model), "tokenizer": options.tokenizer, **plan.files._asdict()}
            log.begin({**config, "vectors": options.vectors}, trainer.progress, trainer.resumed)
        say_what_begins()

    def say_what_begins() -> None:  # not earlier, because a mistake must be the only line on stderr
        if first and worker.leads:
            if recipe.precision == "bf16" and plan.device.type == "cpu" and products.bf16_is_slower():
                say("esim-fast: --precision bf16 is slower than fp32 on this processor")
            if options.limit:
                say(f"--limit {options.limit}: reading only the first {options.limit:,} pairs of each file")
            data.describe()
            if plan.files.unlabeled:
                say(f"{plan.files.unlabeled}: not used, because it has no labels")
            if found is not None:
                new = len(classifier.vocabulary) - len(data.vocabulary)
                those = f", {new} of them not in training" if data.more_words else ""
                rest = f"{those}; skipped {common.bad_rows(len(bad))}:" if bad else those
                say(f"{options.vectors}: vectors for {found} of {len(classifier.vocabulary) - 2} words{rest}")
                common.list_bad_rows(options.vectors, bad, common.VECTOR_ROWS)
        if options.resume and worker.leads:
            progress = trainer.progress
            where = f"continuing with epoch {progress.epoch}, batch {progress.batch + 1}"
            if trainer.is_over:
                where = f"already finished after {len(progress.history)} epochs"
            say(f"{plan.directory}: {where if trainer.resumed else 'nothing to resume, so a new run begins'}")

    def on_epoch(metrics: EpochMetrics) -> None:
        log.epoch(metrics, trainer.progress.steps)
        _say_epoch(metrics, recipe, trainer.figure, several=bool(options.seeds))

    try:
        trainer = Trainer(
            classifier,
            train,
            dev,
            recipe,
            plan.directory,
            settings={
                "task": options.task if data.has_scores else None,
                "tokenizer": options.tokenizer,
                "limit": options.limit,
                "pairs": data.digest,
                "words": words,
                "vectors": hashlib.sha256(weight.detach().cpu().numpy().data).hexdigest() if options.vectors else None,
                **asdict(plan.model),
            },
            resume=options.resume,
            checkpoint_steps=options.checkpoint_steps,
            cuda_graphs=options.cuda_graphs,
            on_begin=begin,
            on_epoch=on_epoch,
            on_step=log.step if log.names else None,
            should_stop=should_stop,
        )
    except OtherSettingsError as error:
        raise UsageError(f"{plan.directory}: {_other_settings(error)}") from error
    except DataError:
        raise
    except ValueError as error:  # the recipe does not fit the data
        name, _, reason = str(error).partition(": ")
        places = {"train": ", ".join(corpus.path for corpus in data.train), "dev": data.dev.path}
        raise UsageError(f"{ {**places, **OPTION_NAMES}.get(name, name) }: {reason}") from error
    try:
        with log:
            history = trainer.run()
    except NotFiniteError as error:
        where = f"; its pairs are {data.places(error.indices)}" if error.indices else ""
        raise NotFiniteError(f"{error}{where}; the last checkpoint is kept", error.indices) from error
    best, figure, decided = cast(EpochMetrics, trainer.best), trainer.figure, list[str]()
    if options.calibrate or options.threshold is not None:
        if worker.leads:
            best_model = Classifier.from_pretrained(plan.directory, device=plan.device, tokenizer=options.tokenizer)
            decided = decisions.decide(best_model, dev, options)
            best_model.save_description(plan.directory)
        worker.wait()
    test = None
    if data.test is not None:
        best_model = Classifier.from_pretrained(plan.directory, device=plan.device, tokenizer=options.tokenizer)
        test = assess(figure, best_model, data.encode(data.test, best_model.vocabulary), worker=worker)
    result = _Result(plan, best, figure, test)
    if worker.leads:
        if test is not None:
            shown = {name: test[name] for name in figure.shown(test)}
            write_json(plan.directory / "test.json", {"file": plan.files.test, **shown})
        _summarize(result, history, decided, len(train))
    return result


def _new_classifier(plan: _Plan) -> tuple[Classifier, int | None, list[BadRow]]:
    """Return a model to train, how many of its words have a vector (None without --vectors), and bad vectors."""
    options, data, recipe = plan.options, plan.data, plan.recipe
    torch.manual_seed(recipe.seed)
    vocabulary, vectors, found = data.vocabulary, None, None
    bad: list[BadRow] = []
    if options.vectors:
        vocabulary, vectors, found = load_vectors(
            options.vectors,
            vocabulary,
            more_words=data.more_words,
            seed=recipe.seed,
            cache=common.cache(options),
            on_bad_row=bad.append if options.skip_bad_rows else None,
            show_progress_bar=this_worker().leads and is_watched(),
        )
    given = {name: getattr(options, name) for name, usual in _WRITTEN_DOWN.items() if getattr(options, name) != usual}
    bias = data.mean_score() if data.has_scores else 0.0
    how = {"vectors": vectors, "output_bias": bias, "bilstm_backend": options.bilstm_backend}
    net = new_network(plan.model, len(vocabulary), len(data.labels), **how)
    training = {
        "recipe": recipe.as_dict(),
        "forget_bias": plan.model.forget_bias,
        "files": {**plan.files._asdict(), "vectors": options.vectors, "extend_vocabulary": options.extend_vocabulary},
        **({"options": given} if given else {}),
        "device": torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else plan.device.type,
        "processes": this_worker().count,
        "versions": {"esim_fast": version("esim_fast"), "torch": torch.__version__},
    }
    return Classifier(net.to(plan.device), vocabulary, data.labels, options.tokenizer, training), found, bad


def _other_settings(error: OtherSettingsError) -> str:
    if error.name in _DATA:
        return f"this run began with different {_DATA[error.name]}"
    option = OPTION_NAMES[error.name]
    if error.before is None or isinstance(error.before, bool):
        return f"this run began {'with' if error.before else 'without'} {option}; resume it the same way"
    before, now = (
        ",".join(f"{label}={weight:g}" for label, weight in value.items()) if isinstance(value, dict) else value
        for value in (error.before, error.now)
    )
    instead = "" if now is None else f", not {now}"
    return f"this run began with {option} {before}{instead}; resume it with that value"


def _say_beside_bars(message: str) -> None:
    with tqdm.external_write_mode(sys.stderr):
        say(message)


def _say_epoch(metrics: EpochMetrics, recipe: Recipe, figure: Figure, several: bool) -> None:
    seed = f"seed {recipe.seed}, " if several else ""
    accuracy = "" if metrics.train_accuracy is None else f", train accuracy {metrics.train_accuracy:.2%}"
    measured = {name.removeprefix("dev_"): value for name, value in asdict(metrics).items()}
    on_dev = "".join(f", dev {text}" for text in figure.texts(measured))
    tqdm.write(
        f"{seed}epoch {metrics.epoch}/{recipe.epochs}: train loss {metrics.train_loss:.4f}{accuracy}{on_dev}, "
        f"{metrics.seconds:.1f} s",
        file=sys.stderr,
    )


def _summarize(result: _Result, history: Sequence[EpochMetrics], decided: Sequence[str], pairs: int) -> None:
    """Print the result of a run."""
    plan, best, figure = result.plan, result.best, result.figure
    seconds = sum(metrics.seconds for metrics in history)
    epochs = f"{plan.recipe.patience} epoch{'s' if plan.recipe.patience != 1 else ''}"
    patience = f"; stopped after {epochs} without a better dev {figure.name} (--patience)"
    stopped = patience if len(history) < plan.recipe.epochs else ""
    print(f"dev {figure.text(result.value('dev'))}; the model is in {plan.directory}")
    for line in decided:
        print(line)
    if result.test is not None:
        print(f"test {', '.join(figure.texts(result.test))}")
    paths = RunDirectory(plan.directory)
    no_curves = 'not drawn; needs matplotlib: pip install "esim_fast[plot]"'
    lines = {
        "best epoch": f"{best.epoch} of {len(history)}{stopped}",
        "loss": f"{best.train_loss:.4f} in training (mean of the epoch), {best.dev_loss:.4f} on dev",
        "time": f"{seconds:,.0f} s, {pairs * len(history) / max(seconds, 1e-9):,.0f} pairs per second",
        "last model": paths.last,
        "metrics": paths.metrics,
        "curves": paths.curves if paths.curves.exists() else no_curves,
    }
    for name, value in lines.items():
        print(f"  {name:<12}{value}")


def _summarize_seeds(output: Path, results: Sequence[_Result], tokenizer: str) -> None:
    """Print the results of several runs, write ``seeds.json``, and copy the best model to ``output``."""
    figure = results[0].figure
    best = max(results, key=lambda result: figure.rank(result.value("dev")))
    summary: dict[str, Any] = {}
    for part in ("dev", "test"):
        values = [value for value in (result.value(part) for result in results) if value is not None]
        if values:
            deviation, form = stdev(values) if len(values) > 1 else 0.0, figure.form
            name = "accuracies" if figure.field == "accuracy" else figure.field
            summary[part] = {"mean": mean(values), "standard_deviation": deviation, name: values}
            spread = f"{mean(values):{form}} ± {deviation:{form}} (standard deviation)"
            print(f"{part} {figure.name} {spread} of {len(values)} seeds")
    summary["seeds"] = [result.plan.recipe.seed for result in results]
    # Written before the model, so that a run interrupted in between can be resumed.
    write_json(output / _SEEDS, summary)
    Classifier.from_pretrained(best.plan.directory, tokenizer=tokenizer).save_pretrained(output)
    print(f"the best model, seed {best.plan.recipe.seed}, is in {output}")


@contextlib.contextmanager
def _noting_signals(caught: list[int]) -> Iterator[None]:
    """Append the first Ctrl-C or SIGTERM to ``caught``; a second one ends the process as usual."""

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup
                before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for noted, handler in before.items():
            signal.signal(noted, handler)
