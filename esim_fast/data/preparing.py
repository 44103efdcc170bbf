"""Turn corpora into arrays: read them, tokenize them in parallel, and cache the result.

The cached arrays do not depend on a vocabulary or on a model's labels, because words and labels are numbered within the
file. Two small tables map these numbers to a model's ids, so all models share one cached file.
"""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..errors import BadRowError, DataError, listed, one_line
from ..labels import LabelNames, label_names
from ..terminal import is_watched
from ..tokenizing import NOT_PLAIN, TOKENIZERS, Tokenizer, check_words, get_tokenizer, name_of, split
from .batches import EncodedPairs
from .cache import Arrays, kept, text_array, text_of
from .hub import fingerprint
from .parallel import Result, ShouldStop, can_fork, map_in_processes, never, processors
from .reading import KNOWN_NAMES, BadRow, CorpusFormat, RowParser, corpus_lines, open_corpus, parse_record
from .records import Record
from .scores import score_of
from .vocabulary import UNSAVABLE, Vocabulary

NO_LABEL, LEFT_OUT = -1, -2  # instead of a label's number

_FORMAT = "3"  # of cached corpora; others are not used
ROWS, BYTES = 2048, 2**22  # the most to tokenize as one chunk
_PARALLEL_FROM = 4  # chunks; fewer are done before other processes have started
_EXPECTED = {  # dtype and dimensions
    **dict.fromkeys(("tokens", "labels"), (torch.int32, 1)),
    **dict.fromkeys(("ends", "lines"), (torch.int64, 1)),
    **dict.fromkeys(("words", "label_names", "bad_rows"), (torch.uint8, 1)),
}
# Tokenizers that depend only on their name and NLTK's version, so that their results can be cached.
_LASTING = TOKENIZERS.keys() - {"nltk-punkt"}


