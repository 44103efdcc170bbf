"""``esim-fast predict``: the model's predictions, in the order of the pairs, and its error messages."""

import contextlib
import gzip
import io
import json
import random
import re
from unittest import mock

import pytest
import torch

from esim_fast import ESIM, Classifier, streaming
from esim_fast.cli import main
from esim_fast.data.preparing import in_parts
from tests.cli.commands import TRAIN, esim_fast, fails, succeeds, training, write_tsv

CONVERT = " (convert it with iconv -f GB18030 -t UTF-8 OLD > NEW if it is Chinese, -f CP1252 if Western European)"
PAIR = "--premise", "A man sleeps.", "--hypothesis", "A man runs."


def printed(*arguments, **options):
    return [json.loads(line) for line in succeeds(*arguments, **options).splitlines()]


def test_one_pair(model):
    (answer,) = printed("predict", model, *PAIR)
    assert answer["premise"] == "A man sleeps."
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)


def test_files_and_stdin_give_the_same(model, corpus, tmp_path):
    def answers(*arguments, **options):
        lines = printed("predict", model, *arguments, **options)
        return [line.pop("line") for line in lines], lines

    numbers, expected = answers(corpus)
    gold = [answer.pop("gold", "-") for answer in expected]
    assert gold == [label for label, *_ in TRAIN]
    assert numbers == [2, 3, 4, 5, 6, 7]  # the first is the header
    from_one = ([1, 2, 3, 4, 5, 6], expected)
    bare = write_tsv(tmp_path / "bare.tsv", [row[1:] for row in TRAIN], header=False)
    objects = tmp_path / "pairs.jsonl"
    objects.write_text("".join(json.dumps({"premise": p, "hypothesis": h}) + "\n" for _, p, h in TRAIN))
    for path in (bare, objects):
        assert answers(path) == from_one
        assert answers("-", stdin=path.read_text()) == from_one


def test_output_is_json(model, tmp_path):
    rows = [
        ('say "hi" \\ 100% {x}', "tab\u2028 é 😀"),
        ("", "\x7f"),
        ("{a} man", "a man"),
        ("一个男人在睡觉。", "Ein Mann"),
    ]
    rows.append(("<pad> <pad>", "<unk>"))
    path = write_tsv(tmp_path / "odd.tsv", rows, header=False)
    for line, (premise, hypothesis) in zip(succeeds("predict", model, path).split("\n"), rows, strict=False):
        answer = json.loads(line)
        assert (answer["premise"], answer["hypothesis"]) == (premise, hypothesis)
        assert answer["label"] in ("contradiction", "entailment", "neutral")
        assert line.startswith(json.dumps({"line": answer["line"], "premise": premise}, ensure_ascii=False)[:-1])


def test_gold_labels_and_ids_are_kept(model, tmp_path):
    rows = [("one, 1", "entailment"), ("", "neutral"), ('"3"', "-"), ("四", ""), ("100%s", "another")]
    table = "".join(f"{name}\ta man\tb\t{label}\n" for name, label in rows)
    path = tmp_path / "a.tsv"
    path.write_text(f"pairID\tsentence1\tsentence2\tgold_label\n{table}", encoding="utf-8")
    keys = ("line", "id", "gold")
    found = [{key: answer[key] for key in keys if key in answer} for answer in printed("predict", model, path)]
    assert found == [
        {"line": 2, "id": "one, 1", "gold": "entailment"},
        {"line": 3, "gold": "neutral"},
        {"line": 4, "id": '"3"'},
        {"line": 5, "id": "四"},
        {"line": 6, "id": "100%s", "gold": "another"},
    ]
    assert printed("predict", model, "-", stdin=path.read_bytes()) == printed("predict", model, path)
    objects = "".join(json.dumps({"idx": i, "premise": "a", "hypothesis": "b", "label": "x"}) + "\n" for i in (7, 8.5))
    answers = printed("predict", model, "-", stdin=objects)
    assert [(answer["id"], answer["gold"]) for answer in answers] == [(7, "x"), (8.5, "x")]


def test_precision(model):
    exact, rounded = (printed("predict", model, *PAIR, "--precision", precision)[0] for precision in ("fp32", "bf16"))
    assert exact["probabilities"] != rounded["probabilities"]
    assert exact["probabilities"] == pytest.approx(rounded["probabilities"], abs=0.01)
    if not torch.cuda.is_available():
        message = "esim-fast: --precision fp16 needs a GPU: torch has no fp16 LSTM for the CPU"
        assert fails("predict", model, *PAIR, "--precision", "fp16") == message


