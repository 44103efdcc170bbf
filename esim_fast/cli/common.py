"""What several commands do."""

import argparse
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..classifier import Classifier
from ..data import BadRow, CorpusFormat, PreparedCorpus, Tokenizer, default_cache, prepare
from ..data.parallel import processors
from ..data.parsing import NO_LABELS
from ..data.records import bounded_lines
from ..errors import one_line
from ..quantized import inference_precision
from .options import UsageError, say

VECTOR_ROWS = 20  # that are named if they are bad
_LABELS = 20  # that are named
_CHINESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")  # and Japanese, which have no blanks between words either


def load_model(options: argparse.Namespace) -> Classifier:
    device, precision = device_of(options), getattr(options, "precision", "fp32")
    check_possible(inference_precision, precision, device)
    return Classifier.from_pretrained(options.model, device=device, precision=precision, tokenizer=options.tokenizer)


def check_possible(check: Callable[[str, torch.device], object], precision: str, device: torch.device) -> None:
    """Raises UsageError where the device does not have the precision."""
    try:
        check(precision, device)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def corpus_format(options: argparse.Namespace) -> CorpusFormat:
    label_map = getattr(options, "map_labels", {})  # which a command that needs no labels does not ask for
    scores = getattr(options, "task", None) == "regression"
    return CorpusFormat(
        options.columns, options.quoted, delimiter=options.delimiter, label_map=label_map, scores=scores
    )


def check_label_map(options: argparse.Namespace, names: Collection[str], dropped: int) -> None:
    """Raises UsageError for an OLD of --map-labels that nothing was called.

    Args:
        names: of all labels, after they were renamed.
        dropped: how many pairs have no gold label.
    """
    for old, new in options.map_labels.items():
        if new not in names and (new != NO_LABELS[0] or not dropped):
            raise UsageError(f"--map-labels {old}={new}: no pair has the label {old}")


def cache(options: argparse.Namespace) -> Path | None:
    if options.no_cache:
        return None
    return Path(options.cache) if options.cache else default_cache()


def prepared(path: str, options: argparse.Namespace, tokenizer: str | Tokenizer, **how: Any) -> PreparedCorpus:
    """A corpus as the options of :func:`esim_fast.cli.options.add_reading` and :func:`add_cache` want it."""
    given = {"corpus_format": corpus_format(options), "cache": cache(options), "workers": workers(options)}
    given["limit"] = getattr(options, "limit", None)
    return prepare(path, tokenizer, **{**given, **how})


def lines_of_stdin() -> Iterator[bytes]:
    """As :func:`esim_fast.data.records.bounded_lines` yields them."""
    if sys.stdin is None:
        raise UsageError("stdin is closed")
    try:  # a reader of its own: at exit, Python waits for nobody who still reads there
        file: Any = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, io.UnsupportedOperation):
        file = sys.stdin.buffer
    return bounded_lines(file)


def workers(options: argparse.Namespace) -> int | None:
    """How many processes may work on a file, if the options say how many threads there are."""
    threads = getattr(options, "threads", None)  # a command that computes nothing does not ask for it
    return None if threads is None else min(threads, processors())


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that the options want, and from now on as many threads."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU here")
    return torch.device(name)


def bad_rows(count: int) -> str:
    return f"{count:,} bad row{'' if count == 1 else 's'}"


def labels_of(corpus: PreparedCorpus) -> list[tuple[str, int]]:
    """Labels and how often they occur, no more of them than a person reads."""
    counts = (+Counter(corpus.label_counts())).most_common()
    named, rest = [(one_line(label[:40]), count) for label, count in counts[:_LABELS]], counts[_LABELS:]
    return [*named, (f"{len(rest):,} others", sum(count for _, count in rest))] if rest else named


def describe_scores(corpus: PreparedCorpus) -> str:
    """Of a corpus that has some: where they lie."""
    scores = corpus.scores()
    return f"from {scores.min():g} to {scores.max():g}, {scores.mean(dtype=float):.2f} on average"


def tokenizer_hint(corpus: PreparedCorpus) -> str | None:
    """What to say if sentences seem to want another tokenizer."""
    if not corpus.lengths.size or corpus.lengths.mean() >= 1.5 or not any(map(_CHINESE.search, corpus.words[:1000])):
        return None
    return "sentences are single words: Chinese or Japanese wants --tokenizer characters"


def list_bad_rows(path: str, rows: Sequence[BadRow], most: int | None = None) -> None:
    """Names all of them, or the first ones and how many more there are."""
    for row in rows[:most]:
        say(f"{path}:{row.line}: {row.reason}")
    if len(rows) > len(rows[:most]):
        say(f"{path}: and {len(rows) - len(rows[:most]):,} more")
