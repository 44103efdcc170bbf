"""Every code block of the READMEs runs as it is written, in a folder of small files with the names that it uses.

What installs and tests is marked ``<!-- CI runs this as NAME -->`` and run by ``.ci/run``.
"""

import json
import random
import re
import shlex
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import esim_fast
from esim_fast.data import read_pairs
from tests.cli.commands import succeeds
from tests.pages import ROOT, blocks
from tests.processes import places, start
from tests.sources import Coetaur0

READMES = ("README.md", "README.zh-CN.md")
LABELS = ["entailment", "neutral", "contradiction"]


def sections(name):
    """Levels of the headings, outside of code."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.M | re.S)
    return [len(level) for level in re.findall(r"^(#+) ", text, re.M)]


def test_both_have_the_same_sections_and_code():
    first, second = map(blocks, READMES)
    assert first == second
    assert sections(READMES[0]) == sections(READMES[1])
    assert len(first) > 20


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    headings = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in re.findall(r"^#+ (.*)$", text, re.M)]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in [heading.replace(" ", "-") for heading in headings]
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_ci_runs_what_it_is_said_to_run():
    marks = [block.run_by_ci for block in blocks(READMES[0]) if block.run_by_ci]
    assert marks == ["train", "tests", "predict", "benchmarks"]
    text = (ROOT / ".ci/run").read_text()
    for mark in marks:
        assert f'eval "$(readme {mark})"' in text


def test_requirements_are_the_extras():
    extra = re.search(r"^test = (\[.*\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    lines = (ROOT / "requirements-test.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == json.loads(extra)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as the READMEs name them: official corpora in miniature, made-up vectors, somebody's checkpoint."""
    folder = tmp_path_factory.mktemp("readme")
    rng = random.Random(0)
    words = ["a", "man", "person", "sleeps", "rests", "two", "dogs", "run", "cat", "sits", "."]

    def sentence():
        return " ".join(rng.choices(words[:-1], k=rng.randint(2, 7))).capitalize() + "."

    def rows(count):
        return [(rng.choice(LABELS), sentence(), sentence()) for _ in range(count)]

    for name, count in (("train.tsv", 60), ("dev.tsv", 12), ("test.tsv", 12)):
        (folder / name).write_text("".join("\t".join(row) + "\n" for row in rows(count)))
    (folder / "pairs.tsv").write_text("".join("\t".join(row[1:]) + "\n" for row in rows(9)))
    (folder / "snli_1.0").mkdir()
    for part, count in (("train", 60), ("dev", 12), ("test", 12)):
        columns = ("gold_label", "sentence1", "sentence2")
        lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows(count)]
        (folder / "snli_1.0" / f"snli_1.0_{part}.jsonl").write_text("".join(lines))
    for name in ("train", "dev"):
        lines = ["label,premise,hypothesis", *(",".join(f'"{field}"' for field in row) for row in rows(40))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    scores = [f"{rng.uniform(0, 5):.2f}\t{sentence()}\t{sentence()}\n" for _ in range(40)]
    (folder / "scored.tsv").write_text("score\tsentence1\tsentence2\n" + "".join(scores))
    (folder / "sentences.txt").write_text("".join(f"{sentence()}\n" for _ in range(9)))
    vectors = [f"{word} {' '.join(f'{rng.gauss(0, 1):.4f}' for _ in range(300))}\n" for word in words]
    (folder / "glove.840B.300d.txt").write_text("".join(vectors))
    torch.manual_seed(0)
    torch.save({"epoch": 9, "model": Coetaur0(len(words) + 4, 8, 6).state_dict()}, folder / "best.pth.tar")
    hans = "gold_label\tsentence1\tsentence2\nnon-entailment\tA man.\tA cat.\nentailment\tA man.\tA man.\n"
    (folder / "heuristics_evaluation_set.txt").write_text(hans)
    special = ["_PAD_", "_OOV_", "_BOS_", "_EOS_"]
    (folder / "worddict.json").write_text(json.dumps({word: i for i, word in enumerate([*special, *words])}))
    return folder


def the_users_script():
    """What a training script has before the lines that the READMEs show."""
    torch.manual_seed(0)
    ids = torch.randint(2, 20, (4, 5)), torch.randint(2, 20, (4, 3))
    label = torch.tensor([0, 1, 2, 0])
    lengths = torch.full((4,), 5), torch.full((4,), 3)
    x, y = torch.randn(4, 5, 6), torch.randn(4, 3, 6)
    mask, shorter = torch.ones(4, 5), torch.ones(4, 3)
    return {
        **{"torch": torch, "device": torch.device("cpu"), "hidden_size": 6, "embedding_dim": 8, "num_labels": 3},
        **{"vocab": range(20), "vectors": torch.randn(20, 8), "embeddings": torch.randn(20, 8)},
        "train_iter": [SimpleNamespace(premise=(ids[0], None), hypothesis=(ids[1], None), label=label)] * 2,
        **dict(zip(("premise", "hypothesis", "premises", "hypotheses"), ids * 2, strict=True)),
        **dict(zip(("p_lengths", "h_lengths", "a_lengths", "b_lengths"), lengths * 2, strict=True)),
        **dict(zip(("premises_lengths", "hypotheses_lengths"), lengths, strict=True)),
        **{"lengths": lengths[0], "p": x, "h": y, "a": x, "b": y, "x": x, "flat": x.reshape(20, 6)},
        **{"p_mask": mask, "a_mask": mask, "x_mask": mask, "mask": mask, "h_mask": shorter, "b_mask": shorter},
    }


def run_line(line):
    """A line of the shell: ``esim-fast`` and torchrun's processes without waiting for torch to be imported."""
    command, *arguments = shlex.split(line, comments=True)
    output = Path(arguments.pop()) if arguments[-2:-1] == [">"] else None
    if command == "torchrun":
        processes = int(arguments.pop(0).removeprefix("--nproc-per-node="))
        assert arguments[:2] == ["-m", "esim_fast"]
        with ExitStack() as stack:
            started = [start(*arguments[2:], environment=place, directory=Path.cwd()) for place in places(processes)]
            commands = [stack.enter_context(command) for command in started]
            outcomes = [command.finish() for command in commands]
        assert [code for code, *_ in outcomes] == [0] * processes, outcomes
        return
    assert command == "esim-fast", line
    stdout = succeeds(*(arguments if output is None else arguments[:-1]))
    if output is not None:
        output.write_text(stdout)


def test_every_block_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = the_users_script()
    ran = Counter()
    for block in blocks(READMES[0]):
        if block.run_by_ci or not block.language:
            continue
        ran[block.language] += 1
        if block.language == "bash":
            for line in block.code.splitlines():
                run_line(line)
        elif block.code.startswith("v = torch.cat"):  # the equations, of one pair
            values = {"torch": torch, "x": torch.randn(5, 6), "a": torch.randn(4, 6), "b": torch.randn(3, 6)}
            exec(block.code, values)
            x, a, b = (values[name][None] for name in "xab")
            m_a, m_b = esim_fast.ops.local_inference(a, b)
            torch.testing.assert_close(values["v"], esim_fast.ops.masked_pool(x)[0])
            torch.testing.assert_close(values["m_a"], m_a[0])
            torch.testing.assert_close(values["m_b"], m_b[0])
        else:
            exec(compile(block.code, block.code, "exec"), names)
    assert ran["bash"] >= 7
    assert ran["python"] >= 9
    for name in ("converted", "model", "copy", "fitted", "balanced", "scorer", "trial"):
        esim_fast.Classifier.from_pretrained(folder / name)
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 9
    assert names["logits"].shape[1] == 3
    assert len(names["history"]) > 1
    assert [entry.keys() for entry in names["ranked"]] == [{"corpus_id", "score"}] * 2
    for name in ("errors.html", "confusion.png", "model.onnx", "model.onnx.json", "trial/metrics.csv"):
        assert (folder / name).stat().st_size
    assert (folder / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_the_rows_of_the_sample_in_it():
    """The pair that the READMEs ask the sample's model about is not one that it was trained on."""
    code = next(block.code for block in blocks(READMES[0]) if block.run_by_ci == "predict")
    premise, hypothesis = re.findall(r'"([^"]+)"', code)
    train = ROOT / "esim_fast/data/sample/train.tsv"
    assert all((pair.premise, pair.hypothesis) != (premise, hypothesis) for pair in read_pairs(train))