@dataclass(frozen=True)
class PreparedCorpus:
    """The n pairs of a file as flat arrays, in the file's order, including rows without a gold label.

    Attributes:
        path: the file.
        tokens: int32 ``[number of tokens]``, indices into ``words``: premise and hypothesis of the first pair, then of
            the second, and so on.
        ends: int64 ``[2n]``, the end of each sentence in ``tokens``.
        labels: int32 ``[n]``, indices into ``label_names``; -1 for no gold label, -2 for a pair that is skipped.
        lines: int64 ``[n]``, the line of each pair in the file.
        words: the distinct words, in order of first occurrence.
        label_names: the distinct labels, in order of first occurrence.
        bad_rows: the rows that were skipped because they could not be read.
    """

    path: str
    tokens: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    words: list[str]
    label_names: list[str]
    bad_rows: list[BadRow]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def labeled(self) -> np.ndarray:
        """Which pairs have a label: bool ``[n]``."""
        return self.labels >= 0

    @property
    def unlabeled(self) -> int:
        """The number of pairs without a gold label."""
        return int((self.labels == NO_LABEL).sum())

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of words in each premise and hypothesis: int64 ``[n, 2]``."""
        return np.diff(self.ends, prepend=0).reshape(-1, 2)

    def label_counts(self) -> dict[str, int]:
        """Count the pairs with each label, by name."""
        counts = np.bincount(self.labels[self.labeled], minlength=len(self.label_names))
        return dict(sorted(zip(self.label_names, counts.tolist(), strict=True)))

    def word_counts(self, *, labeled: bool) -> Counter[str]:
        """Count how often each word occurs; with ``labeled``, only in pairs with a label."""
        tokens = self.tokens
        if labeled and not self.labeled.all():
            tokens = tokens[np.repeat(self.labeled, self.lengths.sum(1))]
        counts = np.bincount(tokens, minlength=len(self.words)).tolist()
        return Counter({word: count for word, count in zip(self.words, counts, strict=True) if count})

    @cached_property
    def digest(self) -> str:
        """A hash of the content: equal pairs have equal digests, whatever file they are from."""
        digest = hashlib.sha256("\n".join((*self.words, *self.label_names)).encode())
        for part in (self.tokens, self.ends, self.labels):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def label_ids(self, labels: LabelNames) -> np.ndarray:
        """Return the labels of the labeled pairs as indices into ``labels``: int64.

        Args:
            labels: names in the order of their ids, or a dict of ids by name or of names by id.

        Raises:
            TypeError: ``labels`` has another type.
            ValueError: a label is repeated, or the ids are not 0 to n - 1.
            DataError: a pair's label is not among ``labels``.
        """
        names = label_names(labels)
        known = {label: index for index, label in enumerate(names)}
        ids = np.array([known.get(name, -1) for name in self.label_names], dtype=np.int64)
        for row in self._with_other_labels(names)[:1]:
            raise DataError(f"{self.path}:{row.line}: {row.reason}")
        return ids[self.labels[self.labeled]]

    def without_other_labels(self, labels: LabelNames) -> "PreparedCorpus":
        """Return the corpus with pairs of any other label skipped and listed as bad rows.

        Args:
            labels: as for ``label_ids``.

        Raises:
            TypeError: ``labels`` has another type.
            ValueError: a label is repeated, or the ids are not 0 to n - 1.
            DataError: no pair is left.
        """
        names = label_names(labels)
        rows = self._with_other_labels(names)
        if len(rows) == self.labeled.sum():
            raise DataError(f"{self.path}: expected labels among {listed(names)}, got none of them")
        wrong = np.isin(self.lines, [row.line for row in rows])
        return replace(self, labels=np.where(wrong, LEFT_OUT, self.labels), bad_rows=sorted([*self.bad_rows, *rows]))

    def _with_other_labels(self, labels: list[str]) -> list[BadRow]:
        others = [place for place, name in enumerate(self.label_names) if name not in labels]
        expected = f"expected a label among {listed(labels)}, got"
        remedy = " (to rename it, use --map-labels OLD=NEW)"
        return [
            BadRow(int(self.lines[pair]), f"{expected} {self.label_names[self.labels[pair]]!r}{remedy}")
            for pair in np.flatnonzero(np.isin(self.labels, others))
        ]

    def scores(self) -> np.ndarray:
        """Return the labels of the labeled pairs as numbers: float64.

        Raises:
            DataError: a label is not a number; or some scores are negative while some pairs have no gold label, so that
                -1 could mean either.
        """
        numbers = np.empty(len(self.label_names), dtype=np.float64)
        for place, name in enumerate(self.label_names):
            try:
                numbers[place] = score_of(name)
            except BadRowError as error:
                line = self.lines[np.flatnonzero(self.labels == place)[0]]
                raise DataError(f"{self.path}:{line}: {error}") from error
        if self.unlabeled and (numbers < 0).any():
            raise DataError(
                f"{self.path}: {self.unlabeled} pairs have no gold score (- or -1), but some scores are negative; "
                "if -1 is a score, use --map-labels=-1=-1e0, otherwise remove these pairs"
            )
        return numbers[self.labels[self.labeled]]

    def encode(self, vocabulary: Vocabulary, labels: LabelNames) -> EncodedPairs:
        """Return the labeled pairs as word ids and label ids; raises as ``label_ids`` does."""
        return self._encode(vocabulary, self.label_ids(labels))

    def encode_scores(self, vocabulary: Vocabulary) -> EncodedPairs:
        """Return the labeled pairs as word ids and float32 scores; raises as ``scores`` does."""
        return self._encode(vocabulary, self.scores().astype(np.float32))

    def _encode(self, vocabulary: Vocabulary, labels: np.ndarray) -> EncodedPairs:
        lengths = self.lengths[self.labeled]
        begins = self.ends.reshape(-1, 2)[self.labeled] - lengths
        ids = np.array(vocabulary.encode(self.words), dtype=np.int64)
        return EncodedPairs.of_tokens(self.tokens, ids, begins, lengths, labels)


def prepare(
    path: str | os.PathLike[str],
    tokenizer: str | Tokenizer = "nltk",
    corpus_format: CorpusFormat = KNOWN_NAMES,
    *,
    labeled: bool = True,
    skip_bad_rows: bool = False,
    allow_empty: bool = False,
    limit: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> PreparedCorpus:
    """Read and tokenize a corpus, or load the cached result of an earlier call.

    Args:
        path: the file, or ``hub:NAME#SPLIT``.
        tokenizer: a name that ``get_tokenizer`` knows, or a function from a sentence to its words.
        corpus_format: how the rows are written.
        labeled: whether every row needs a label.
        skip_bad_rows: skip rows that cannot be read, and list them in ``bad_rows``.
        allow_empty: allow a corpus without pairs.
        limit: read at most this many rows from the beginning.
        cache: the folder in which to save the result, such as ``default_cache()``; None saves nothing. Results of your
            own tokenizer, or of NLTK's Punkt data, are never saved, because the same call could return something else
            later.
        workers: processes that tokenize; None: one for each usable CPU, at most 16.

    Returns:
        The corpus as arrays.

    Raises:
        DataError: the file cannot be read, a row is malformed, or no pair is left.
    """
    name, tokenizer_name = os.fspath(path), name_of(tokenizer)
    tokenize = get_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    lines, form = corpus_lines(name)

    def read() -> Arrays:
        records, parse = open_corpus(lines, name, corpus_format, form=form, labeled=labeled, look_ahead=True)
        records = islice(records, limit)
        return _tokenize(records, parse, tokenize, tokenizer_name, name, skip_bad_rows, workers)

    options = {
        "format": _FORMAT,
        "form": form,
        "tokenizer": f"{tokenizer_name}, nltk {version('nltk')}",
        "corpus_format": json.dumps(asdict(corpus_format)),
        "labeled": str(labeled),
        **({} if limit is None else {"limit": str(limit)}),
    }
    content = fingerprint(name) if name.startswith("hub:") else None
    place = cache if tokenizer_name in _LASTING else None
    corpus = _unpack(name, kept(place, name, options, read, content=content, fits=_fits))
    if corpus.bad_rows and not skip_bad_rows:
        raise DataError(f"{name}:{corpus.bad_rows[0].line}: {corpus.bad_rows[0].reason}")
    usable = int(corpus.labeled.sum()) if labeled else len(corpus)
    if not usable and not allow_empty:
        got = f"only {len(corpus)} without a gold label" if len(corpus) else "none"
        if corpus.bad_rows:
            found = "; bad row at" if len(corpus) else " that can be read;"
            got += f"{found} line {corpus.bad_rows[0].line}: {corpus.bad_rows[0].reason}"
        raise DataError(f"{name}: expected sentence pairs, got {got}")
    return corpus


def prepare_lines(
    lines: Iterable[bytes], name: str, tokenizer: str | Tokenizer, corpus_format: CorpusFormat
) -> PreparedCorpus:
    """Do the same for labeled pairs given as JSON objects, one per line; nothing is cached.

    Raises:
        DataError: a row is malformed, or no pair has a label.
    """
    tokenize = get_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    records, parse = open_corpus(lines, name, corpus_format, form="json", labeled=True, look_ahead=True)
    corpus = _unpack(name, _tokenize(records, parse, tokenize, name_of(tokenizer), name, False, None))
    if not corpus.labeled.any():
        raise DataError(f"{name}: expected labeled pairs, got {len(corpus)} without a gold label")
    return corpus


def _tokenize(
    records: Iterator[Record],
    parse: RowParser,
    tokenize: Tokenizer,
    tokenizer_name: str,
    name: str,
    skip_bad_rows: bool,
    workers: int | None,
) -> Arrays:
    if tokenizer_name in TOKENIZERS:
        tokenize(NOT_PLAIN)  # import what it needs once, before forking
    work = partial(_tokenize_part, parse=parse, tokenize=tokenize, name=name, tokenizer=tokenizer_name)
    with closing(in_parts(work, records, workers or processors())) as parts:
        return _put_together(parts, name, skip_bad_rows)


def _unpack(name: str, arrays: Arrays) -> PreparedCorpus:
    words = text_of(arrays["words"])
    label_names, bad_rows = (json.loads(text_of(arrays[part])) for part in ("label_names", "bad_rows"))
    return PreparedCorpus(
        path=name,
        **{part: arrays[part].numpy() for part in ("tokens", "ends", "labels", "lines")},
        words=words.split("\n") if words else [],
        label_names=label_names,
        bad_rows=[BadRow(*row) for row in bad_rows],
    )


def _fits(arrays: Arrays) -> bool:
    """Return whether cached arrays form a valid corpus, with all indices in range."""
    if {name: (array.dtype, array.dim()) for name, array in arrays.items()} != _EXPECTED:
        return False
    try:
        corpus = _unpack("", arrays)
        "".join(corpus.label_names).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    ends = corpus.ends
    return (
        len(ends) == 2 * len(corpus)
        and len(corpus.lines) == len(corpus)
        and (ends[-1] if len(ends) else 0) == len(corpus.tokens)
        and _lie_within(ends, 0, len(corpus.tokens))
        and bool((corpus.lengths >= 0).all())
        and _lie_within(corpus.tokens, 0, len(corpus.words) - 1)
        and _lie_within(corpus.labels, LEFT_OUT, len(corpus.label_names) - 1)
        and len(set(corpus.words)) == len(corpus.words)
        and all(word and not UNSAVABLE.search(word) for word in corpus.words)
        and isinstance(corpus.label_names, list)
        and all(isinstance(row.line, int) and row.reason == one_line(row.reason) for row in corpus.bad_rows)
    )


def _lie_within(numbers: np.ndarray, least: int, most: int) -> bool:
    return not len(numbers) or bool(least <= numbers.min() and numbers.max() <= most)


class _Tokenized(NamedTuple):
    """Some tokenized rows; words and labels are numbered in order of first occurrence."""

    tokens: array  # of int32
    lengths: array  # of int32, two for each pair
    labels: array  # of int32
    lines: array  # of int64
    words: list[str]
    label_names: list[str]
    bad_rows: list[BadRow]


class _Numbers(dict[str, int]):
    """Numbers of words in order of first occurrence; only a word's first occurrence is checked."""

    def __missing__(self, word: str) -> int:
        if not word or UNSAVABLE.search(word):
            raise ValueError(f"expected words without line breaks, got {word[:100]!r}")
        return self.setdefault(word, len(self))

    def of(self, sentence: str, tokenize: Tokenizer, tokenizer: str) -> array:
        """Return the numbers of a sentence's words; raise DataError if the tokenizer returns anything else."""
        found = split(sentence, tokenize, tokenizer)
        try:
            return array("i", map(self.__getitem__, found))
        except (TypeError, ValueError) as error:
            check_words(found, sentence, tokenizer)
            raise DataError(f"tokenizer {tokenizer}: {error} for {sentence[:40]!r}") from error


