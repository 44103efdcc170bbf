"""Which column is which where no header of known names says so: decided by what the columns hold, or refused."""

import pytest

from esim_fast.data import CorpusFormat, read_pairs
from tests.data.files import refusal, write

QUESTIONS = ["how do i reset my password", "where is my parcel", "how can i pay"]
ANSWERS = [f"the answer is number {i} of many" for i in range(40)]
HANZI = ["怎么重置密码", "我的包裹在哪里", "如何付款"]


def table(rows, delimiter="\t") -> str:
    return "".join(delimiter.join(row) + "\n" for row in rows)


def read(path, corpus_format=None, labeled=True):
    pairs = read_pairs(path, corpus_format or CorpusFormat(), labeled=labeled)
    return [(pair.premise, pair.hypothesis, pair.label) for pair in pairs]


FAQ = [(QUESTIONS[i % 3], answer, str(i % 2)) for i, answer in enumerate(ANSWERS)]


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize(
    "rows",
    [
        FAQ,
        [(HANZI[i % 3], answer, str(i % 2)) for i, answer in enumerate(ANSWERS)],
        [(q, a, ("entailment", "not_entailment")[int(label)]) for q, a, label in FAQ],
        [(q, a, ("suits", "misfits")[int(label)]) for q, a, label in FAQ],  # names that nobody knows
        [(q, a, f"{label}.0") for q, a, label in FAQ],
        [(ANSWERS[-i], answer, "- 01"[i % 4].strip() or "-") for i, answer in enumerate(ANSWERS)],  # no premise twice
        FAQ[:3],
    ],
    ids=["faq", "no blanks", "words", "other words", "floats", "distinct", "three rows"],
)
def test_a_label_that_stands_last(tmp_path, rows, labeled):
    expected = [(p, h, None if label == "-" else label.removesuffix(".0")) for p, h, label in rows]
    assert read(write(tmp_path, "a.tsv", table(rows)), labeled=labeled) == expected
    first = write(tmp_path, "b.tsv", table((label, p, h) for p, h, label in rows))
    assert read(first, labeled=labeled) == expected


def test_a_single_row_is_as_documented(tmp_path):
    assert read(write(tmp_path, "a.tsv", "a b\tc d\t1\n")) == [("c d", "1", "a b")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(q, str(i % 2), a) for i, (q, a, _) in enumerate(FAQ)], "column 2 looks like the label: name the columns wi"),
        ([("entailment", a, str(i % 2)) for i, (_, a, _) in enumerate(FAQ)], "columns 1 and 3 both look like labels, "),
        ([(HANZI[i % 3], a, ("适合", "不")[i % 2]) for i, (_, a, _) in enumerate(FAQ)], "columns 1 and 3 both look"),
        ([("yes", "yes", "no")] * 12, "columns 1 and 2 and 3 both look like labels, with values such as 'yes', 'yes'"),
    ],
    ids=["middle", "two", "no blanks", "all"],
)
def test_ambiguous(tmp_path, rows, message):
    path = write(tmp_path, "a.tsv", table(rows))
    said = refusal(read, path)
    assert said.startswith(f"{path}:1: {message}")
    assert "--columns" in said
    assert read(path, CorpusFormat(("1", "2", "3"))) == [(p, h, label) for p, h, label in rows]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("class\tfirst\tsecond", [(label, p, h) for p, h, label in FAQ[:4]]),
        ("first\tsecond\tclass", FAQ[:8]),
        ("标签\t句子甲\t句子乙", [(label, p, h) for p, h, label in FAQ]),
        ("y\tt1\tt2", [(("suits", "misfits")[int(label)], p, h) for p, h, label in FAQ]),
    ],
)
def test_a_header_of_unknown_names(tmp_path, header, rows):
    path = write(tmp_path, "a.tsv", f"{header}\n{table(rows)}")
    assert ":1: no other row has the label" in refusal(read, path)
    columns = tuple(header.split("\t"))
    columns = columns if "second\tclass" in header else (*columns[1:], columns[0])
    assert len(read(path, CorpusFormat(columns))) == len(rows)


def test_first_rows_that_are_no_header(tmp_path):
    """A label may be there once; of a known name, or among others that are there once, it is one."""
    for rows in ([("neutral", "a b", "c"), *[("entailment", "d e", "f")] * 3], [("x", "a", "b"), ("y", "c", "d")]):
        assert len(read(write(tmp_path, "a.tsv", table(rows)))) == len(rows)


