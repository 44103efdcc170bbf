"""``esim-fast train``: from files of sentence pairs to a model directory."""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..classifier import WEIGHTS, Classifier
from ..data import DataError, Layout, PreparedCorpus, Vocabulary, load_vectors, prepare, read_pairs
from ..data.folders import CorpusFiles, find_corpus
from ..data.reading import corpus_form, read_lines
from ..files import replace_file
from ..model import ESIM
from ..training import Checkpoint, EpochMetrics, Recipe, accuracy, fit
from ..training.trainer import PRECISIONS
from . import options as common

_MOST_LABELS = 1000  # more are sentences in the wrong column
_FEW_LABELS = 10  # need not recur
_PROBE = 100  # rows: a test file with no label among so many has none
_HEADER_FROM = 100  # rows of a file from which on a label that only its first row has is a header's


@dataclass(frozen=True)
class Defaults:
    """What `train` uses where the command line is silent."""

    epochs: int
    learning_rate: float
    hidden_size: int
    embedding_dim: int
    dropout: float


# The paper's recipe, and a small model for the small world of the bundled sample.
_PAPER = Defaults(epochs=10, learning_rate=4e-4, hidden_size=300, embedding_dim=300, dropout=0.5)
_SAMPLE = Defaults(epochs=6, learning_rate=1e-3, hidden_size=128, embedding_dim=100, dropout=0.2)


def add(commands: Any) -> None:
    command = commands.add_parser("train", help="train a model", description=train.__doc__)
    command.set_defaults(run=train, parser=command)
    command.add_argument("--train", metavar="FILE", help=f"training pairs: {common.FILES}; default: the bundled sample")
    command.add_argument("--dev", metavar="FILE", help="pairs that choose the best epoch")
    command.add_argument("--test", metavar="FILE", help="pairs to score the best model on, once, at the end")
    command.add_argument(
        "--data", metavar="DIR", help="a folder with train, dev and perhaps test files, such as snli_1.0; or hub:NAME"
    )
    common.add_reading(command)
    common.add_skipping(command)
    common.add_tokeniser(command)
    command.add_argument("--vectors", metavar="FILE", help="word vectors: GloVe or word2vec, text or .bin, or .npz")
    command.add_argument(
        "--extend-vocabulary",
        nargs="*",
        metavar="FILE",
        help="words of these files, pairs or plain text (of the dev and test files, if none is named), join the "
        "vocabulary if they have a vector; no labels are read for that",
    )
    common.add_cache(command)
    command.add_argument("--output", metavar="DIR", default="esim-fast-model", help="default: %(default)s")
    command.add_argument(
        "--epochs", type=common.count, metavar="N", help=f"default: {_PAPER.epochs} (sample: {_SAMPLE.epochs})"
    )
    size = command.add_mutually_exclusive_group()
    size.add_argument("--batch-size", type=common.count, default=32, metavar="N", help="pairs; default: %(default)s")
    size.add_argument("--batch-words", type=common.count, metavar="N", help="words of a batch, instead of pairs")
    command.add_argument(
        "--lr", type=common.rate, metavar="X", help=f"default: {_PAPER.learning_rate} (sample: {_SAMPLE.learning_rate})"
    )
    command.add_argument(
        "--hidden-size",
        type=common.size,
        metavar="N",
        help=f"default: {_PAPER.hidden_size} (sample: {_SAMPLE.hidden_size})",
    )
    command.add_argument(
        "--dropout", type=common.fraction, metavar="X", help=f"default: {_PAPER.dropout} (sample: {_SAMPLE.dropout})"
    )
    command.add_argument("--seed", type=common.seed, default=0, metavar="N", help="default: %(default)s")
    common.add_device(command)
    command.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="default: %(default)s")
    command.add_argument("--resume", action="store_true", help="go on where a run with the same options stopped")


