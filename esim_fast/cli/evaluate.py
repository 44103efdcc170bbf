"""``esim-fast evaluate``: score a model on labeled pairs."""

import argparse
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..classifier import Classifier
from ..data import CorpusFormat, EncodedPairs, Pair, PreparedCorpus, read_pairs
from ..data.parsing import NO_LABELS, label_name
from ..data.scores import is_score
from ..errors import DataError, listed
from ..evaluation import confusion, errors
from ..evaluation.figures import Answers, Scores
from ..files import replace_file
from ..labels import positive_or_second
from ..scoring import NOT_FINITE
from . import common
from .options import UsageError, say

_NAMED = 10  # labels to list


def run(options: argparse.Namespace) -> None:
    if NO_LABELS[0] in options.map_labels.values():
        raise UsageError("--map-labels: expected a label that the model can predict, got -")
    _check_output(options.errors, "--errors", errors.FORMS, options.file)
    _check_output(options.confusion, "--confusion", (".png",), options.file)
    model = common.load_model(options)
    is_regression = model.task == "regression"
    # The model's labels are renamed like the gold labels.
    names = [label_name(label, options.map_labels) for label in model.labels]
    labels = list(dict.fromkeys(names))
    _check_possible(options, labels, is_regression)
    corpus_format = replace(common.corpus_format(options), scores=is_regression)
    tokenizer, skip = options.tokenizer or model.tokenizer, options.skip_bad_rows
    corpus = common.prepared(options.file, options, tokenizer, corpus_format=corpus_format, skip_bad_rows=skip)
    common.list_bad_rows(corpus.path, corpus.bad_rows)
    known = set(corpus.label_names) if is_regression else {*labels, *corpus.label_names}
    common.check_label_map(options, known, corpus.unlabeled)
    left_out: dict[str, Any] = {"bad_rows": len(corpus.bad_rows)}
    answers: Answers | Scores
    if is_regression:
        answers = Scores(corpus.scores(), _logits(model, corpus.encode_scores(model.vocabulary), options)[:, 0].numpy())
    else:
        _refuse_scores(corpus, labels, options.model)
        left_out["other_labels"] = {label: n for label, n in corpus.label_counts().items() if label not in labels}
        if skip:
            corpus = corpus.without_other_labels(labels)
        answers = _answers(model, names, corpus.encode(model.vocabulary, labels), options)
    report = answers.figures()
    if options.ranking:
        report["ranking"] = answers.ranking(_queries(corpus))
    report.update(pairs=len(answers.gold), dropped=corpus.unlabeled, left_out=left_out)
    if isinstance(answers, Answers):
        classes = answers.classes()
        report["absent_labels"] = [label for label, figures in classes.items() if not figures["support"]]
        report["classes"] = classes
        rows = zip(labels, answers.confusion().tolist(), strict=True)
        report["confusion_matrix"] = {label: dict(zip(labels, row, strict=True)) for label, row in rows}
        _say_what_is_not_scored(corpus.path, report)
    if options.errors:
        _write_errors(options, answers, corpus, corpus_format, model)
    if options.confusion and isinstance(answers, Answers):
        _draw_confusion(options.confusion, answers)
    print(json.dumps(report, ensure_ascii=False))


def _check_output(name: str | None, option: str, endings: Sequence[str], source: str) -> None:
    """Raise UsageError if a file cannot be written, before an hour's work is lost."""
    if name is None:
        return
    path = Path(name)
    if path.suffix.lower() not in endings:
        raise UsageError(f"{option} {name}: expected a name that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise UsageError(f"{option} {name}: expected a file, got a directory")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {name}: no such directory: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} {name}: cannot write to {path.parent}")
    if path.exists() and os.path.exists(source) and path.samefile(source):
        raise UsageError(f"{option} {name}: this would overwrite the file of pairs")
    if option == "--confusion":
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise UsageError(f'{option} needs matplotlib: pip install "esim_fast[plot]"') from error


def _check_possible(options: argparse.Namespace, labels: list[str], is_regression: bool) -> None:
    """Raise UsageError for options that do not suit the model."""
    if len(labels) == 1 and not is_regression:
        raise UsageError(f"--map-labels: only one label is left, {labels[0]}")
    if is_regression and options.confusion:
        raise UsageError("--confusion: a regression model predicts scores, not labels")
    if options.ranking and not is_regression and positive_or_second(labels) is None:
        raise UsageError(
            f"--ranking: expected a label entailment or 1 that means relevant, got {listed(labels)}; "
            "rename yours with --map-labels OLD=1"
        )


