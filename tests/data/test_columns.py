"""Columns without a header of known names: detected from their content, or rejected."""

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


UNCLEAR = "columns "
FAQ = [(QUESTIONS[i % 3], answer, str(i % 2)) for i, answer in enumerate(ANSWERS)]


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize(
    "rows",
    [
        FAQ,
        [(HANZI[i % 3], answer, str(i % 2)) for i, answer in enumerate(ANSWERS)],
        [(q, a, ("entailment", "not_entailment")[int(label)]) for q, a, label in FAQ],
        [(q, a, ("suits", "misfits")[int(label)]) for q, a, label in FAQ],  # unknown names
        [(q, a, f"{label}.0") for q, a, label in FAQ],
        [(ANSWERS[-i], answer, "- 01"[i % 4].strip() or "-") for i, answer in enumerate(ANSWERS)],  # unique premises
        FAQ[:3],
    ],
    ids=["faq", "no blanks", "words", "other words", "floats", "distinct", "three rows"],
)
def test_a_label_in_the_last_column(tmp_path, rows, labeled):
    expected = [(p, h, None if label == "-" else label.removesuffix(".0")) for p, h, label in rows]
    assert read(write(tmp_path, "a.tsv", table(rows)), labeled=labeled) == expected
    first = write(tmp_path, "b.tsv", table((label, p, h) for p, h, label in rows))
    assert read(first, labeled=labeled) == expected


def test_a_single_row_is_as_documented(tmp_path):
    assert read(write(tmp_path, "a.tsv", "a b\tc d\t1\n")) == [("c d", "1", "a b")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(q, str(i % 2), a) for i, (q, a, _) in enumerate(FAQ)], "column 2 looks like the label; name the columns wi"),
        (
            [("entailment", a, str(i % 2)) for i, (_, a, _) in enumerate(FAQ)],
            "columns 1 and 3 could be",
        ),
        (
            [(("退款", "发货", "付款")[i % 3], a, ("适合", "不")[i % 2]) for i, (_, a, _) in enumerate(FAQ)],
            "columns 1 and 3 could be",
        ),
        ([("yes", "yes", "no")] * 12, UNCLEAR + "1, 2 and 3 could"),
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


def test_first_rows_that_are_not_a_header(tmp_path):
    """A label that occurs only once is a label if its name is known, or if others also occur once."""
    for rows in ([("neutral", "a b", "c"), *[("entailment", "d e", "f")] * 3], [("x", "a", "b"), ("y", "c", "d")]):
        assert len(read(write(tmp_path, "a.tsv", table(rows)))) == len(rows)


@pytest.mark.parametrize(("header", "lacking"), [("label\tq1\tq2", "sentence1"), ("q1\tq2\tgold_label", "sentence1")])
def test_a_header_of_which_the_label_alone_is_known(tmp_path, header, lacking):
    said = refusal(read, write(tmp_path, "a.tsv", f"{header}\n" + "0\ta b\tc\n1\td e\tf\n" * 3))
    assert said.endswith("; name the columns with --columns")
    assert f":1: expected a column {lacking}" in said


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize("again", ["label\tpremise\thypothesis", "gold_label\tsentence1\tsentence2"])
@pytest.mark.parametrize("header", ["label\tpremise\thypothesis\n", "", "id\tpremise\n"], ids=["", "none", "other"])
def test_a_repeated_header_is_a_bad_row(tmp_path, name, again, header):
    if header.startswith("id"):
        header, again = "y\tq1\tq2\n", "y\tq1\tq2"
    rows = "0\ta\tb\n1\tc\td\n"
    content = (header + rows + again + "\n" + rows).replace("\t", "," if name == "a.csv" else "\t")
    corpus_format = CorpusFormat(("q1", "q2", "y")) if header.startswith("y") else CorpusFormat()
    bad = []
    pairs = list(read_pairs(write(tmp_path, name, content), corpus_format, on_bad_row=bad.append))
    assert [pair.label for pair in pairs] == ["0", "1", "0", "1"]
    assert [row.line for row in bad] == [4 if header else 3]
    assert bad[0].reason == "expected a pair, got the header again (were two files joined?)"


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", ","])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("header", ["label{0}premise{0}hypothesis\n", ""])
def test_delimiters_are_seen(tmp_path, delimiter, name, header):
    rows = [(label, f"{p}{', so' if delimiter != ',' else ''}", h) for p, h, label in FAQ]
    path = write(tmp_path, name, header.format(delimiter) + table(rows, delimiter))
    expected = [(p, h, label) for label, p, h in rows]
    assert read(path, CorpusFormat(delimiter=delimiter)) == expected
    if delimiter == "," and name == "a.tsv" and not header:  # could be sentences with commas
        assert "Use --delimiter" in refusal(read, path)
    else:
        assert read(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # A first sentence with a comma, one comma in each sentence, and a truncated row.
        ("a.csv", "1\ta, b\tc\n0\td\te\n", [("a, b", "c", "1"), ("d", "e", "0")]),
        ("a.tsv", "1\ta, b\tc\n0\td, e\tf\n", [("a, b", "c", "1"), ("d, e", "f", "0")]),
        ("a.csv", '1,"a; b; c",d\n0,"e; f; g",h\n', [("a; b; c", "d", "1"), ("e; f; g", "h", "0")]),
        ("a.csv", '1;"a;b";c\n0;"d\n;e";f\n', [("a;b", "c", "1"), ("d\n;e", "f", "0")]),
        ("a.csv", "1\ta, x\tb, y\n0\tc, x\td, y\n", [("a, x", "b, y", "1"), ("c, x", "d, y", "0")]),
        ("a.csv", "1;a;b\n0;c;d\n\n\n", [("a", "b", "1"), ("c", "d", "0")]),
    ],
)
def test_delimiters_are_not_mistaken(tmp_path, name, content, expected):
    given = CorpusFormat(delimiter=";") if '"d\n' in content else None
    assert read(write(tmp_path, name, content), given) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("A | b | c\tD\nE | f | g\tH\n", [("A | b | c", "D", None), ("E | f | g", "H", None)]),
        ("Hello, world\nGood day, sir\n", None),
        ("Yes, sir, he ran\nNo, sir, he sat\n", None),
        ("a, b\tc\nd, e\tf\n", [("a, b", "c", None), ("d, e", "f", None)]),
    ],
)
def test_sentences_without_labels_are_not_cut(tmp_path, content, expected):
    path = write(tmp_path, "a.txt", content)
    if expected is None:
        assert "expected 2 or 3 columns" in refusal(read, path, labeled=False)
    else:
        assert read(path, labeled=False) == expected