def test_bad_rows_are_reported_and_skipped(model, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"a\tb\nonly one\nc\td\n\xff\tx\ne\tf\ncut of")
    for name, source in ((path, path), ("stdin", "-")):
        result = esim_fast("predict", model, source, stdin=path.read_bytes())
        assert result.returncode == 0
        assert [json.loads(line)["line"] for line in result.stdout.splitlines()] == [1, 3, 5]
        reasons = {
            2: "expected 2 columns, got 1",
            4: "not valid UTF-8 at byte 1" + CONVERT,
            6: "expected 2 columns, got 1",
        }
        lines = [f"{name}:{line}: {reason}" for line, reason in reasons.items()]
        lines += [f"{name}: the model does not know 5 of 6 words; do not rely on its answers"]
        assert result.stderr.splitlines() == [*lines, f"{name}: skipped 3 bad rows"]


def test_stopping_at_a_bad_row_loses_nothing_before_it(model, tmp_path):
    result = esim_fast("predict", model, "-", "--stop-at-bad-row", stdin="a\tb\nc\td\nonly one\ne\tf\n")
    assert (result.returncode, len(result.stdout.splitlines())) == (2, 2)
    assert result.stderr == "esim-fast: stdin:3: expected 2 columns, got 1\n"
    # The first row determines the number of columns, and may itself be bad.
    path = write_tsv(tmp_path / "rows.tsv", [("a man", "only two"), *TRAIN], header=False)
    result = esim_fast("predict", model, path)
    assert (result.returncode, len(result.stdout.splitlines())) == (2, 1)
    assert result.stderr.endswith(f"{path}: 6 bad rows, and only 1 that can be read (are the columns as expected?)\n")


