"""Find, read and describe the data that a model is trained on."""

import argparse
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from ..data import CorpusFormat, EncodedPairs, PreparedCorpus, Vocabulary, read_pairs
from ..data.folders import find_corpus
from ..data.reading import corpus_form, is_object
from ..data.records import read_lines
from ..errors import DataError
from . import common
from .options import UsageError, say

_MOST_LABELS = 1000  # with more, the column holds something else, such as sentences
_FEW_LABELS = 10  # so few labels need not recur
_FEW_SCORES = 5  # so few numbers may be names of classes
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_MANY_UNLABELED = 0.2  # of all pairs; with more, the -1 among numbered classes may be a class
_SCORE = ["score"]  # the one label of a regression model
_PROBE = 100  # rows; a test file without a label in so many rows is unlabeled
_HEADER_FROM = 100  # rows; in a file of so many, a label that occurs only in the first row is a column's name
_MOST_PLACES = 8  # rows to list


class TrainingFiles(NamedTuple):
    """The files that a model is trained on."""

    train: list[str]
    dev: str
    test: str | None
    unlabeled: str | None  # the folder's test file, if it is not used because it has no labels


def find_files(options: argparse.Namespace) -> TrainingFiles:
    """Return the files that the command line asks for."""
    named = [option for option in ("train", "dev", "test") if getattr(options, option)]
    if options.data:
        if named:
            raise UsageError(f"--data and --{named[0]} exclude each other")
        files = find_corpus(options.data)
        if files.test and not _has_labels(files.test, options):
            return TrainingFiles([files.train], files.dev, None, files.test)
        return TrainingFiles([files.train], files.dev, files.test, None)
    if not named:
        sample = resources.files("esim_fast.data") / "sample"
        return TrainingFiles([str(sample / "train.tsv")], str(sample / "dev.tsv"), None, None)
    for part in ("train", "dev"):
        if part not in named:
            raise UsageError(f"--{named[0]} needs --{part} as well, a file of its own")
    return TrainingFiles(options.train, options.dev, options.test, None)


def _has_labels(path: str, options: argparse.Namespace) -> bool:
    rows = read_pairs(path, common.corpus_format(options), labeled=False, on_bad_row=lambda row: None)
    return any(pair.label is not None for pair in islice(rows, _PROBE))


@dataclass(frozen=True)
class TrainingData:
    """The content of the training files."""

    train: list[PreparedCorpus]
    dev: PreparedCorpus
    test: PreparedCorpus | None
    vocabulary: Vocabulary  # of the training pairs
    more_words: list[str]  # words that join the vocabulary if they have a vector
    labels: list[str]  # one placeholder in regression
    digest: str  # of the training and dev pairs

    @property
    def has_scores(self) -> bool:
        return self.labels == _SCORE

    def encode_train(self, vocabulary: Vocabulary) -> EncodedPairs:
        """Return the training pairs of all files, concatenated."""
        return EncodedPairs.concatenated([self.encode(corpus, vocabulary) for corpus in self.train])

    def encode(self, corpus: PreparedCorpus, vocabulary: Vocabulary) -> EncodedPairs:
        return corpus.encode_scores(vocabulary) if self.has_scores else corpus.encode(vocabulary, self.labels)

    def mean_score(self) -> float:
        """Return the mean score of the training pairs."""
        return float(np.concatenate([corpus.scores() for corpus in self.train]).mean(dtype=float))

    def places(self, indices: Sequence[int]) -> str:
        """Return files and lines of the training pairs with these indices."""
        places, begin = [], 0
        for corpus in self.train:
            lines = np.asarray(corpus.lines)[corpus.labeled]
            here = sorted(int(lines[index - begin]) for index in indices if 0 <= index - begin < len(lines))
            more = ", …" if len(here) > _MOST_PLACES else ""
            if here:
                places.append(f"{corpus.path}:{', '.join(map(str, here[:_MOST_PLACES]))}{more}")
            begin += len(lines)
        return "; ".join(places)

    def describe(self) -> None:
        """Print on stderr what was read."""
        for corpus in filter(None, (*self.train, self.dev, self.test)):
            if self.has_scores:
                counts = f"scores {common.describe_scores(corpus)}"
            else:
                counts = ", ".join(f"{label} {count}" for label, count in sorted(common.labels_of(corpus)))
            dropped = f"; skipped {corpus.unlabeled} without a gold label" if corpus.unlabeled else ""
            bad = f"; skipped {common.bad_rows(len(corpus.bad_rows))}:" if corpus.bad_rows else ""
            say(f"{corpus.path}: {corpus.labeled.sum()} pairs ({counts}){dropped}{bad}")
            common.list_bad_rows(corpus.path, corpus.bad_rows)
            if hint := common.tokenizer_hint(corpus):
                say(f"{corpus.path}: {hint}")


