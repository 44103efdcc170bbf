"""``esim-fast data``: describe corpora."""

import argparse
from collections import Counter
from collections.abc import Container

import numpy as np

from ..data import BadRow, PreparedCorpus, words_with_vector
from ..errors import DataError
from ..terminal import is_watched
from . import common
from .options import say


def run(options: argparse.Namespace) -> int:
    first: tuple[str, Counter[str]] | None = None
    listed: set[BadRow] = set()  # bad rows of the vectors that were listed already
    code = 0
    for path in options.files:
        try:
            corpus = _prepare(path, options)
            if options.task == "regression":
                corpus.scores()  # raises DataError if they are not numbers
        except DataError as error:
            say(f"esim-fast: {error}")
            code = 2
            continue
        common.list_bad_rows(path, corpus.bad_rows)
        code = max(code, 1 if corpus.bad_rows else 0)
        words = corpus.word_counts(labeled=False)
        figures = _figures(corpus, words, has_scores=options.task == "regression")
        if first is not None:
            figures["known"] = f"{_coverage(words, first[1])} are in {first[0]}"
        if options.vectors:
            bad: list[BadRow] = []
            found = words_with_vector(
                options.vectors,
                words,
                cache=common.cache(options),
                on_bad_row=bad.append,
                show_progress_bar=is_watched(),
            )
            common.list_bad_rows(options.vectors, [row for row in bad if row not in listed], common.VECTOR_ROWS)
            listed.update(bad)
            code = max(code, 1 if bad else 0)
            figures["with a vector"] = _coverage(words, set(found))
        print(path if first is None else f"\n{path}")
        for name, figure in figures.items():
            print(f"  {name:<14} {figure}")
        first = first or (path, words)
    return code


def _prepare(path: str, options: argparse.Namespace) -> PreparedCorpus:
    """Read the corpus as training would, or without labels if it has none."""

    def read(labeled: bool) -> PreparedCorpus:
        how = {"labeled": labeled, "skip_bad_rows": True, "allow_empty": True}
        return common.prepared(path, options, options.tokenizer, **how)

    if options.columns is not None:
        return read(labeled=len(options.columns) == 3)
    try:
        corpus = read(labeled=True)
    except DataError:
        corpus = read(labeled=False)
        if corpus.labeled.any():  # it has labels, so something else is wrong
            raise
        return corpus
    return corpus if len(corpus) else read(labeled=False)


def _figures(corpus: PreparedCorpus, words: Counter[str], has_scores: bool) -> dict[str, str]:
    bad = f", {common.bad_rows(len(corpus.bad_rows))}" if corpus.bad_rows else ""
    shares = [f"{label} {count:,} ({count / len(corpus):.1%})" for label, count in common.labels_of(corpus)]
    figures = {
        "pairs": f"{len(corpus):,}, {corpus.unlabeled:,} without a gold {'score' if has_scores else 'label'}{bad}"
    }
    if has_scores:
        figures["scores"] = common.describe_scores(corpus) if corpus.labeled.any() else "none"
    else:
        figures["labels"] = ", ".join(shares) or "none"
    for side, name in enumerate(("premises", "hypotheses") if len(corpus) else ()):
        lengths = corpus.lengths[:, side]
        empty = f", {np.count_nonzero(lengths == 0):,} empty" if not lengths.all() else ""
        middle, most = np.percentile(lengths, (50, 99), method="higher")
        spread = f"median {middle}, 99th percentile {most}, longest {lengths.max()}"
        figures[name] = f"{lengths.mean():.1f} words on average, {spread}{empty}"
    figures["vocabulary"] = f"{len(words):,} distinct words of {words.total():,}"
    if hint := common.tokenizer_hint(corpus):
        figures["hint"] = hint
    return figures


def _coverage(words: Counter[str], known: Container[str]) -> str:
    shared = [word for word in words if word in known]
    of_text = sum(words[word] for word in shared) / max(1, words.total())
    return f"{len(shared) / max(1, len(words)):.2%} of the words, {of_text:.2%} of the text"