@pytest.mark.parametrize(("header", "lacking"), [("label\tq1\tq2", "sentence1"), ("q1\tq2\tgold_label", "sentence1")])
def test_a_header_of_which_the_label_alone_is_known(tmp_path, header, lacking):
    said = refusal(read, write(tmp_path, "a.tsv", f"{header}\n" + "0\ta b\tc\n1\td e\tf\n" * 3))
    assert said.endswith(": name the columns with --columns")
    assert f":1: expected a column {lacking}" in said


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize("again", ["label\tpremise\thypothesis", "gold_label\tsentence1\tsentence2"])
@pytest.mark.parametrize("header", ["label\tpremise\thypothesis\n", "", "id\tpremise\n"], ids=["", "none", "other"])
def test_a_header_once_more_is_a_bad_row(tmp_path, name, again, header):
    if header.startswith("id"):
        header, again = "y\tq1\tq2\n", "y\tq1\tq2"
    rows = "0\ta\tb\n1\tc\td\n"
    content = (header + rows + again + "\n" + rows).replace("\t", "," if name == "a.csv" else "\t")
    corpus_format = CorpusFormat(("q1", "q2", "y")) if header.startswith("y") else CorpusFormat()
    bad = []
    pairs = list(read_pairs(write(tmp_path, name, content), corpus_format, on_bad_row=bad.append))
    assert [pair.label for pair in pairs] == ["0", "1", "0", "1"]
    assert [row.line for row in bad] == [4 if header else 3]
    assert bad[0].reason == "expected a pair, got a header once more: are these two files, one behind the other?"


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", ","])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("header", ["label{0}premise{0}hypothesis\n", ""])
def test_delimiters_are_seen(tmp_path, delimiter, name, header):
    rows = [(label, f"{p}{', so' if delimiter != ',' else ''}", h) for p, h, label in FAQ]
    path = write(tmp_path, name, header.format(delimiter) + table(rows, delimiter))
    expected = [(p, h, label) for label, p, h in rows]
    assert read(path) == expected
    assert read(path, CorpusFormat(delimiter=delimiter)) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # A first sentence with a comma; one comma in each sentence; a row that is cut.
        ("a.csv", "1\ta, b\tc\n0\td\te\n", [("a, b", "c", "1"), ("d", "e", "0")]),
        ("a.tsv", "1\ta, b\tc\n0\td, e\tf\n", [("a, b", "c", "1"), ("d, e", "f", "0")]),
        ("a.csv", '1,"a; b; c",d\n0,"e; f; g",h\n', [("a; b; c", "d", "1"), ("e; f; g", "h", "0")]),
        ("a.csv", '1;"a;b";c\n0;"d\n;e";f\n', [("a;b", "c", "1"), ("d\n;e", "f", "0")]),
    ],
)
def test_delimiters_are_not_mistaken(tmp_path, name, content, expected):
    given = CorpusFormat(delimiter=";") if content.startswith("1;") else None
    assert read(write(tmp_path, name, content), given) == expected


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n", "x", "，"])
def test_what_is_no_delimiter(delimiter):
    with pytest.raises(ValueError, match="delimiter must be an ASCII character"):
        CorpusFormat(delimiter=delimiter)


PARTS = "label{0}premise{0}hypothesis{0}split\n1{0}a{0}b{0}train\n0{0}c{0}d{0}train\n1{0}e{0}f{0}test\n"
SICK = "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set\n"


@pytest.mark.parametrize(
    ("name", "content", "line", "part"),
    [
        ("a.tsv", PARTS.format("\t"), 4, "test"),
        ("a.csv", PARTS.format(","), 4, "test"),
        ("a.txt", SICK + "1\tA b\tC\tNEUTRAL\t4.5\tTRAIN\n2\tD\tE\tENTAILMENT\t3\tTRIAL\n", 3, "TRIAL"),
        (
            "a.jsonl",
            '{"premise": "a", "hypothesis": "b", "label": 1, "split": "train"}\n'
            '{"premise": "a", "hypothesis": "b", "label": 1, "split": "dev"}\n',
            2,
            "dev",
        ),
    ],
)
def test_rows_for_another_part(tmp_path, name, content, line, part):
    path = write(tmp_path, name, content)
    first = "TRAIN" if "TRAIN" in content else "train"
    expected = f"expected a row for {first}, as the first one is, got one for {part}: write a file for each part"
    assert refusal(read, path) == f"{path}:{line}: {expected}"
    assert len(read(path, labeled=False)) == line - ("jsonl" not in name)  # to predict, it does not matter