def test_columns_that_two_delimiters_could_separate(tmp_path):
    path = write(tmp_path, "a.csv", "0;A, x;B, y\n0;C, x;D, y\n")
    assert refusal(read, path) == f"{path}: columns could be separated by ; or ,; choose one with --delimiter"


@pytest.mark.parametrize(
    "rows",
    [
        [(("same", "other")[i % 2], f"How many of {i}?", str(i % 7)) for i in range(30)],
        [(("relevant", "not relevant")[i % 2], f"text {i}.", ("sports", "news")[i % 3 // 2]) for i in range(60)],
        [(("right", "wrong")[i % 2], "Is it?", ("yes", "no")[i % 3 // 2]) for i in range(12)],
    ],
    ids=["numbers", "topics", "answers"],
)
def test_custom_labels_beside_short_hypotheses(tmp_path, rows):
    """The label is never silently taken from the last column."""
    assert refusal(read, write(tmp_path, "a.tsv", table(rows))).partition(":1: ")[2].startswith(UNCLEAR)
    few = write(tmp_path, "b.tsv", table(rows[:5]))
    if "sports" in rows[0]:
        assert read(few) == [(p, h, label) for label, p, h in rows[:5]]
    else:
        assert refusal(read, few).partition(":1: ")[2].startswith(f"{UNCLEAR}1 and 3 could be")


def test_few_rows_with_the_label_last(tmp_path):
    rows = [("Where is my parcel?", "It is on its way.", "suits"), ("How can I pay?", "By card.", "misfits")] * 2
    assert UNCLEAR in refusal(read, write(tmp_path, "a.tsv", table(rows)))


@pytest.mark.parametrize(
    "labels", [("e", "n", "n"), ("support", "refute", "refute"), ("disagree", *["agree", "discuss"] * 60)]
)
def test_a_first_label_that_is_there_once(tmp_path, labels):
    rows = [(label, f"A man {i} sleeps.", f"He {i} rests.") for i, label in enumerate(labels)]
    assert len(read(write(tmp_path, "a.tsv", table(rows)))) == len(rows)


@pytest.mark.parametrize(
    "rows",
    [
        [(("password", "payment")[i % 2], f"answer {i}", ("very good", "good", "bad")[i % 3]) for i in range(60)],
        [(QUESTIONS[i % 2], f"Number {i}.", ("It is right.", "It is wrong.")[i % 3 // 2]) for i in range(60)],
    ],
)
def test_few_premises_and_custom_labels(tmp_path, rows):
    assert UNCLEAR in refusal(read, write(tmp_path, "a.tsv", table(rows)))


@pytest.mark.parametrize("first", ['"label"\t"premise"\t"hypothesis"\n', '"y"\t"q1"\t"q2"\n'])
def test_a_quoted_header(tmp_path, first):
    path = write(tmp_path, "a.tsv", first + '"1"\t"a b"\t"c"\n' * 3)
    assert refusal(read, path) == f"{path}:1: all fields are in double quotes; use --quoted"


def test_excels_mark_of_a_delimiter(tmp_path):
    path = write(tmp_path, "a.csv", "sep=;\nlabel;premise;hypothesis\n1;a;b\n")
    assert "got 1: sep=; (Excel's delimiter line; remove it)" in refusal(read, path)


@pytest.mark.parametrize("name", ["a.tsv", "a.txt"])
def test_quoted_fields_in_a_table_of_tabs(tmp_path, name):
    path = write(tmp_path, name, '"1"\t"a b"\t"c"\n"0"\t"d"\t"e"\n')
    assert refusal(read, path) == f"{path}:1: all fields are in double quotes; use --quoted"
    assert read(path, CorpusFormat(quoted=True)) == [("a b", "c", "1"), ("d", "e", "0")]


def test_two_columns_of_one_name(tmp_path):
    path = write(tmp_path, "a.tsv", "label\tpremise\thypothesis\tlabel\n0\ta\tb\t1\n")
    assert "two columns are called label" in refusal(read, path)
    assert read(path, CorpusFormat(("2", "3", "4"))) == [("a", "b", "1")]


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n", "x", "，"])
def test_bad_delimiters(delimiter):
    with pytest.raises(ValueError, match="delimiter must be one ASCII character"):
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
    expected = f"this row belongs to {part}, but the first row to {first}; write one file per split"
    assert refusal(read, path) == f"{path}:{line}: {expected}"
    assert len(read(path, labeled=False)) == line - ("jsonl" not in name)  # irrelevant for prediction


@pytest.mark.parametrize("values", [("1", "2"), ("seen", "unseen")])
def test_splits_are_not_parts(tmp_path, values):
    rows = "".join(f"0\ta\tb\t{value}\n" for value in values)
    assert len(read(write(tmp_path, "a.tsv", "label\tpremise\thypothesis\tsplit\n" + rows))) == 2
