"""``esim-fast evaluate``: score a model on labeled pairs."""

import argparse
import json
from typing import Any

import torch

from ..classifier import Classifier
from ..data import EncodedPairs
from . import common


def run(options: argparse.Namespace) -> None:
    model = common.load_model(options)
    tokenizer, skip = options.tokenizer or model.tokenizer, options.skip_bad_rows
    corpus = common.prepared(options.file, options, tokenizer, skip_bad_rows=skip)
    if options.skip_bad_rows:
        corpus = corpus.without_other_labels(model.labels)
    common.list_bad_rows(corpus.path, corpus.bad_rows)
    pairs = corpus.encode(model.vocabulary, model.labels)
    predicted = model.logits(pairs, batch_size=options.batch_size).argmax(1)
    print(json.dumps(_report(model, pairs, predicted, corpus.unlabeled), ensure_ascii=False))


def _report(model: Classifier, pairs: EncodedPairs, predicted: torch.Tensor, dropped: int) -> dict[str, Any]:
    labels, gold = model.labels, torch.from_numpy(pairs.labels)
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
