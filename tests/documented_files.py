"""The files and names that the code of the READMEs and of docs/ uses: corpora in miniature, a model, a checkpoint."""

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import torch

import esim_fast
from esim_fast.data import EncodedPairs, Vocabulary
from tests.sources import Coetaur0

LABELS = ["entailment", "neutral", "contradiction"]
WORDS = ["a", "man", "person", "sleeps", "rests", "two", "dogs", "run", "cat", "sits", "is", "sleeping", "on", "awake"]
CHINESE = [
    ("怎么查询余额", "余额在哪里查", 1),
    ("怎么查询余额", "怎么修改密码", 0),
    ("如何学好英语", "英语怎么学才好", 1),
    ("如何学好英语", "如何学好数学", 0),
    ("今天天气怎么样", "今天的天气如何", 1),
    ("今天天气怎么样", "明天星期几", 0),
    ("手机丢了怎么办", "手机丢失后该怎么做", 1),
    ("手机丢了怎么办", "手机多少钱", 0),
    ("北京有什么好玩的地方", "北京哪里好玩", 1),
    ("北京有什么好玩的地方", "上海有什么好吃的", 0),
]


def make(folder: Path) -> None:
    """Writes all of them. Every file is small: training on it takes a second."""
    rng = random.Random(0)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, 7))).capitalize() + "."

    def pairs(labels: Iterable[object]) -> list[tuple[str, str, str]]:
        return [(str(label), sentence(), sentence()) for label in labels]

    def classes(count: int) -> list[object]:
        return [*LABELS, *rng.choices(LABELS, k=count - len(LABELS))]

    def table(name: str, rows: Iterable[tuple[object, ...]], header: str = "") -> None:
        lines = [header.split()] if header else []
        text = "".join("\t".join(map(str, row)) + "\n" for row in [*lines, *rows])
        (folder / name).write_text(text, encoding="utf-8")

    for name in ("snli_1.0", "lcqmc"):
        (folder / name).mkdir()
    for part, count in (("train", 60), ("dev", 20), ("test", 20)):
        table(f"{part}.tsv", pairs(classes(count)))
        columns = ("gold_label", "sentence1", "sentence2")
        lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in pairs(classes(count))]
        (folder / "snli_1.0" / f"snli_1.0_{part}.jsonl").write_text("".join(lines))
        rows = [",".join(f'"{field}"' for field in row) for row in pairs(classes(count))]
        (folder / f"{part}.csv").write_text("\n".join(["label,premise,hypothesis", *rows]) + "\n")
        scores = pairs(f"{rng.uniform(0, 5):.2f}" for _ in range(count))
        table(f"sts-{part}.tsv", scores, "score sentence1 sentence2")
        table(f"qqp-{part}.tsv", pairs([0, 0, 1] * (count // 3)), "is_duplicate question1 question2")
        table(f"lcqmc/{part}.tsv", CHINESE * (count // 10), "text_a text_b label")
    shutil.copyfile(folder / "sts-train.tsv", folder / "scored.tsv")
    table("pairs.tsv", (row[1:] for row in pairs(classes(9))))
    table("candidates.tsv", [(p, h, label) for label, p, h in pairs(classes(20))], "query candidate relevant")
    hans = [("non-entailment", "A man.", "A cat."), ("entailment", "A man.", "A man.")]
    table("heuristics_evaluation_set.txt", hans, "gold_label sentence1 sentence2")
    for name in ("sentences.txt", "queries.txt", "candidates.txt"):
        (folder / name).write_text("".join(f"{sentence()}\n" for _ in range(9)))
    vectors = [f"{word} {' '.join(f'{rng.gauss(0, 1):.4f}' for _ in range(8))}\n" for word in WORDS]
    (folder / "glove.840B.300d.txt").write_text("".join(vectors))
    model().save_pretrained(folder / "model")
    special = ["_PAD_", "_OOV_", "_BOS_", "_EOS_"]
    (folder / "worddict.json").write_text(json.dumps({word: i for i, word in enumerate([*special, *WORDS])}))
    torch.save({"epoch": 9, "model": Coetaur0(len(WORDS) + 4, 8, 6).state_dict()}, folder / "best.pth.tar")


def model() -> esim_fast.Classifier:
    """One whose weights are drawn, so that it gives every label to some pairs."""
    torch.manual_seed(0)
    words = ["<unk>", "<pad>", *WORDS, ".", "bench"]
    net = esim_fast.ESIM(12, 8, len(words), len(LABELS)).eval()
    classifier = esim_fast.Classifier(net, Vocabulary(words), LABELS)
    ids = torch.randint(2, len(words), (2, 200, 6)).tolist()
    with torch.no_grad():
        scores, last = classifier.logits(EncodedPairs(*ids, None)), net.linear.mlp[3]
        factor = 0.5 / scores.std(0)
        last.weight.mul_(factor[:, None])
        last.bias.copy_((last.bias - scores.mean(0)) * factor)
    return classifier


def script() -> dict[str, object]:
    """What a user's training script has before the lines that a page shows."""
    torch.manual_seed(0)
    ids = torch.randint(2, 20, (4, 5)), torch.randint(2, 20, (4, 3))
    label = torch.tensor([0, 1, 2, 0])
    lengths = torch.full((4,), 5), torch.full((4,), 3)
    x, y = torch.randn(4, 5, 6), torch.randn(4, 3, 6)
    mask, shorter = torch.ones(4, 5), torch.ones(4, 3)
    return {
        **{"torch": torch, "device": torch.device("cpu"), "hidden_size": 6, "embedding_dim": 8, "num_labels": 3},
        **{"vocab": range(20), "vectors": torch.randn(20, 8), "embeddings": torch.randn(20, 8)},
        "pairs": EncodedPairs([[2, 3], [4, 5, 6], [7]], [[8], [9, 10], [11]], [0, 1, 2]),
        "train_iter": [SimpleNamespace(premise=(ids[0], None), hypothesis=(ids[1], None), label=label)] * 2,
        **dict(zip(("premise", "hypothesis", "premises", "hypotheses"), ids * 2, strict=True)),
        **dict(zip(("p_lengths", "h_lengths", "a_lengths", "b_lengths"), lengths * 2, strict=True)),
        **dict(zip(("premises_lengths", "hypotheses_lengths"), lengths, strict=True)),
        **{"lengths": lengths[0], "p": x, "h": y, "a": x, "b": y, "x": x, "flat": x.reshape(20, 6)},
        **{"p_mask": mask, "a_mask": mask, "x_mask": mask, "mask": mask, "h_mask": shorter, "b_mask": shorter},
    }
