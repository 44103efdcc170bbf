"""``esim-fast rank``: candidates from a file or stdin, ranked, and its error messages."""

import gzip
import json

import pytest
import torch

from esim_fast import Classifier
from tests.cli.commands import esim_fast, fails, succeeds

CANDIDATES = ["A man sleeps.", "Dogs run.", "", "Ein Mann – “schläft” \\ 😀", "A man runs.", "A man sleeps."]
LINES = [1, 2, 4, 5, 6]
QUERY = "--query", "A man is sleeping."


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    path = tmp_path_factory.mktemp("rank") / "candidates.txt"
    path.write_text("\n".join(CANDIDATES) + "\n", encoding="utf-8")
    return path


def printed(*arguments, **options):
    return [json.loads(line) for line in succeeds("rank", *arguments, **options).splitlines()]


def test_one_query(model, candidates):
    answers = printed(model, *QUERY, "--candidates", candidates)
    assert all(answer.keys() == {"line", "score", "text"} for answer in answers)
    assert sorted(answer["line"] for answer in answers) == LINES
    assert all(CANDIDATES[answer["line"] - 1] == answer["text"] for answer in answers)
    classifier = Classifier.from_pretrained(model, device="cpu")
    texts = [CANDIDATES[line - 1] for line in LINES]
    expected = classifier.rank("A man is sleeping.", texts)
    assert [answer["line"] for answer in answers] == [LINES[one["corpus_id"]] for one in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([one["score"] for one in expected], abs=2e-6)
    neutral = printed(model, *QUERY, "--candidates", candidates, "--label", "neutral", "--top-k", 2)
    expected = classifier.rank("A man is sleeping.", texts, 2, "neutral")
    assert [answer["score"] for answer in neutral] == pytest.approx([one["score"] for one in expected], abs=2e-6)


def test_other_sources(model, candidates, tmp_path):
    expected = succeeds("rank", model, *QUERY, "--candidates", candidates)
    packed = tmp_path / "candidates.txt.gz"
    packed.write_bytes(gzip.compress(candidates.read_bytes().replace(b"\n", b"\r\n")))
    assert succeeds("rank", model, *QUERY, "--candidates", packed) == expected
    assert succeeds("rank", model, *QUERY, "--candidates", "-", stdin=candidates.read_bytes()) == expected
    assert (
        succeeds("rank", model, *QUERY, "--candidates", "-", stdin=b"\xef\xbb\xbf" + candidates.read_bytes())
        == expected
    )


def test_many_queries(model, candidates, tmp_path):
    queries = tmp_path / "queries.txt"
    queries.write_text("A man is sleeping.\n\nTwo dogs are running.\n")
    answers = printed(model, "--queries", queries, "--candidates", candidates, "--top-k", "3")
    assert [answer.pop("query") for answer in answers] == ["A man is sleeping."] * 3 + ["Two dogs are running."] * 3
    assert answers[:3] == printed(model, *QUERY, "--candidates", candidates, "--top-k", "3")
    every = printed(model, "--queries", "-", "--candidates", candidates, "--top-k", "0", stdin="A man.\n" * 2)
    assert len(every) == 2 * len(LINES)
    assert every[:5] == every[5:]


def test_more_candidates_than_the_default(model):
    stdin = "".join(f"{'man ' * number}\n" for number in range(1, 30))
    assert len(printed(model, *QUERY, "--candidates", "-", stdin=stdin)) == 10
    assert len(printed(model, *QUERY, "--candidates", "-", "--top-k", 0, stdin=stdin)) == 29


@pytest.mark.parametrize(
    ("options", "stdin", "message"),
    [
        ([*QUERY, "--candidates", "-"], b"", "esim-fast: stdin: expected one sentence per line, got none"),
        ([*QUERY, "--candidates", "-"], b"\n\n", "esim-fast: stdin: expected one sentence per line, got none"),
        ([*QUERY, "--candidates", "no.txt"], b"", "esim-fast: no.txt: No such file or directory"),
        (
            [*QUERY, "--candidates", "-"],
            b"a man\n\n\xff b\n",
            "esim-fast: stdin:3: not valid UTF-8 at byte 1 (convert",
        ),
        ([*QUERY, "--candidates", "-"], b"PK\x03\x04", "esim-fast: stdin: expected text in UTF-8, got a zip archive"),
        (["--candidates", "-"], b"a\n", "esim-fast: give either --query or --queries"),
        ([*QUERY, "--queries", "q", "--candidates", "-"], b"a\n", "esim-fast: give either --query or --queries"),
        (["--queries", "-", "--candidates", "-"], b"a\n", "esim-fast: --queries and --candidates cannot both be stdin"),
        (["--queries", "no.txt", "--candidates", "-"], b"a\n", "esim-fast: no.txt: No such file or directory"),
        (
            [*QUERY, "--candidates", "-", "--label", "yes"],
            b"a\n",
            "esim-fast: --label must be one of the model's (contradiction, entailment, neutral), got 'yes'",
        ),
        ([*QUERY], b"", "esim-fast rank: the following arguments are required: --candidates"),
        ([*QUERY, "--candidates", "-", "--top-k", "-1"], b"a\n", "expected an integer from 0"),
    ],
)
def test_mistakes(model, options, stdin, message):
    assert message in fails("rank", model, *options, stdin=stdin)


def test_outputs_that_are_not_finite(model, candidates, tmp_path):
    found = Classifier.from_pretrained(model, device="cpu")
    with torch.no_grad():
        found.net.linear.mlp[1].bias.fill_(1e3)  # all units are 1
        found.net.linear.mlp[3].weight.fill_(3e38)
    found.save_pretrained(tmp_path / "model")
    result = esim_fast("rank", tmp_path / "model", *QUERY, "--candidates", candidates)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "esim-fast: the network's output must be finite, got NaN or infinity\n"


def test_a_table_in_place_of_candidates(model, corpus):
    said = fails("rank", model, "--query", "A man sleeps.", "--candidates", corpus)
    assert said == f"esim-fast: {corpus}:1: expected one sentence, got columns"