def train(options: argparse.Namespace) -> None:
    """Trains a model; the best one by dev accuracy is kept in the output directory."""
    if options.extend_vocabulary is not None and not options.vectors:
        raise common.UsageError("--extend-vocabulary needs --vectors")
    files, unlabelled = _find_files(options)
    defaults = _PAPER if options.train or options.data else _SAMPLE
    recipe = Recipe(
        epochs=options.epochs or defaults.epochs,
        batch_size=options.batch_size,
        max_words=options.batch_words,
        learning_rate=options.lr or defaults.learning_rate,
        seed=options.seed,
        precision=options.precision,
    )
    device = common.device_of(options.device)
    if recipe.precision == "fp16" and device.type == "cpu":
        raise common.UsageError("--precision fp16 needs a GPU: torch has no fp16 LSTM for the CPU")
    output = Path(options.output)
    checkpoint_path, metrics_path = output / "checkpoint" / "last.pt", output / "metrics.jsonl"
    checkpoint = _resumable(output, checkpoint_path, options.resume)

    data = _read_training_data(files, unlabelled, options)
    torch.manual_seed(recipe.seed)
    vocabulary, vectors = data.vocabulary, None
    if options.vectors:
        vectors = load_vectors(
            options.vectors, vocabulary, more_words=data.more_words, seed=recipe.seed, cache=common.cache(options)
        )
        vocabulary = vectors.vocabulary
    sizes = {
        "hidden_size": options.hidden_size or defaults.hidden_size,
        "embedding_dim": defaults.embedding_dim if vectors is None else vectors.matrix.shape[1],
        "vocab_size": len(vocabulary),
        "num_labels": len(data.labels),
    }
    dropout = defaults.dropout if options.dropout is None else options.dropout
    # What must not change between a run and its continuation; the number of epochs may.
    settings = {**asdict(recipe), **sizes, "dropout": dropout, "tokeniser": options.tokeniser, "pairs": data.digest}
    settings["words"] = hashlib.sha256("\n".join(vocabulary.words).encode()).hexdigest()
    del settings["epochs"]
    history = [] if checkpoint is None else list(checkpoint.metrics)
    if checkpoint is not None:
        _check_settings(output, checkpoint.settings, settings)
        _write_metrics(metrics_path, history)

    net = ESIM(**sizes, device=device, dropout=dropout)
    if vectors is not None:
        net.embedding.weight.data.copy_(vectors.matrix)
    model = Classifier(net, vocabulary, data.labels, options.tokeniser)
    train_pairs, dev_pairs, test_pairs = (corpus and corpus.encode(vocabulary, data.labels) for corpus in data.corpora)

    # The folder marks a run that began: if it ends before its first checkpoint, --resume may start it afresh.
    checkpoint_path.parent.mkdir(parents=True, exist_ok=True)
    # Said only now: until here a mistake is the one line on stderr.
    for corpus in filter(None, data.corpora):
        _describe(corpus)
    if unlabelled:
        common.say(f"{unlabelled}: not used, because it has no labels")
    if vectors is not None:
        joined = f", {len(vocabulary) - len(data.vocabulary)} of them not in training" if data.more_words else ""
        common.say(f"{options.vectors}: vectors for {vectors.found} of {len(vocabulary) - 2} words{joined}")

    def keep_metrics(metrics: EpochMetrics) -> None:
        history.append(asdict(metrics))
        _write_metrics(metrics_path, history)
        tqdm.write(
            f"epoch {metrics.epoch}/{recipe.epochs}: train loss {metrics.train_loss:.4f}, train accuracy "
            f"{metrics.train_accuracy:.2%}, dev accuracy {metrics.dev_accuracy:.2%}, {metrics.seconds:.1f} s",
            file=sys.stderr,
        )

    best = fit(
        model,
        train_pairs,
        dev_pairs,
        recipe,
        on_best=lambda: model.save_pretrained(output),
        on_epoch=keep_metrics,
        checkpoint_path=checkpoint_path,
        resume_from=checkpoint,
        settings=settings,
    )
    print(f"dev accuracy {best:.2%}; the model is in {output}")
    if test_pairs is not None:
        best_model = Classifier.from_pretrained(output, device=device, tokeniser=options.tokeniser)
        print(f"test accuracy {accuracy(best_model, test_pairs):.2%}")


def _find_files(options: argparse.Namespace) -> tuple[CorpusFiles, str | None]:
    """The files to train with, and a test file of a folder that was left out for its lack of labels."""
    named = [option for option in ("train", "dev", "test") if getattr(options, option)]
    if options.data:
        if named:
            raise common.UsageError(f"--data and --{named[0]} exclude each other")
        files = find_corpus(options.data)
        if files.test and not _has_labels(files.test, options):
            return files._replace(test=None), files.test
        return files, None
    if not named:
        sample = resources.files("esim_fast.data") / "sample"
        return CorpusFiles(str(sample / "train.tsv"), str(sample / "dev.tsv"), None), None
    for part in ("train", "dev"):
        if part not in named:
            raise common.UsageError(f"--{named[0]} needs --{part} as well")
    return CorpusFiles(options.train, options.dev, options.test), None


def _has_labels(path: str, options: argparse.Namespace) -> bool:
    rows = read_pairs(path, common.layout(options), labelled=False, on_bad_row=lambda row: None)
    return any(pair.label is not None for pair in islice(rows, _PROBE))


@dataclass(frozen=True)
class _TrainingData:
    corpora: list[PreparedCorpus | None]  # train, dev, test
    vocabulary: Vocabulary
    more_words: list[str]
    labels: list[str]
    digest: str  # of the training and dev pairs