def test_a_file_that_ends_early(model, tmp_path):
    path = tmp_path / "cut.tsv.gz"
    whole = gzip.compress("".join(f"a man sleeps {random.random()}\tb\n" for _ in range(3000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    result = esim_fast("predict", model, path)
    assert result.returncode == 2
    assert len(result.stdout.splitlines()) > 1000
    assert re.fullmatch(rf"esim-fast: {re.escape(str(path))}:\d+: Compressed file ended .*\n", result.stderr)


def test_a_tokenizer_that_fails(corpus, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "def split(text):\n    return None if 'none' in text else text.split()[0:9 // ('bad' not in text)]\n"
    (tmp_path / "fussy.py").write_text(code)
    options, output = ("--tokenizer", "fussy:split"), tmp_path / "model"
    succeeds(*training(corpus, output, *options))
    result = esim_fast("predict", output, "-", *options, stdin="good one\tb\nshort\nbad one\tb\n")
    assert result.returncode == 2
    assert json.loads(result.stdout)["line"] == 1
    message = "tokenizer fussy:split: ZeroDivisionError: integer division or modulo by zero"
    assert result.stderr == f"stdin:2: expected 2 columns, got 1\nesim-fast: stdin:3: {message}\n"
    pair = "--premise", "bad", "--hypothesis", "b", *options
    assert fails("predict", output, *pair) == f"esim-fast: {message}"
    assert fails("explain", output, *pair, "-o", tmp_path / "a.json") == f"esim-fast: {message}"
    rows = write_tsv(tmp_path / "rows.tsv", [*TRAIN, ("neutral", "good", "none")])
    message = f"{rows}:{len(TRAIN) + 2}: tokenizer fussy:split: expected a list of words, got NoneType for 'none'"
    for command in ("evaluate", "predict"):
        result = esim_fast(command, output, rows, *options)
        assert (result.returncode, result.stderr) == (2, f"esim-fast: {message}\n")


def test_outputs_that_are_not_finite(model, tmp_path):
    found = Classifier.from_pretrained(model, device="cpu")
    with torch.no_grad():
        found.net.linear.mlp[1].bias.fill_(1e3)  # all units are 1
        found.net.linear.mlp[3].weight.fill_(3e38)
    found.save_pretrained(tmp_path / "model")
    result = esim_fast("predict", tmp_path / "model", "-", stdin="a man sleeps\ta man runs\n")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "esim-fast: stdin:1: the network's output must be finite, got NaN or infinity\n"
    assert "must be finite" in fails("predict", tmp_path / "model", *PAIR)


def test_long_rows_in_small_batches(model, tmp_path):
    """Long rows are run in small batches."""
    path = write_tsv(tmp_path / "long.tsv", [("man " * (20_000 + i), "man") for i in range(3)], header=False)
    sizes, forward = [], ESIM.forward
    with mock.patch.object(ESIM, "forward", lambda net, pairs: sizes.append(len(pairs)) or forward(net, pairs)):
        assert len(printed("predict", model, path, "--device", "cpu")) == 3
    assert sizes == [1, 1, 1]


def test_other_processes_give_the_same(model, tmp_path):
    pairs = [(f"a man sleeps {'very ' * (i % 7)}well", f"number {i}") for i in range(9000)]
    rows = [(line, *pair) for line, pair in enumerate(pairs, start=1)]
    path = write_tsv(tmp_path / "many.tsv", [*pairs, ("only one",)], header=False)

    def on_a_gpu(job, records, as_they_come, workers):  # workers only tokenize, and the network runs here
        yield from map(job.answer, in_parts(job.encode, records, 2))

    with mock.patch.object(streaming, "processors", return_value=1):
        alone = esim_fast("predict", model, path, "--device", "cpu")
    unknown = f"{path}: the model does not know 53,995 of 80,995 words; do not rely on its answers\n"
    assert alone.stderr == f"{path}:9001: expected 2 columns, got 1\n{unknown}{path}: skipped 1 bad row\n"
    expected = [json.loads(line) for line in alone.stdout.splitlines()]
    assert [(answer["line"], answer["premise"], answer["hypothesis"]) for answer in expected] == rows
    _, probabilities = Classifier.from_pretrained(model).predict(pairs[2040:2060])
    for answer, row in zip(expected[2040:2060], probabilities.tolist(), strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=3e-6)
    for change in ({"processors": lambda: 2}, {"_answered": on_a_gpu}):
        with mock.patch.multiple(streaming, **change):
            found = esim_fast("predict", model, path, "--device", "cpu")
        assert found.stderr == alone.stderr
        for one, other in zip(expected, map(json.loads, found.stdout.splitlines()), strict=True):
            # Another number of threads changes the order of an LSTM's sums.
            assert {**other, "probabilities": pytest.approx(other["probabilities"], abs=3e-6)} == one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--premise", "a"], "--premise and --hypothesis must be given together"),
        ([], "give either a file"),
        (["f.tsv", *PAIR], "give either a file"),
        (["no.tsv"], "no.tsv: No such file"),
        (["-", "--batch-size", "0"], "expected an integer from 1"),
        (["-"], "column 1 was taken for the label: expected one of the model's (contradiction, entailment, neutral)"),
    ],
)
def test_mistakes(model, options, message):
    assert message in fails("predict", model, *options, stdin="a man sleeps\ta man runs\t3\n")


def test_a_closed_stdin(model):
    with mock.patch("sys.stdin", None), contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert main(["predict", str(model), "-"]) == 2
    assert stderr.getvalue() == "esim-fast: stdin is closed\n"


def test_words_that_the_model_does_not_know(model, tmp_path):
    """Each prediction counts those of both sentences; one warning appears if more than a third are unknown."""
    known, unknown = ("A man is sleeping.", "A man runs."), ("Zorp blick snuv.", "A glorp runs")
    counts = {known: {"premise": 0, "hypothesis": 0}, unknown: {"premise": 3, "hypothesis": 1}}
    warnings = {(known, unknown): "", (unknown, known, unknown): "8 of 23", (unknown,): "4 of 7"}
    for rows, share in warnings.items():
        path = write_tsv(tmp_path / "a.tsv", rows, header=False)
        result = esim_fast("predict", model, path)
        assert [json.loads(line)["unknown_words"] for line in result.stdout.splitlines()] == [
            counts[row] for row in rows
        ]
        said = f"{path}: the model does not know {share} words; do not rely on its answers\n"
        assert result.stderr == (said if share else "")
        assert esim_fast("predict", model, "-", stdin=path.read_bytes()).stdout == result.stdout
    result = esim_fast("predict", model, "--premise", unknown[0], "--hypothesis", unknown[1])
    assert json.loads(result.stdout)["unknown_words"] == counts[unknown]
    assert result.stderr == "the pair: the model does not know 4 of 7 words; do not rely on its answers\n"
    assert esim_fast("predict", model, "--premise", "", "--hypothesis", "").stderr == ""


def test_a_regression_model_gives_scores(corpus, tmp_path):
    from tests.test_classifier import regression_model

    model = regression_model()
    model.save_pretrained(tmp_path)
    lines = [json.loads(line) for line in succeeds("predict", tmp_path, corpus, "--device", "cpu").splitlines()]
    assert lines[0].keys() == {"line", "premise", "hypothesis", "score", "unknown_words"}  # no gold scores
    scores = "score\tlabel\tsentence1\tsentence2\n3.750\tx\ta\tb\n"
    (answer,) = map(json.loads, succeeds("predict", tmp_path, "-", stdin=scores).splitlines())
    assert answer["gold"] == 3.75
    bare = write_tsv(tmp_path / "bare.tsv", [("a man", "a man", "2.5")], header=False)
    answer = json.loads(succeeds("predict", tmp_path, bare, "--columns", "1,2,3"))
    assert (answer["gold"], answer["line"]) == (2.5, 1)
    for line in lines:
        assert line["score"] == pytest.approx(model.predict((line["premise"], line["hypothesis"])), abs=2e-6)
    pair = ("--premise", lines[0]["premise"], "--hypothesis", lines[0]["hypothesis"])
    assert json.loads(succeeds("predict", tmp_path, *pair, "--device", "cpu"))["score"] == lines[0]["score"]
