"""``esim-fast data`` describes corpora."""

import pytest

from tests.cli.commands import EXPECTED, esim_fast, fails, succeeds, write_tsv
from tests.data.files import write


def test_what_it_prints(corpus, tmp_path):
    vectors = tmp_path / "glove.txt"
    vectors.write_text("man 1 2\nA 3 4\n")
    dev = write_tsv(tmp_path / "dev.tsv", [("neutral", "A man", "a zebra ."), ("other", "", "sleeping")])
    lines = succeeds("data", corpus, dev, "--vectors", vectors).splitlines()
    assert lines == [
        str(corpus),
        "  pairs          6, 1 without a gold label",
        "  labels         contradiction 2 (33.3%), entailment 2 (33.3%), neutral 1 (16.7%)",
        "  premises       5.0 words on average, median 5, 99th percentile 5, longest 5",
        "  hypotheses     3.5 words on average, median 4, 99th percentile 4, longest 4",
        "  vocabulary     15 distinct words of 51",
        "  with a vector  13.33% of the words, 23.53% of the text",
        "",
        str(dev),
        "  pairs          2, 0 without a gold label",
        "  labels         neutral 1 (50.0%), other 1 (50.0%)",
        "  premises       1.0 words on average, median 2, 99th percentile 2, longest 2, 1 empty",
        "  hypotheses     2.0 words on average, median 3, 99th percentile 3, longest 3",
        "  vocabulary     5 distinct words of 6",
        f"  known          80.00% of the words, 83.33% of the text are in {corpus}",
        "  with a vector  40.00% of the words, 50.00% of the text",
    ]


def test_bad_rows(corpus, tmp_path):
    bad = tmp_path / "bad.tsv"
    bad.write_text(corpus.read_text() + "neutral\tonly one\nx\ta\0\tb\n")
    result = esim_fast("data", bad)
    assert result.returncode == 1
    assert result.stderr == f"{bad}:8: expected 3 columns, got 2\n{bad}:9: NUL character\n"
    assert "  pairs          6, 1 without a gold label, 2 bad rows\n" in result.stdout
    bad.write_text("label\tpremise\thypothesis\nneutral\tonly one\n")  # the only row
    result = esim_fast("data", bad)
    assert (result.returncode, result.stderr) == (1, f"{bad}:2: expected 3 columns, got 2\n")
    assert "  pairs          0, 0 without a gold label, 1 bad row\n" in result.stdout


def test_bad_rows_of_vectors(corpus, tmp_path):
    """Each is reported once, even if several corpora need it."""
    vectors, dev = tmp_path / "glove.txt", write_tsv(tmp_path / "dev.tsv", [("neutral", "zebra", "A man")])
    vectors.write_text("9 2\nman 1 2\nzebra x 4\nnone 1\nA 3 4\n")
    lines = [f"{vectors}:4: expected 2 numbers, got 1"]
    lines.append(f"{vectors}:6: expected 9 rows, as line 1 says, but the file ends after 4")
    for _ in range(2):  # the second time from the cache
        result = esim_fast("data", corpus, dev, corpus, "--vectors", vectors, "--cache", tmp_path / "cache")
        assert result.returncode == 1
        assert result.stderr.splitlines() == [*lines, f"{vectors}:3: expected a finite number, got 'x'"]
        assert result.stdout.count("  with a vector  13.33% of the words, 23.53% of the text\n") == 2
    vectors.write_text("man 1 2\n" + 30 * "of 1\n")
    said = esim_fast("data", corpus, "--vectors", vectors).stderr.splitlines()
    assert said == [
        *(f"{vectors}:{line}: expected 2 numbers, got 1" for line in range(2, 22)),
        f"{vectors}: and 10 more",
    ]
    vectors.write_text("man 1 2\nA 3 4\n\n")
    assert esim_fast("data", corpus, "--vectors", vectors).returncode == 0


@pytest.mark.parametrize("name", ["v.txt", "v.vec.bz2", "v.txt.xz", "v.txt.gz", "glove.840B.300d.zip"])
@pytest.mark.parametrize("rows", ["A 1 2\nman 3 4\n", "2 2\nA\t1 2\nman\t3 4\n", "A\t1\t2\nman\t3\t4\n\n"])
def test_vectors_of_several_kinds(corpus, tmp_path, name, rows):
    printed = succeeds("data", corpus, "--vectors", write(tmp_path, name, rows))
    assert "  with a vector  13.33% of the words, 23.53% of the text\n" in printed