def _tokenize_part(
    records: list[Record], should_stop: ShouldStop, *, parse: RowParser, tokenize: Tokenizer, name: str, tokenizer: str
) -> _Tokenized:
    words = _Numbers()
    names: dict[str, int] = {}
    known: dict[str, array] = {}  # by sentence; SNLI has three hypotheses for each premise
    part = _Tokenized(array("i"), array("i"), array("i"), array("q"), [], [], [])
    for record in records:
        if should_stop():
            raise KeyboardInterrupt
        if record.is_end:  # not just a bad row, because the rest of the file is lost
            raise DataError(f"{name}:{record.line}: {record.problem}")
        try:
            pair = parse_record(record, parse)
        except BadRowError as error:
            part.bad_rows.append(BadRow(record.line, str(error)))
            continue
        for sentence in (pair.premise, pair.hypothesis):
            tokens = known.get(sentence)
            if tokens is None:
                try:
                    tokens = words.of(sentence, tokenize, tokenizer)
                except DataError as error:
                    raise DataError(f"{name}:{record.line}: {error}") from error
                known[sentence] = tokens
            part.tokens.extend(tokens)
            part.lengths.append(len(tokens))
        part.labels.append(NO_LABEL if pair.label is None else names.setdefault(pair.label, len(names)))
        part.lines.append(pair.line)
    return part._replace(words=list(words), label_names=list(names))