def read_files(files: TrainingFiles, options: argparse.Namespace) -> TrainingData:
    """Read all files before training starts, so that a mistake in the test file does not show up hours later."""

    def read(path: str, **how: Any) -> PreparedCorpus:
        return common.prepared(path, options, options.tokenizer, skip_bad_rows=options.skip_bad_rows, **how)

    def read_words(path: str) -> PreparedCorpus:
        how = {} if _has_columns(path) else {"corpus_format": CorpusFormat(text=True), "allow_empty": True}
        return read(path, labeled=False, **how)

    train = [read(path) for path in files.train]
    dev = read(files.dev)
    test = read(files.test) if files.test else None
    every = [*train, dev, *([test] if test else [])]
    if options.task == "regression":
        labels = _SCORE
        _check_scores(train, every)
    else:
        labels = _labels(train, is_minus_one_clear="-1" in options.map_labels)
    names = {name for corpus in every for name in corpus.label_names}
    common.check_label_map(options, names, sum(corpus.unlabeled for corpus in every))
    if options.skip_bad_rows and labels != _SCORE:
        dev = dev.without_other_labels(labels)
        test = test and test.without_other_labels(labels)
    more: list[PreparedCorpus | None] = []
    if options.extend_vocabulary:
        more = [read_words(path) for path in options.extend_vocabulary]
    elif options.extend_vocabulary is not None:
        unlabeled = read(files.unlabeled, labeled=False) if files.unlabeled and not test else None
        more = [dev, test or unlabeled]
    others = list(filter(None, more))
    for corpus in others if options.extend_vocabulary else ():  # dev and test are described with the other files
        common.list_bad_rows(corpus.path, corpus.bad_rows)
    counts = sum((corpus.word_counts(labeled=False) for corpus in others), Counter())
    digests = " ".join(corpus.digest for corpus in (*train, dev))
    return TrainingData(
        train,
        dev,
        test,
        vocabulary=Vocabulary.build(sum((corpus.word_counts(labeled=True) for corpus in train), Counter())),
        more_words=Vocabulary.build(counts).words[2:],
        labels=labels,
        digest=hashlib.sha256(digests.encode()).hexdigest(),
    )


def _has_columns(path: str) -> bool:
    """Return whether a file holds pairs, rather than plain text or a list of words."""
    if corpus_form(path) != "tsv" or not os.path.isfile(path):
        return True
    first = next(read_lines(path), b"")
    return b"\t" in first or is_object(first)


def _labels(train: Sequence[PreparedCorpus], is_minus_one_clear: bool) -> list[str]:
    """Return the labels of the training corpora in the order of their ids; raise DataError if they look wrong."""
    counts = sum((Counter(corpus.label_counts()) for corpus in train), Counter())
    labels = sorted(counts)
    path = ", ".join(corpus.path for corpus in train)
    hint = "(is the label in another column? Name the columns with --columns)"
    _refuse_scores(path, labels)
    if not 2 <= len(labels) <= _MOST_LABELS:
        few = "only " + repr(labels[0]) if len(labels) == 1 else f"{len(labels)}, such as {labels[0][:40]!r}"
        raise DataError(f"{path}: expected 2 to {_MOST_LABELS} labels, got {few} {hint}")
    pairs = sum(int(corpus.labeled.sum()) for corpus in train)
    if len(labels) > max(_FEW_LABELS, pairs / 5):
        got = f"{len(labels)} for {pairs} pairs, such as {labels[0][:40]!r}"
        raise DataError(f"{path}: expected labels that recur, got {got} {hint}")
    unlabeled = sum(corpus.unlabeled for corpus in train)
    if not is_minus_one_clear and all(map(str.isdecimal, labels)) and unlabeled > _MANY_UNLABELED * (unlabeled + pairs):
        raise DataError(
            f"{path}: {unlabeled} of {unlabeled + pairs} pairs have no gold label; if -1 is a class, name it with "
            "--map-labels=-1=NAME, otherwise use --map-labels=-1=-"
        )
    for label, other in pairwise(sorted(labels, key=str.casefold)):
        if label.casefold() == other.casefold():
            raise DataError(
                f"{path}: expected labels that differ by more than case, got {label!r} and {other!r}; "
                f"merge them with --map-labels {label}={other}"
            )
    lone = [label for label in labels if counts[label] == 1]
    for corpus in train:
        first = corpus.label_names[corpus.labels[0]] if corpus.labeled[0] else None
        if first in lone and len(corpus) >= _HEADER_FROM and len(lone) <= len(train):
            raise DataError(
                f"{corpus.path}:{corpus.lines[0]}: no other row has the label {first!r}; "
                "if this row is a header, name its columns with --columns"
            )
    return labels


def _refuse_scores(path: str, labels: Sequence[str]) -> None:
    """Raise DataError if labels are fractions, such as STS-B's scores of similarity."""
    if len(labels) <= _FEW_SCORES or not all(map(_NUMBER.fullmatch, labels)):
        return
    fractions = [label for label in labels if "." in label]
    if fractions:
        raise DataError(
            f"{path}: expected classes, got {len(labels)} scores, such as {fractions[0][:40]}; use "
            "--task regression, or put the scores into bins"
        )


def _check_scores(train: Sequence[PreparedCorpus], every: Sequence[PreparedCorpus]) -> None:
    """Raise DataError for scores that are not numbers, or that are all the same."""
    for corpus in every:
        corpus.scores()
    scores = np.concatenate([corpus.scores() for corpus in train])
    if scores.min() == scores.max():
        paths = ", ".join(corpus.path for corpus in train)
        raise DataError(f"{paths}: expected scores that differ, got only {scores[0]:g}")