def test_a_file_that_cannot_be_read_does_not_stop_the_others(corpus, tmp_path):
    result = esim_fast("data", tmp_path / "none.tsv", corpus, corpus)
    assert f"100.00% of the words, 100.00% of the text are in {corpus}\n" in result.stdout
    assert (result.returncode, result.stdout.count("  pairs          6, 1")) == (2, 2)
    assert result.stderr == f"esim-fast: {tmp_path / 'none.tsv'}: No such file or directory\n"


HINT = "sentences are single words; use --tokenizer characters for Chinese or Japanese"


@pytest.mark.parametrize(
    ("rows", "options", "line"),
    [
        ([("a b", "c")], [], "  labels         none\n"),
        ([(f"label-{i}" * 20, f"a {i}.", f"b {i}.") for i in range(50)], [], ", 30 others 30 (60.0%)\n"),
        ([("1", "a man", "b")], ["--vectors", "glove.txt"], "  with a vector  0.00% of the words, 0.00% of the text\n"),
        ([("1", "男人在睡觉", "他睡着了")], [], HINT),
    ],
    ids=["no labels", "many labels", "no word has a vector", "no blanks"],
)
def test_other_corpora(tmp_path, rows, options, line):
    (tmp_path / "glove.txt").write_text("unheard 1 2\n")
    path = write_tsv(tmp_path / "a.tsv", rows, header=False)
    assert line in succeeds("data", path, *options, cwd=tmp_path)
    assert HINT not in succeeds("data", path, "--tokenizer", "characters")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no.tsv"], "no.tsv: No such file or directory"),
        ([], "the following arguments are required: FILE"),
        (["{corpus}", "--columns", "a"], f"{EXPECTED}a'"),
        (["{corpus}", "--columns", "1,b"], "expected names or numbers, not both, got '1,b'"),
        (["{corpus}", "--columns", "1,0"], f"{EXPECTED}1,0'"),
        (["{corpus}", "--columns", "00,1"], f"{EXPECTED}00,1'"),
        (["{corpus}", "--columns", "1,01"], f"{EXPECTED}1,01'"),
        (["{corpus}", "--columns", "1," + "9" * 5000], "expected names or numbers, not both"),
        (["{corpus}", "--columns", "1,9"], ":1: expected at least 9 columns, got 3"),
        (["{corpus}", "--columns", "sentence1,sentence2,z"], ":1: expected a column z in the header, got"),
        (["{corpus}", "--columns", "a,b"], ":1: expected a column a in the header, got gold_label, sentence1"),
        (["{corpus}", "--vectors", "no.txt"], "no.txt: No such file or directory"),
        (["{corpus}", "--cache", "x", "--no-cache"], "not allowed with argument"),
    ],
)
def test_mistakes(corpus, tmp_path, options, message):
    assert message in fails("data", *[option.format(corpus=corpus) for option in options], cwd=tmp_path)


def test_scores(tmp_path):
    rows = "".join(f"a b\tc\t{score}\n" for score in ("0.5", "3", "-1", "4.75"))
    path = write(tmp_path, "sts.tsv", f"sentence1\tsentence2\tscore\n{rows}")
    lines = succeeds("data", "--task", "regression", path).splitlines()
    assert lines[1:3] == [
        "  pairs          4, 1 without a gold score",
        "  scores         from 0.5 to 4.75, 2.75 on average",
    ]
    unlabeled = write(tmp_path, "test.tsv", "sentence1\tsentence2\na\tb\n")
    assert "  scores         none\n" in succeeds("data", "--task", "regression", unlabeled)
    negative = write(tmp_path, "negative.tsv", f"sentence1\tsentence2\tscore\n{rows}a\tb\t-0.5\n")
    result = esim_fast("data", "--task", "regression", negative)
    assert result.returncode == 2
    assert "negative.tsv: 1 pairs have no gold score (- or -1), but some scores are negative" in result.stderr
    assert "  scores " in succeeds("data", "--task", "regression", "--map-labels=-1=-1e0", negative)
