"""``esim-fast evaluate``: score a model on labeled pairs."""

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from ..data import EncodedPairs
from ..data.parsing import NO_LABELS, label_name
from ..errors import listed
from . import common
from .options import UsageError, say

_NAMED = 10  # labels


def run(options: argparse.Namespace) -> None:
    if NO_LABELS[0] in options.map_labels.values():
        raise UsageError("--map-labels: the model cannot predict -")
    model = common.load_model(options)
    tokenizer, skip = options.tokenizer or model.tokenizer, options.skip_bad_rows
    corpus = common.prepared(options.file, options, tokenizer, skip_bad_rows=skip)
    common.list_bad_rows(corpus.path, corpus.bad_rows)
    # The names of gold labels have gone the same way.
    answers = [label_name(label, options.map_labels) for label in model.labels]
    labels = list(dict.fromkeys(answers))
    common.check_label_map(options, {*labels, *corpus.label_names}, corpus.unlabeled)
    others = {label: count for label, count in corpus.label_counts().items() if label not in labels}
    left_out = {"bad_rows": len(corpus.bad_rows), "other_labels": others}
    if skip:
        corpus = corpus.without_other_labels(labels)
    pairs = corpus.encode(model.vocabulary, labels)
    label_of_answer = torch.tensor([labels.index(answer) for answer in answers])
    predicted = label_of_answer[model.logits(pairs, batch_size=options.batch_size).argmax(1)]
    report = _report(labels, pairs, predicted, corpus.unlabeled, left_out)
    _say_what_is_not_scored(corpus.path, report)
    print(json.dumps(report, ensure_ascii=False))


def _say_what_is_not_scored(path: str, report: dict[str, Any]) -> None:
    others, absent = report["left_out"]["other_labels"], report["absent_labels"]
    remedy = "; --map-labels OLD=NEW makes one label of several"
    if others:
        counts = ", ".join(f"{label} {count}" for label, count in islice(others.items(), _NAMED))
        labels = listed(list(report["classes"]))
        say(f"{path}: {sum(others.values())} pairs left out: expected a label among {labels}, got {counts}{remedy}")
    if absent:
        say(f"{path}: no pair has the label {listed(absent)}, although the model can predict it{remedy}")


def _report(
    labels: Sequence[str], pairs: EncodedPairs, predicted: torch.Tensor, dropped: int, left_out: dict[str, Any]
) -> dict[str, Any]:
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
        "left_out": left_out,
        "absent_labels": [label for label, figures in classes.items() if not figures["support"]],
        "classes": classes,
        "confusion_matrix": {
            label: dict(zip(labels, row, strict=True)) for label, row in zip(labels, confusion.tolist(), strict=True)
        },
    }
