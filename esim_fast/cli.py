"""The command line: train, evaluate, predict.

Results go to stdout, progress and messages to stderr. Exit codes: 0, or 2 and one line on stderr for a user's mistake.
"""

import argparse
import hashlib
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from .classifier import WEIGHTS, Classifier, first_line, replace_file
from .data import (
    TOKENISERS,
    Corpus,
    DataError,
    EncodedPairs,
    Pair,
    Vocabulary,
    encode_pairs,
    get_tokeniser,
    load_vectors,
    parse_pairs,
    read_pairs,
    tokenise_pairs,
)
from .data.reading import form_of, read_lines
from .model import ESIM
from .training import Checkpoint, EpochMetrics, Recipe, accuracy, fit
from .training.trainer import PRECISIONS

_MOST_LABELS = 1000  # more are sentences in the wrong column
_CHUNK = 4096  # pairs that `predict` holds at a time
_CORPUS_ENDINGS = (".jsonl", ".tsv", ".txt", ".jsonl.gz", ".tsv.gz", ".txt.gz")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    options = _parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 whatever the terminal speaks
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `esim-fast predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (DataError, UsageError, FloatingPointError) as error:
        return _fail(error)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
    except (MemoryError, RuntimeError) as error:  # torch says RuntimeError when memory is short
        if isinstance(error, RuntimeError) and "memory" not in first_line(error):
            raise
        return _fail(f"out of memory: {first_line(error)}")
    except KeyboardInterrupt:
        _say("esim-fast: interrupted")
        return 130
    return 0


class UsageError(Exception):
    """A command line that cannot be carried out; the message is one line."""


def train(options: argparse.Namespace) -> None:
    """Trains a model; the best one by dev accuracy is kept in the output directory."""
    files = _find_corpora(options)
    defaults = _SAMPLE if files.bundled else _PAPER
    recipe = Recipe(
        epochs=options.epochs or defaults.epochs,
        batch_size=options.batch_size,
        learning_rate=options.lr or defaults.learning_rate,
        seed=options.seed,
        precision=options.precision,
    )
    device = _device(options.device)
    if recipe.precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU: torch has no fp16 LSTM for the CPU")
    output = Path(options.output)
    checkpoint_path, metrics_path = output / "checkpoint" / "last.pt", output / "metrics.jsonl"
    checkpoint = _resumable(output, checkpoint_path, options.resume)

    data = _read_training_data(files, options.tokeniser)
    torch.manual_seed(recipe.seed)
    vectors, embedding_dim = None, defaults.embedding_dim
    if options.vectors:
        vectors, found = load_vectors(options.vectors, data.vocabulary, seed=recipe.seed)
        embedding_dim = vectors.shape[1]
    sizes = {
        "hidden_size": options.hidden_size or defaults.hidden_size,
        "embedding_dim": embedding_dim,
        "vocab_size": len(data.vocabulary),
        "num_labels": len(data.labels),
    }
    dropout = defaults.dropout if options.dropout is None else options.dropout
    # What must not change between a run and its continuation; the number of epochs may.
    settings = {**asdict(recipe), **sizes, "dropout": dropout, "tokeniser": options.tokeniser, "pairs": data.digest}
    del settings["epochs"]
    history = [] if checkpoint is None else list(checkpoint.metrics)
    if checkpoint is not None:
        _check_settings(output, checkpoint.settings, settings)
        _write_metrics(metrics_path, history)

    net = ESIM(**sizes, device=device, dropout=dropout)
    if vectors is not None:
        net.embedding.weight.data.copy_(vectors)
    model = Classifier(net, data.vocabulary, data.labels, options.tokeniser)

    # The folder marks a run that began: if it ends before its first checkpoint, --resume may start it afresh.
    checkpoint_path.parent.mkdir(parents=True, exist_ok=True)
    # Said only now: until here a mistake is the one line on stderr.
    for read in data.corpora:
        counts = ", ".join(f"{label} {count}" for label, count in sorted(Counter(p.label for p in read.pairs).items()))
        dropped = f"; {read.dropped} more without a gold label dropped" if read.dropped else ""
        _say(f"{read.path}: {len(read.pairs)} pairs ({counts}){dropped}")
    if vectors is not None:
        _say(f"{options.vectors}: vectors for {found} of {len(data.vocabulary) - 2} words")

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
        data.train,
        data.dev,
        recipe,
        on_best=lambda: model.save_pretrained(output),
        on_epoch=keep_metrics,
        checkpoint_path=checkpoint_path,
        resume_from=checkpoint,
        settings=settings,
    )
    print(f"dev accuracy {best:.2%}; the model is in {output}")
    if data.test is not None:
        print(f"test accuracy {accuracy(Classifier.from_pretrained(output, device=device), data.test):.2%}")


def evaluate(options: argparse.Namespace) -> None:
    """Accuracy, per-class figures and the confusion matrix, as one JSON object."""
    model = Classifier.from_pretrained(options.model, device=_device(options.device))
    corpus = read_pairs(options.file)
    tokens = tokenise_pairs(corpus.pairs, get_tokeniser(model.tokeniser))
    pairs = encode_pairs(corpus, tokens, model.vocabulary, model.labels)
    predicted = model.logits(pairs, batch_size=options.batch_size).argmax(1)
    print(json.dumps(_report(model.labels, pairs, predicted, corpus.dropped), ensure_ascii=False))


def predict(options: argparse.Namespace) -> None:
    """Labels and probabilities as JSON lines, for one pair or a file of them, in its order."""
    if (options.premise is None) != (options.hypothesis is None):
        raise UsageError("--premise and --hypothesis must be given together")
    if (options.premise is None) == (options.file is None):
        raise UsageError("give either a file (- for stdin) or --premise and --hypothesis")
    model = Classifier.from_pretrained(options.model, device=_device(options.device))
    pairs: Iterator[Pair]
    if options.file is None:
        pairs = iter([Pair(options.premise, options.hypothesis, None, 1)])
    elif options.file == "-":
        if sys.stdin is None:
            raise UsageError("stdin is closed")
        pairs = _pairs_from_stdin()
    else:
        pairs = parse_pairs(read_lines(options.file), options.file, form=form_of(options.file), labelled=False)
    while chunk := list(_until_error(islice(pairs, _CHUNK))):
        error = chunk.pop() if isinstance(chunk[-1], DataError) else None
        labels, probabilities = model.predict([pair[:2] for pair in chunk], batch_size=options.batch_size)
        for pair, label, row in zip(chunk, labels, probabilities.tolist(), strict=True):
            line = {
                "premise": pair.premise,
                "hypothesis": pair.hypothesis,
                "label": label,
                "probabilities": {name: round(value, 6) for name, value in zip(model.labels, row, strict=True)},
            }
            print(json.dumps(line, ensure_ascii=False))
        if error is not None:
            raise error


@dataclass(frozen=True)
class _CorpusFiles:
    train: str
    dev: str
    test: str | None
    bundled: bool = False


def _find_corpora(options: argparse.Namespace) -> _CorpusFiles:
    named = [option for option in ("train", "dev", "test") if getattr(options, option)]
    if options.data:
        if named:
            raise UsageError(f"--data and --{named[0]} exclude each other")
        found = {part: _find_part(Path(options.data), part) for part in ("train", "dev", "test")}
        for part in ("train", "dev"):
            if found[part] is None:
                raise UsageError(f"{options.data}: expected a file with {part} in its name and a corpus's ending")
        return _CorpusFiles(**found)
    if not named:
        sample = resources.files("esim_fast.data") / "sample"
        return _CorpusFiles(str(sample / "train.tsv"), str(sample / "dev.tsv"), None, bundled=True)
    for part in ("train", "dev"):
        if part not in named:
            raise UsageError(f"--{named[0]} needs --{part} as well")
    return _CorpusFiles(options.train, options.dev, options.test)


def _find_part(directory: Path, part: str) -> str | None:
    """The one file of ``directory`` that holds this part; official folders have it as .jsonl and as .txt."""
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory")
    files = sorted(path for path in directory.iterdir() if part in path.name and path.name.endswith(_CORPUS_ENDINGS))
    preferred = [path for path in files if ".jsonl" in path.suffixes] or files
    if len(preferred) > 1:
        raise UsageError(f"{directory}: which is the {part} file? {', '.join(path.name for path in preferred)}")
    return str(preferred[0]) if preferred else None


@dataclass(frozen=True)
class _TrainingData:
    corpora: list[Corpus]
    vocabulary: Vocabulary
    labels: list[str]
    train: EncodedPairs
    dev: EncodedPairs
    test: EncodedPairs | None
    digest: str  # of the training and dev pairs


def _read_training_data(files: _CorpusFiles, tokeniser: str) -> _TrainingData:
    """Reads everything before anything is trained: a mistake in the test file is not found out hours later."""
    corpora = [read_pairs(path) for path in (files.train, files.dev, files.test) if path is not None]
    tokenise = get_tokeniser(tokeniser)
    tokens = [tokenise_pairs(corpus.pairs, tokenise) for corpus in corpora]
    vocabulary = Vocabulary.build(chain.from_iterable(tokens[0]))
    labels = sorted({pair.label for pair in corpora[0].pairs})
    if not 2 <= len(labels) <= _MOST_LABELS:
        few = "only " + repr(labels[0]) if len(labels) == 1 else f"{len(labels)}, such as {labels[0]!r}"
        raise DataError(
            f"{files.train}: expected 2 to {_MOST_LABELS} labels, got {few} (columns are label, premise, hypothesis)"
        )
    encoded = [encode_pairs(corpus, words, vocabulary, labels) for corpus, words in zip(corpora, tokens, strict=True)]
    digest = hashlib.sha256()
    for corpus in corpora[:2]:
        for pair in corpus.pairs:
            digest.update("\t".join((pair.label, pair.premise, pair.hypothesis, "")).encode())
    train, dev, test = encoded if len(encoded) == 3 else (*encoded, None)
    return _TrainingData(corpora, vocabulary, labels, train, dev, test, digest.hexdigest())


def _resumable(output: Path, checkpoint_path: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, if any; nobody's trained model is overwritten unasked."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: not a directory")
    if checkpoint_path.exists():
        if not resume:
            raise UsageError(f"{output} already holds a model: go on with --resume, or choose another --output")
        return Checkpoint.load(checkpoint_path)
    if (output / WEIGHTS).exists() and not (resume and checkpoint_path.parent.exists()):
        raise UsageError(f"{output} already holds a model, and no checkpoint to go on from: choose another --output")
    return None


def _check_settings(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            if name in ("pairs", "vocab_size", "num_labels"):
                raise UsageError(f"{output}: this run began with other training or dev pairs")
            raise UsageError(f"{output}: this run has {name} = {before.get(name)}, not {value}; resume it with that")


def _write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in history)
    replace_file(path, lambda partial: partial.write_text(lines, encoding="utf-8"))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU here")
    return torch.device(name)


def _pairs_from_stdin() -> Iterator[Pair]:
    """Without a name to go by, the first byte tells JSON lines from tab-separated ones."""
    lines = iter(sys.stdin.buffer)
    first = next(lines, b"")
    form = "jsonl" if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") else "tsv"
    return parse_pairs(chain([first], lines), "stdin", form=form, labelled=False)


def _until_error(pairs: Iterator[Pair]) -> Iterator[Pair | DataError]:
    """Ends with the error of a bad row as a value, so that the rows before it are answered first."""
    try:
        yield from pairs
    except DataError as error:
        yield error


def _report(labels: list[str], pairs: EncodedPairs, predicted: torch.Tensor, dropped: int) -> dict[str, Any]:
    gold = torch.from_numpy(pairs.labels)
    confusion = torch.zeros(len(labels), len(labels), dtype=torch.int64)  # [gold, predicted]
    confusion.index_put_((gold, predicted), torch.ones_like(gold), accumulate=True)
    correct, support, answers = confusion.diag(), confusion.sum(1), confusion.sum(0)
    classes = {}
    for i, label in enumerate(labels):
        precision = int(correct[i]) / max(1, int(answers[i]))
        recall = int(correct[i]) / max(1, int(support[i]))
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        classes[label] = {"precision": precision, "recall": recall, "f1": f1, "support": int(support[i])}
    return {
        "accuracy": int(correct.sum()) / len(pairs),
        "pairs": len(pairs),
        "dropped": dropped,
        "classes": classes,
        "confusion_matrix": {
            label: dict(zip(labels, row, strict=True)) for label, row in zip(labels, confusion.tolist(), strict=True)
        },
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _fail(message: object) -> int:
    _say(f"esim-fast: {message}")
    return 2


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """One line, instead of argparse's usage and line."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="esim-fast", description="ESIM for sentence pairs: train, evaluate, predict.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('esim_fast')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    devices = ("auto", "cpu", "cuda")

    command = commands.add_parser("train", help="train a model", description=train.__doc__)
    command.set_defaults(run=train, parser=command)
    files = "tab-separated (label, premise, hypothesis, or with SNLI's header) or .jsonl, also .gz"
    command.add_argument("--train", metavar="FILE", help=f"training pairs: {files}; default: the bundled sample")
    command.add_argument("--dev", metavar="FILE", help="pairs that choose the best epoch")
    command.add_argument("--test", metavar="FILE", help="pairs to score the best model on, once, at the end")
    command.add_argument("--data", metavar="DIR", help="a folder with train, dev and perhaps test files")
    command.add_argument("--vectors", metavar="FILE", help="word vectors: GloVe text (also .gz), or .npz")
    command.add_argument("--output", metavar="DIR", default="esim-fast-model", help="default: %(default)s")
    command.add_argument(
        "--epochs", type=_count, metavar="N", help=f"default: {_PAPER.epochs} (sample: {_SAMPLE.epochs})"
    )
    command.add_argument("--batch-size", type=_count, default=32, metavar="N", help="default: %(default)s")
    command.add_argument(
        "--lr", type=_rate, metavar="X", help=f"default: {_PAPER.learning_rate} (sample: {_SAMPLE.learning_rate})"
    )
    command.add_argument(
        "--hidden-size", type=_size, metavar="N", help=f"default: {_PAPER.hidden_size} (sample: {_SAMPLE.hidden_size})"
    )
    command.add_argument(
        "--dropout", type=_fraction, metavar="X", help=f"default: {_PAPER.dropout} (sample: {_SAMPLE.dropout})"
    )
    command.add_argument("--tokeniser", choices=tuple(TOKENISERS), default="nltk", help="default: %(default)s")
    command.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: %(default)s")
    command.add_argument("--device", choices=devices, default="auto", help="default: %(default)s")
    command.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="default: %(default)s")
    command.add_argument("--resume", action="store_true", help="go on where a run with the same options stopped")

    command = commands.add_parser("evaluate", help="score a model on labelled pairs", description=evaluate.__doc__)
    command.set_defaults(run=evaluate, parser=command)
    command.add_argument("model", metavar="MODEL_DIR")
    command.add_argument("file", metavar="FILE", help=files)

    answers = commands.add_parser("predict", help="label pairs", description=predict.__doc__)
    answers.set_defaults(run=predict, parser=answers)
    answers.add_argument("model", metavar="MODEL_DIR")
    answers.add_argument("file", nargs="?", metavar="FILE", help="pairs, with or without labels; - reads stdin")
    answers.add_argument("--premise", metavar="TEXT")
    answers.add_argument("--hypothesis", metavar="TEXT")
    for reader in (command, answers):
        reader.add_argument("--batch-size", type=_count, default=256, metavar="N", help="default: %(default)s")
        reader.add_argument("--device", choices=devices, default="auto", help="default: %(default)s")
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # argparse itself would point to the help of the whole program
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _number(kind: Callable[[str], Any], expected: str, accept: Callable[[Any], bool]) -> Callable[[str], Any]:
    """An argparse type that says what it expected."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


_count = _number(int, "an integer from 1 to 1000000", lambda value: 1 <= value <= 1_000_000)
_size = _number(int, "an integer from 1 to 65536", lambda value: 1 <= value <= 65_536)
_seed = _number(int, "an integer from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
_rate = _number(float, "a positive number", lambda value: 0 < value < math.inf)
_fraction = _number(float, "a number from 0 to below 1", lambda value: 0 <= value < 1)