def _put_together(found: Iterable[_Tokenized], name: str, skip_bad_rows: bool) -> Arrays:
    """Join the parts of a corpus in order; the result does not depend on how it was cut."""
    words: dict[str, int] = {}
    names: dict[str, int] = {}
    parts: list[tuple[np.ndarray, ...]] = []
    bad_rows: list[BadRow] = []
    pause = 0.2 if is_watched() else 10.0  # seconds; a log file should stay short
    with tqdm(desc=f"{name}: tokenizing", unit="row", unit_scale=True, delay=1, mininterval=pause, leave=False) as bar:
        for part in found:
            if part.bad_rows and not skip_bad_rows:
                raise DataError(f"{name}:{part.bad_rows[0].line}: {part.bad_rows[0].reason}")
            places = np.array([words.setdefault(word, len(words)) for word in part.words], dtype=np.int32)
            ids = [names.setdefault(label, len(names)) for label in part.label_names]
            tokens, labels = places[np.asarray(part.tokens)], np.array([*ids, NO_LABEL], dtype=np.int32)
            labels = labels[np.asarray(part.labels)]  # NO_LABEL is -1, so it picks the last element
            parts.append((tokens, np.asarray(part.lengths), labels, np.asarray(part.lines)))
            bad_rows += part.bad_rows
            bar.update(len(part.labels))
    empty = tuple(np.empty(0, kind) for kind in (np.int32, np.int32, np.int32, np.int64))
    tokens, lengths, labels, lines = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return {
        "tokens": torch.from_numpy(tokens),
        "ends": torch.from_numpy(np.cumsum(lengths, dtype=np.int64)),
        "labels": torch.from_numpy(labels),
        "lines": torch.from_numpy(lines),
        "words": text_array("\n".join(words)),
        "label_names": text_array(json.dumps(list(names))),
        "bad_rows": text_array(json.dumps(bad_rows)),
    }


def in_parts(
    work: Callable[[list[Record], ShouldStop], Result], records: Iterator[Record], workers: int
) -> Generator[Result, None, None]:
    """Yield what ``work`` returns for each chunk of rows, in order; use other processes if there are many rows."""
    cut = _chunks(records)
    first = list(islice(cut, _PARALLEL_FROM))
    if workers > 1 and len(first) == _PARALLEL_FROM and can_fork():
        yield from map_in_processes(work, chain(first, cut), workers)
    else:
        yield from (work(chunk, never) for chunk in chain(first, cut))


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.content)
        if len(chunk) == ROWS or size >= BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
