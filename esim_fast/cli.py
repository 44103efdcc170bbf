"""The command line: train, evaluate, predict.

Results go to stdout, progress and messages to stderr. Exit codes: 0, or 2 and one line on stderr for a user's mistake.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from tqdm import tqdm

from .classifier import CONFIG, Classifier, replace_file
from .data import (
    TOKENISERS,
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
from .data.reading import read_lines
from .model import ESIM
from .training import Checkpoint, EpochMetrics, Recipe, accuracy, fit
from .training.trainer import PRECISIONS

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
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except (DataError, UsageError, FloatingPointError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader has seen enough, as in `esim-fast predict … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        named = isinstance(error, OSError) and error.filename and error.strerror
        print(f"esim-fast: {error.filename}: {error.strerror}" if named else f"esim-fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("esim-fast: interrupted", file=sys.stderr)
        return 130
    return 0


class UsageError(Exception):
    """A command line that cannot be carried out; the message is one line."""


def train(options: argparse.Namespace) -> None:
    """Trains a model; the best one by dev accuracy is kept in the output directory."""
    files = _find_corpora(options)
    defaults = _SAMPLE if files.bundled else _PAPER
    recipe = _recipe(options, defaults)
    device = _device(options.device)
    if recipe.precision == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU: torch has no fp16 LSTM for the CPU")
    output = Path(options.output)
    checkpoint_path = output / "checkpoint" / "last.pt"
    settings = _settings(options, files, recipe, defaults)
    checkpoint = _resumable(output, checkpoint_path, settings, options.resume)
    if checkpoint is not None and checkpoint.epoch >= recipe.epochs:
        _say(f"{output}: all {checkpoint.epoch} epochs are done, best dev accuracy {checkpoint.best_accuracy:.2%}")
        return

    corpus, dev_corpus = read_pairs(files.train), read_pairs(files.dev)
    test_corpus = read_pairs(files.test) if files.test else None
    tokenise = get_tokeniser(options.tokeniser)
    tokens = tokenise_pairs(corpus.pairs, tokenise)
    vocabulary = Vocabulary.build(chain.from_iterable(tokens))
    labels = sorted({pair.label for pair in corpus.pairs})
    if len(labels) < 2:
        raise DataError(f"{corpus.path}: expected at least two labels, got only {labels[0]!r}")
    encoded = encode_pairs(corpus, tokens, vocabulary, labels)
    dev = encode_pairs(dev_corpus, tokenise_pairs(dev_corpus.pairs, tokenise), vocabulary, labels)
    # Encoded now, so that an unknown label in it is not found out after hours of training.
    test = test_corpus and encode_pairs(test_corpus, tokenise_pairs(test_corpus.pairs, tokenise), vocabulary, labels)

    torch.manual_seed(recipe.seed)
    vectors, embedding_dim = None, defaults.embedding_dim
    if options.vectors:
        vectors, found = load_vectors(options.vectors, vocabulary, seed=recipe.seed)
        embedding_dim = vectors.shape[1]
    net = ESIM(
        settings["hidden_size"], embedding_dim, len(vocabulary), len(labels), device, dropout=settings["dropout"]
    )
    if vectors is not None:
        net.embedding.weight.data.copy_(vectors)
    model = Classifier(net, vocabulary, labels, options.tokeniser)

    output.mkdir(parents=True, exist_ok=True)
    # Said only now: until here a mistake is the one line on stderr.
    for read in filter(None, (corpus, dev_corpus, test_corpus)):
        dropped = f", {read.dropped} more without a gold label dropped" if read.dropped else ""
        _say(f"{read.path}: {len(read.pairs)} pairs{dropped}")
    if vectors is not None:
        _say(f"{options.vectors}: vectors for {found} of {len(vocabulary) - 2} words")
    metrics_path = output / "metrics.jsonl"
    history = [] if checkpoint is None else list(checkpoint.metrics)

    def keep_metrics(metrics: EpochMetrics) -> None:
        history.append(asdict(metrics))
        lines = "".join(json.dumps(line) + "\n" for line in history)
        replace_file(metrics_path, lambda path: path.write_text(lines, encoding="utf-8"))
        tqdm.write(
            f"epoch {metrics.epoch}/{recipe.epochs}: train loss {metrics.train_loss:.4f}, train accuracy "
            f"{metrics.train_accuracy:.2%}, dev accuracy {metrics.dev_accuracy:.2%}, {metrics.seconds:.1f} s",
            file=sys.stderr,
        )

    best = fit(
        model,
        encoded,
        dev,
        recipe,
        on_best=lambda: model.save_pretrained(output),
        on_epoch=keep_metrics,
        checkpoint_path=checkpoint_path,
        resume_from=checkpoint,
        settings=settings,
    )
    print(f"dev accuracy {best:.2%}; the model is in {output}")
    if test is not None:
        print(f"test accuracy {accuracy(Classifier.from_pretrained(output, device=device), test):.2%}")


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
        pairs = _pairs_from(sys.stdin.buffer, "stdin")
    else:
        pairs = _pairs_from(read_lines(options.file), options.file)
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


def _recipe(options: argparse.Namespace, defaults: Defaults) -> Recipe:
    try:
        return Recipe(
            epochs=defaults.epochs if options.epochs is None else options.epochs,
            batch_size=options.batch_size,
            learning_rate=defaults.learning_rate if options.lr is None else options.lr,
            seed=options.seed,
            precision=options.precision,
        )
    except ValueError as error:
        raise UsageError(error) from error


def _settings(options: argparse.Namespace, files: _CorpusFiles, recipe: Recipe, defaults: Defaults) -> dict[str, Any]:
    """What must not change between a run and its continuation; the number of epochs may."""
    hidden_size = defaults.hidden_size if options.hidden_size is None else options.hidden_size
    dropout = defaults.dropout if options.dropout is None else options.dropout
    if hidden_size < 1:
        raise UsageError(f"--hidden-size must be positive, got {hidden_size}")
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout must be at least 0 and below 1, got {dropout}")
    kept = {key: value for key, value in asdict(recipe).items() if key != "epochs"}
    corpora = {"train": None, "dev": None} if files.bundled else {"train": files.train, "dev": files.dev}
    return {
        **corpora,
        **kept,
        "hidden_size": hidden_size,
        "dropout": dropout,
        "vectors": options.vectors,
        "tokeniser": options.tokeniser,
    }


def _resumable(output: Path, checkpoint_path: Path, settings: dict[str, Any], resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, if any; nobody's trained model is overwritten unasked."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: not a directory")
    if not resume:
        if (output / CONFIG).exists() or checkpoint_path.exists():
            raise UsageError(f"{output} already holds a model: go on with --resume, or choose another --output")
        return None
    if not checkpoint_path.exists():
        return None
    checkpoint = Checkpoint.load(checkpoint_path)
    for name, value in settings.items():
        before = checkpoint.settings.get(name)
        if before != value:
            raise UsageError(f"{output}: this run has {name} = {before}, not {value}; resume it with the same options")
    return checkpoint


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU here")
    return torch.device(name)


def _pairs_from(lines: Iterator[bytes] | IO[bytes], name: str) -> Iterator[Pair]:
    """Pairs of a stream whose first byte tells JSON lines from tab-separated ones."""
    lines = iter(lines)
    first = next(lines, b"")
    form = "jsonl" if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") else "tsv"
    return parse_pairs(chain([first], lines), name, form=form, labelled=False)


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, instead of argparse's usage and line."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="esim-fast", description="ESIM for sentence pairs: train, evaluate, predict.")
    commands = parser.add_subparsers(required=True, metavar="command")
    devices = ("auto", "cpu", "cuda")

    command = commands.add_parser("train", help="train a model", description=train.__doc__)
    command.set_defaults(run=train)
    files = "tab-separated (label, premise, hypothesis, or with SNLI's header) or .jsonl, also .gz"
    command.add_argument("--train", metavar="FILE", help=f"training pairs: {files}; default: the bundled sample")
    command.add_argument("--dev", metavar="FILE", help="pairs that choose the best epoch")
    command.add_argument("--test", metavar="FILE", help="pairs to score the best model on, once, at the end")
    command.add_argument("--data", metavar="DIR", help="a folder with train, dev and perhaps test files")
    command.add_argument("--vectors", metavar="FILE", help="word vectors: GloVe text (also .gz), or .npz")
    command.add_argument("--output", metavar="DIR", default="esim-fast-model", help="default: %(default)s")
    command.add_argument("--epochs", type=int, metavar="N", help=f"default: {_PAPER.epochs} (sample: {_SAMPLE.epochs})")
    command.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: %(default)s")
    command.add_argument(
        "--lr", type=float, metavar="X", help=f"default: {_PAPER.learning_rate} (sample: {_SAMPLE.learning_rate})"
    )
    command.add_argument(
        "--hidden-size", type=int, metavar="N", help=f"default: {_PAPER.hidden_size} (sample: {_SAMPLE.hidden_size})"
    )
    command.add_argument(
        "--dropout", type=float, metavar="X", help=f"default: {_PAPER.dropout} (sample: {_SAMPLE.dropout})"
    )
    command.add_argument("--tokeniser", choices=tuple(TOKENISERS), default="nltk", help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    command.add_argument("--device", choices=devices, default="auto", help="default: %(default)s")
    command.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="default: %(default)s")
    command.add_argument("--resume", action="store_true", help="go on where a run with the same options stopped")

    command = commands.add_parser("evaluate", help="score a model on labelled pairs", description=evaluate.__doc__)
    command.set_defaults(run=evaluate)
    command.add_argument("model", metavar="MODEL_DIR")
    command.add_argument("file", metavar="FILE", help=files)

    answers = commands.add_parser("predict", help="label pairs", description=predict.__doc__)
    answers.set_defaults(run=predict)
    answers.add_argument("model", metavar="MODEL_DIR")
    answers.add_argument("file", nargs="?", metavar="FILE", help="pairs, with or without labels; - reads stdin")
    answers.add_argument("--premise", metavar="TEXT")
    answers.add_argument("--hypothesis", metavar="TEXT")
    for reader in (command, answers):
        reader.add_argument("--batch-size", type=_positive, default=256, metavar="N", help="default: %(default)s")
        reader.add_argument("--device", choices=devices, default="auto", help="default: %(default)s")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)
