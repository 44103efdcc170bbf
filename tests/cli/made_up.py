"""Models with random weights, whose predictions differ from pair to pair, and files for them."""

import random
from pathlib import Path

import torch

import esim_fast
from esim_fast import Classifier
from esim_fast.data import Vocabulary

WORDS = ["a", "man", "woman", "sleeps", "runs", "two", "dogs", "cats", "quickly", "in", "the", "park", "男", "人"]


def random_model(labels: list[str], **options) -> Classifier:
    torch.manual_seed(len(labels))
    words = ["<unk>", "<pad>", *WORDS]
    net = esim_fast.ESIM(12, 8, len(words), len(labels)).eval()
    model = Classifier(net, Vocabulary(words), labels, "whitespace", **options)
    draw = random.Random(0)
    pairs = [(sentence(draw), sentence(draw)) for _ in range(200)]
    encoded = esim_fast.data.EncodedPairs(*([model.encode(pair[side]) for pair in pairs] for side in (0, 1)), None)
    with torch.no_grad():  # so that no label always wins
        scores, layer = model.logits(encoded), net.linear.mlp[3]
        factor = 1.5 / scores.std(0)
        layer.weight.mul_(factor[:, None])
        layer.bias.copy_((layer.bias - scores.mean(0)) * factor)
    return model


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices([*WORDS, "unknown"], k=draw.randint(1, 9)))


def write_rows(path: Path, columns: str, rows: list[tuple]) -> Path:
    lines = ["\t".join(columns.split()), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