def _read_training_data(files: CorpusFiles, unlabelled_test: str | None, options: argparse.Namespace) -> _TrainingData:
    """Reads everything before anything is trained: a mistake in the test file is not found out hours later."""

    def read(path: str, layout: Layout, labelled: bool) -> PreparedCorpus:
        return prepare(
            path,
            options.tokeniser,
            layout,
            labelled=labelled,
            skip_bad_rows=options.skip_bad_rows,
            allow_empty=layout.text,
            cache=common.cache(options),
        )

    layout = common.layout(options)
    train, dev, test = (path and read(path, layout, labelled=True) for path in files)
    labels = _labels(train)
    if options.skip_bad_rows:
        dev, test = (corpus and corpus.without_other_labels(labels) for corpus in (dev, test))
    others = []
    if options.extend_vocabulary:
        layouts = [layout if _has_columns(path) else Layout(text=True) for path in options.extend_vocabulary]
        others = [read(*of, labelled=False) for of in zip(options.extend_vocabulary, layouts, strict=True)]
    elif options.extend_vocabulary is not None:
        others = [dev, test or (unlabelled_test and read(unlabelled_test, layout, labelled=False))]
    others = list(filter(None, others))
    for corpus in others if options.extend_vocabulary else ():  # dev and test are described with the rest
        common.list_bad_rows(corpus.path, corpus.bad_rows)
    counts = sum((corpus.word_counts(labelled=False) for corpus in others), Counter())
    return _TrainingData(
        [train, dev, test],
        vocabulary=Vocabulary.build(train.word_counts(labelled=True)),
        more_words=Vocabulary.build(counts).words[2:],
        labels=labels,
        digest=hashlib.sha256(f"{train.digest} {dev.digest}".encode()).hexdigest(),
    )


def _has_columns(path: str) -> bool:
    """Whether a file holds pairs, as all do but plain text or a list of words."""
    return corpus_form(path) != "tsv" or not os.path.isfile(path) or b"\t" in next(read_lines(path), b"")


def _labels(train: PreparedCorpus) -> list[str]:
    """The labels of a training corpus, in the order of their ids."""
    counts = train.label_counts()
    labels = sorted(counts)
    hint = "(columns are label, premise, hypothesis; if they stand otherwise, name them with --columns)"
    if not 2 <= len(labels) <= _MOST_LABELS:
        few = "only " + repr(labels[0]) if len(labels) == 1 else f"{len(labels)}, such as {labels[0][:40]!r}"
        raise DataError(f"{train.path}: expected 2 to {_MOST_LABELS} labels, got {few} {hint}")
    pairs = int(train.labelled.sum())
    if len(labels) > max(_FEW_LABELS, pairs / 5):
        got = f"{len(labels)} for {pairs} pairs, such as {labels[0][:40]!r}"
        raise DataError(f"{train.path}: expected labels that recur, got {got} {hint}")
    first = train.label_names[train.labels[0]] if train.labelled[0] else None
    lone = [label for label in labels if counts[label] == 1]
    if lone == [first] and len(train) >= _HEADER_FROM:
        raise DataError(
            f"{train.path}:{train.lines[0]}: no other row has the label {first!r}; "
            "if this row is a header, name its columns with --columns"
        )
    return labels


def _describe(corpus: PreparedCorpus) -> None:
    counts = ", ".join(f"{label} {count}" for label, count in sorted(common.labels_of(corpus)))
    dropped = f"; {corpus.unlabelled} more without a gold label dropped" if corpus.unlabelled else ""
    bad = f"; {common.bad_rows(corpus)} left out:" if corpus.bad_rows else ""
    common.say(f"{corpus.path}: {corpus.labelled.sum()} pairs ({counts}){dropped}{bad}")
    common.list_bad_rows(corpus.path, corpus.bad_rows)


def _resumable(output: Path, checkpoint_path: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, if any; nobody's trained model is overwritten unasked."""
    if output.exists() and not output.is_dir():
        raise common.UsageError(f"{output}: not a directory")
    if checkpoint_path.exists():
        if not resume:
            raise common.UsageError(f"{output} already holds a model: go on with --resume, or choose another --output")
        return Checkpoint.load(checkpoint_path)
    if (output / WEIGHTS).exists() and not (resume and checkpoint_path.parent.exists()):
        raise common.UsageError(
            f"{output} already holds a model, and no checkpoint to go on from: choose another --output"
        )
    return None


def _check_settings(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            if name in ("pairs", "words", "vocab_size", "num_labels"):
                raise common.UsageError(f"{output}: this run began with other training or dev pairs, or other words")
            raise common.UsageError(
                f"{output}: this run has {name} = {before.get(name)}, not {value}; resume it with that"
            )


def _write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in history)
    replace_file(path, lambda partial: partial.write_text(lines, encoding="utf-8"))