def _refuse_scores(corpus: PreparedCorpus, labels: Sequence[str], model: str) -> None:
    """Raise DataError for a file of scores, instead of reporting each score as a wrong label."""
    scores = [name for name in corpus.label_names if name not in labels and "." in name]
    if scores and all(map(is_score, corpus.label_names)):
        raise DataError(
            f"{corpus.path}: expected a label among {listed(labels)}, got scores such as {scores[0]}; {model} predicts "
            "classes; for scores, train a model with --task regression"
        )


def _logits(model: Classifier, pairs: EncodedPairs, options: argparse.Namespace) -> torch.Tensor:
    """Return float64 logits, so that no two probabilities round to the same number."""
    logits = model.logits(pairs, batch_size=options.batch_size).double()
    if not logits.isfinite().all():
        raise FloatingPointError(NOT_FINITE)
    return logits


def _answers(model: Classifier, names: list[str], pairs: EncodedPairs, options: argparse.Namespace) -> Answers:
    """Return the model's answers, adding up the probabilities of labels with the same name in ``names``."""
    labels = list(dict.fromkeys(names))
    place = torch.tensor([labels.index(name) for name in names])
    logits = _logits(model, pairs, options)
    given = place[model.decide(model.probabilities(logits.float()))]  # the same answers as from predict
    probabilities = torch.zeros(len(logits), len(labels), dtype=torch.float64)
    probabilities.index_add_(1, place, model.probabilities(logits))
    assert pairs.labels is not None
    return Answers(labels, pairs.labels, given.numpy(), probabilities.numpy())


def _queries(corpus: PreparedCorpus) -> np.ndarray:
    """Number the premises of the labeled pairs: int64, the same number for premises with the same words."""
    numbers: dict[bytes, int] = {}
    begins = corpus.ends.reshape(-1, 2) - corpus.lengths
    premises = zip(begins[corpus.labeled, 0], corpus.lengths[corpus.labeled, 0], strict=True)
    return np.array([numbers.setdefault(corpus.tokens[b : b + n].tobytes(), len(numbers)) for b, n in premises])


def _write_errors(
    options: argparse.Namespace,
    answers: Answers | Scores,
    corpus: PreparedCorpus,
    corpus_format: CorpusFormat,
    model: Classifier,
) -> None:
    order = errors.worst_first(answers)
    lines = corpus.lines[corpus.labeled]
    pairs = _pairs_at({int(lines[index]): int(index) for index in order}, corpus.path, corpus_format)
    errors.save(Path(options.errors), answers, pairs, model, os.path.basename(corpus.path))
    what = "pair" if isinstance(answers, Scores) else "wrong pair"
    say(f"{options.errors}: {len(order):,} {what}{'' if len(order) == 1 else 's'}")


def _pairs_at(places: Mapping[int, int], path: str, corpus_format: CorpusFormat) -> dict[int, Pair]:
    """Read the pairs of some lines, the keys of ``places``, from the file; the prepared corpus has only words."""
    rows = read_pairs(path, corpus_format, on_bad_row=lambda row: None)
    found = {places[pair.line]: pair for pair in rows if pair.line in places}
    if len(found) < len(places):
        raise DataError(f"{path}: the file changed while it was evaluated")
    return found


def _draw_confusion(name: str, answers: Answers) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        replace_file(Path(name), lambda partial: confusion.draw(partial, answers.labels, answers.confusion()))
    for warning in caught:
        say(f"esim-fast: {name}: {warning.message}")


def _say_what_is_not_scored(path: str, report: dict[str, Any]) -> None:
    others, absent = report["left_out"]["other_labels"], report["absent_labels"]
    remedy = "; to merge labels, use --map-labels OLD=NEW"
    if others:
        counts = ", ".join(f"{label} {count}" for label, count in islice(others.items(), _NAMED))
        labels = listed(list(report["classes"]))
        say(f"{path}: skipped {sum(others.values())} pairs: expected a label among {labels}, got {counts}{remedy}")
    if absent:
        say(f"{path}: no pair has the label {listed(absent)}, which the model can predict{remedy}")
