"""``esim-fast rank``: find the candidates that best match a query, in constant memory."""

import argparse
import json
from collections.abc import Iterator

from ..data import CorpusFormat, read_pairs
from ..data.reading import parse_pairs
from ..errors import DataError
from ..ranking import best_candidates, output_of
from . import common
from .options import UsageError

_SENTENCES = CorpusFormat(text=True)


def run(options: argparse.Namespace) -> None:
    if (options.query is None) == (options.queries is None):
        raise UsageError("give either --query or --queries")
    if options.queries == options.candidates == "-":
        raise UsageError("--queries and --candidates cannot both be stdin")
    model = common.load_model(options)
    try:
        output = output_of(model, options.label)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    queries = [options.query] if options.queries is None else [text for _, text in _sentences(options.queries)]
    candidates, top_k = _sentences(options.candidates), options.top_k or None
    found = best_candidates(model, queries, candidates, top_k=top_k, output=output, batch_size=options.batch_size)
    for query, best in zip(queries, found, strict=True):
        asked = {} if options.queries is None else {"query": query}
        for line, score, text in best:
            print(json.dumps({**asked, "line": line, "score": round(score, 6), "text": text}, ensure_ascii=False))


def _sentences(path: str) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines of a file or stdin with their numbers; raise DataError if there are none."""
    if path == "-":
        path = "stdin"
        pairs = parse_pairs(common.lines_of_stdin(), path, _SENTENCES, form="tsv", labeled=False)
    else:
        pairs = read_pairs(path, _SENTENCES, labeled=False)
    pair = None
    for pair in pairs:
        if "\t" in pair.premise:
            raise DataError(f"{path}:{pair.line}: expected one sentence, got columns")
        yield pair.line, pair.premise
    if pair is None:
        raise DataError(f"{path}: expected one sentence per line, got none")
