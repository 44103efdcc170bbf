"""Code that several commands share."""

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
from ..config import PRECISIONS, autocast_dtype
from ..data import BadRow, CorpusFormat, PreparedCorpus, Tokenizer, default_cache, prepare
from ..data.parallel import processors
from ..data.parsing import NO_LABELS
from ..data.records import bounded_lines
from ..errors import one_line
from ..graphs import wants_graphs
from ..ops import persistent
from ..ops.backends import backends_of_ops
from ..quantized import inference_precision
from .options import UsageError, say

VECTOR_ROWS = 20  # bad rows of vectors to list
_LABELS = 20  # labels to list
_CHINESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")  # and Japanese, which has no spaces between words either


def load_model(options: argparse.Namespace) -> Classifier:
    device, precision = device_of(options), getattr(options, "precision", "fp32")
    check_possible(inference_precision, precision, device)
    check_bilstm_backend(options, device)
    cuda_graphs = getattr(options, "cuda_graphs", "auto")
    check_cuda_graphs(cuda_graphs, device)
    how = {"precision": precision, "bilstm_backend": options.bilstm_backend, "tokenizer": options.tokenizer}
    model = Classifier.from_pretrained(options.model, device=device, cuda_graphs=cuda_graphs, **how)
    check_room(options, device, precision, model.net.config.hidden_size)
    return model


def check_cuda_graphs(cuda_graphs: str, device: torch.device) -> None:
    """Raise UsageError if --cuda-graphs is on and the device has none."""
    try:
        wants_graphs(cuda_graphs, device)
    except ValueError as error:
        reason = str(error).removeprefix("cuda_graphs: ")
        raise UsageError(f"--cuda-graphs: {reason}") from error


def check_bilstm_backend(options: argparse.Namespace, device: torch.device) -> None:
    """Raise UsageError if --bilstm-backend cannot run on the device."""
    try:
        backends_of_ops(None, device, options.bilstm_backend)
    except ValueError as error:
        raise UsageError(f"--bilstm-backend {options.bilstm_backend}: it cannot run on {device}") from error


def check_room(options: argparse.Namespace, device: torch.device, precision: str, hidden_size: int) -> None:
    """Raise UsageError if the kernel of --bilstm-backend cuda does not support an LSTM of this size on the device."""
    dtype = autocast_dtype(precision) if precision in PRECISIONS else None
    if options.bilstm_backend == "cuda" and not persistent.can_run(device, dtype or torch.float32, hidden_size):
        raise UsageError(f"--bilstm-backend cuda: no room on {device} for {hidden_size} hidden units in {precision}")


def check_possible(check: Callable[[str, torch.device], object], precision: str, device: torch.device) -> None:
    """Raise UsageError if the device does not support the precision."""
    try:
        check(precision, device)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def corpus_format(options: argparse.Namespace) -> CorpusFormat:
    label_map = getattr(options, "map_labels", {})  # commands that need no labels lack this option
    scores = getattr(options, "task", None) == "regression"
    return CorpusFormat(
        options.columns, options.quoted, delimiter=options.delimiter, label_map=label_map, scores=scores
    )


def check_label_map(options: argparse.Namespace, names: Collection[str], dropped: int) -> None:
    """Raise UsageError if a label to rename with --map-labels does not occur.

    Args:
        options: the command line.
        names: all labels after renaming.
        dropped: the number of pairs without a gold label.
    """
    for old, new in options.map_labels.items():
        if new not in names and (new != NO_LABELS[0] or not dropped):
            raise UsageError(f"--map-labels {old}={new}: no pair has the label {old}")


def cache(options: argparse.Namespace) -> Path | None:
    if options.no_cache:
        return None
    return Path(options.cache) if options.cache else default_cache()


def prepared(path: str, options: argparse.Namespace, tokenizer: str | Tokenizer, **how: Any) -> PreparedCorpus:
    """Prepare a corpus according to the options of ``add_reading`` and ``add_cache``."""
    given = {"corpus_format": corpus_format(options), "cache": cache(options), "workers": workers(options)}
    given["limit"] = getattr(options, "limit", None)
    return prepare(path, tokenizer, **{**given, **how})


def lines_of_stdin() -> Iterator[bytes]:
    """Yield the lines of stdin as ``bounded_lines`` does."""
    if sys.stdin is None:
        raise UsageError("stdin is closed")
    try:  # use a separate reader, because Python waits at exit for threads that read from sys.stdin
        file: Any = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, io.UnsupportedOperation):
        file = sys.stdin.buffer
    return bounded_lines(file)


def workers(options: argparse.Namespace) -> int | None:
    """Return how many processes may work on a file, or None if --threads is not given."""
    threads = getattr(options, "threads", None)  # commands without a model lack this option
    return None if threads is None else min(threads, processors())


def device_of(options: argparse.Namespace) -> torch.device:
    """Return the device that the options ask for, and set the number of threads."""
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
    """Return the most frequent labels with their counts, and the rest in one entry."""
    counts = (+Counter(corpus.label_counts())).most_common()
    named, rest = [(one_line(label[:40]), count) for label, count in counts[:_LABELS]], counts[_LABELS:]
    return [*named, (f"{len(rest):,} others", sum(count for _, count in rest))] if rest else named


def describe_scores(corpus: PreparedCorpus) -> str:
    """Describe the range and mean of a corpus's scores; it must have some."""
    scores = corpus.scores()
    return f"from {scores.min():g} to {scores.max():g}, {scores.mean(dtype=float):.2f} on average"


def tokenizer_hint(corpus: PreparedCorpus) -> str | None:
    """Return a hint if the sentences seem to need another tokenizer."""
    if not corpus.lengths.size or corpus.lengths.mean() >= 1.5 or not any(map(_CHINESE.search, corpus.words[:1000])):
        return None
    return "sentences are single words; use --tokenizer characters for Chinese or Japanese"


def list_bad_rows(path: str, rows: Sequence[BadRow], most: int | None = None) -> None:
    """Print bad rows on stderr, at most ``most`` of them and then the number of the others."""
    for row in rows[:most]:
        say(f"{path}:{row.line}: {row.reason}")
    if len(rows) > len(rows[:most]):
        say(f"{path}: and {len(rows) - len(rows[:most]):,} more")
