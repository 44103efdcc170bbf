"""Reading corpora, and the messages about bad files."""

import contextlib
import gzip
import io
import json
import tracemalloc
from itertools import chain, repeat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esim_fast.data import BadRow, CorpusFormat, DataError, Pair, read_pairs
from esim_fast.data.reading import KNOWN_NAMES, parse_pairs
from esim_fast.data.records import LONGEST_LINE, bounded_lines
from tests.data.files import assert_linear, refusal, write

ROWS = [Pair("A man sleeps.", "He rests.", "entailment", 1), Pair("Two cats.", "", "neutral", 2)]
MULTINLI = "gold_label\tsentence1\tsentence2\tgenre\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5"
OFFICIAL = "gold_label\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tpairID\t"
OFFICIAL += "label1\tlabel2\tlabel3\tlabel4\tlabel5\n"
TSV = "entailment\tA man sleeps.\tHe rests.\nneutral\tTwo cats.\t\n"


def read_and_bad_rows(path: Path) -> tuple[list[Pair], list[BadRow]]:
    bad: list[BadRow] = []
    return list(read_pairs(path, on_bad_row=bad.append)), bad


def parse(lines, form, on_bad_row=None) -> list[Pair]:
    return list(parse_pairs(lines, "memory", KNOWN_NAMES, form=form, labeled=True, on_bad_row=on_bad_row))


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.tsv.gz", "odd"])
@pytest.mark.parametrize(
    "content",
    ["\ufeff" + TSV, TSV.replace("\n", "\r\n"), TSV.removesuffix("\n"), TSV + "\n\r\n\n"],
    ids=["byte-order-mark", "crlf", "no-final-line-feed", "blank-lines-at-the-end"],
)
def test_tab_separated(tmp_path, name, content):
    assert list(read_pairs(write(tmp_path, name, content))) == ROWS


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("gold_label\tsentence1\tsentence2", "entailment\tA man sleeps.\tHe rests."),
        # Any order, other columns, any case, blanks; a gold label is preferred to a label.
        ("hypothesis\tid\tlabel\tpremise", "He rests.\t7\tentailment\tA man sleeps."),
        ("Label \t Premise\tHYPOTHESIS", " entailment \tA man sleeps.\tHe rests."),
        ("label\tgold_label\tsentence1\tsentence2", "x\tentailment\tA man sleeps.\tHe rests."),
        # MultiNLI omits the last columns.
        (MULTINLI, "entailment\tA man sleeps.\tHe rests.\tfiction\tentailment"),
    ],
)
def test_header(tmp_path, header, row):
    found = ROWS[0]._replace(line=2, id="7" if "id" in header else None)
    assert list(read_pairs(write(tmp_path, "a.tsv", f"{header}\n{row}\n"))) == [found]


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n\tc\td\t0\n", ["0", None]),  # GLUE
        ("pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n6\ta\tb\t4.7\tNEUTRAL\n", ["6"]),
        ("label\tpremise\thypothesis\tid\tpairID\nx\ta\tb\t1\t2-x\n", ["2-x"]),
        (OFFICIAL.replace("label5", "x") + "x\t(a)\t(b)\ta\tb\t34.jpg#1r1n\t1\t2\t3\t4\t5\n", ["34.jpg#1r1n"]),
        ("id\tid\tlabel\tpremise\thypothesis\n1\t2\tx\ta\tb\n", [None]),  # ambiguous
        ("id\tlabel\tpremise\thypothesis2\n", None),
        ("7\ta\tb\n8\tc\td\n", [None, None]),  # never guessed
        ('{"premise": "a", "hypothesis": "b", "idx": 0}\n{"premise": "a", "hypothesis": "b", "idx": "é"}', [0, "é"]),
        ('{"premise": "a", "hypothesis": "b", "pairID": "1-é"}\n{"premise": "a", "hypothesis": "b"}', ["1-é", None]),
        *(
            (f'{{"id": {value}, "premise": "a", "hypothesis": "b", "label": "x"}}', [None])
            for value in ("null", "[1]", '{"a": 1}', "true", '""', "NaN", "Infinity", '"\\ud83d"')
        ),
    ],
)
def test_ids(tmp_path, content, ids):
    path = write(tmp_path, "a.txt", content)
    if ids is None:
        refusal(lambda: list(read_pairs(path, labeled=False)))
    else:
        assert [pair.id for pair in read_pairs(path, labeled=False)] == ids


def test_columns_that_are_named_are_no_ids(tmp_path):
    path = write(tmp_path, "a.tsv", "id\tindex\tother\nx\ty\tz\n")
    for wanted, found in (
        (("id", "other"), ("x", "z", None, 2, "y")),
        (("id", "other", "index"), ("x", "z", "y", 2, None)),
    ):
        assert next(read_pairs(path, CorpusFormat(wanted), labeled=False)) == found
    path = write(tmp_path, "a.jsonl", json_of(id="x", index="y", other="z"))
    assert next(read_pairs(path, CorpusFormat(("id", "other")), labeled=False)) == ("x", "z", None, 1, "y")


def test_quotes_and_unicode_line_ends_are_ordinary_characters(tmp_path):
    odd = 'He said "so\u2028it\x85is\x0bnot\x0cover\x1c\r here'
    path = write(tmp_path, "a.tsv", f'neutral\t"{odd}\t"\n')
    assert list(read_pairs(path)) == [Pair(f'"{odd}', '"', "neutral", 1)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "keys", [("gold_label", "sentence1", "sentence2"), ("label", "premise", "hypothesis")], ids=lambda keys: keys[0]
)
def test_json_lines(tmp_path, name, keys):
    other = {"pairID": 7, "label": "x", "premise": "x"}  # ignored beside the known keys
    rows = [other | dict(zip(keys, (row.label, row.premise, row.hypothesis), strict=True)) for row in ROWS]
    found = list(read_pairs(write(tmp_path, name, "\n".join(map(json.dumps, rows)) + "\n\n")))
    assert found == [row._replace(id=7) for row in ROWS]


@pytest.mark.parametrize("labeled", [True, False])
def test_rows_without_a_gold_label(tmp_path, labeled):
    path = write(tmp_path, "a.tsv", "-\ta\tb\nneutral\tc\td\n")
    assert list(read_pairs(path, labeled=labeled)) == [Pair("a", "b", None, 1), Pair("c", "d", "neutral", 2)]


@pytest.mark.parametrize(
    ("name", "content", "label", "line"),
    [
        ("a.tsv", "a\tb\nc\td\n", None, 1),
        ("a.tsv", "neutral\ta\tb\n", "neutral", 1),
        ("a.tsv", "hypothesis\tpremise\nb\ta\n", None, 2),
        ("a.tsv", "gold_label\tsentence1\tsentence2\n-\ta\tb\n", None, 2),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b"}\n', None, 1),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b", "label": null}\n', None, 1),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b", "label": "x"}\n', "x", 1),
    ],
)
def test_labels_may_be_absent(tmp_path, name, content, label, line):
    assert next(read_pairs(write(tmp_path, name, content), labeled=False)) == Pair("a", "b", label, line)


TSV3 = ":1: expected 3 columns, a header with known names, or --columns P,H,LABEL, got"
FIRST, SECOND = "sentence1, premise, question1 or text_a", "sentence2, hypothesis, question2 or text_b"
THIRD = "gold_label, label, is_duplicate or entailment_label"
COLUMNS, KEYS = "; name the columns with --columns", "; name the keys with --columns"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tHow?\t0\n"
ENDED = "Compressed file ended before the end-of-stream marker was reached"
GOOD = "neutral\ta\tb\n"
GOOD_JSON = '{"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}\n'


def json_of(**keys: object) -> str:
    return json.dumps({"premise": "a", "hypothesis": "b", **keys})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # Columns and header.
        ("a.tsv", GOOD * 16 + "neutral\ta\n", ":17: expected 3 columns, got 2"),
        ("a.tsv", GOOD + "neutral\ta\tb\tc\n", ":2: expected 3 columns, got 4"),
        ("a.tsv", "a\tb\n", f"{TSV3} 2: a, b"),
        ("a.csv", '"a\nb\x1b[2J",c,d,e\n', rf"{TSV3} 4: a\nb\x1b[2J, c, d, e"),
        ("a.tsv", "labels\tpremise\x0b\x1b\t\u2028hypothesis2\t4\n", rf"{TSV3} 4: labels, premise\x0b\x1b…"),
        ("a.tsv", "label\tpremise\thypothesis\tid\nx\ta\n", ":2: expected 4 columns, got 2"),
        ("a.tsv", "label\tpremise\thypothesis\tid\nx\ta\tb\t1\t2\n", ":2: expected 4 columns, got 5"),
        (
            "a.tsv",
            "label\tsentence1\nx\ta\n",
            f":1: expected a column {SECOND} in the header, got label, sentence1{COLUMNS}",
        ),
        ("a.tsv", "premise\thypothesis\na\tb\n", f":1: expected a column {THIRD} in the header, got …"),
        ("a.tsv", 'label\tpremise\thypothesis\nx\t"a\nb"\tc\n', ":2: expected 3 columns, got 2 (are some fields quot…"),
        ("a.tsv", OFFICIAL + "x\t(\t(\ta\tb\t7\tx\tx\tx\tx\n", ":2: expected 11 columns, got 10"),
        # Lines and characters.
        ("a.tsv", GOOD + "\n\n" + GOOD, ":2: 2 blank lines"),
        ("a.tsv", GOOD + "\ta\tb\n", ":2: empty label"),
        ("a.tsv", GOOD + "x\ta\0\tb\n", ":2: NUL character"),
        (
            "a.tsv",
            b"\0\0\0",
            ": expected text in UTF-8, got NUL characters (UTF-16 without a byte order mark?…",
        ),
        ("a.tsv", GOOD + "x\t" + "a" * LONGEST_LINE + "\tb\n", ":2: expected at most 1000000 bytes per row, got…"),
        ("a.tsv", "x" * 5 * LONGEST_LINE, ":1: expected at most 1000000 bytes per row, got…"),
        ("a.tsv", GOOD.encode() + b"x\ta\xff\tb\n", ":2: not valid UTF-8 at byte 4…"),
        (
            "a.tsv",
            GOOD.encode("utf-16"),
            ": expected text in UTF-8, got UTF-16; convert it with iconv -f UTF-16 -t UTF-8 OLD > NEW",
        ),
        ("a.tsv", gzip.compress(b"a", mtime=0), ": expected text in UTF-8, got a gzip file; its name…"),
        # Quoted fields.
        ("a.csv", 'label,premise,hypothesis\nx,"a"b,c\n', ":2: a double quote is not closed, or is not followed by…"),
        ("a.csv", 'label,premise,hypothesis\nx,"a,b\nx,a,b\n', ":2: a double quote is not closed, or is not followed…"),
        ("a.csv", "label,premise,hypothesis\nx,a\rb,c\n", ":2: invalid quoting: new-line character seen in…"),
        ("a.csv", f"x,a,b\nx,{'c' * 140_000},d\n", ":2: invalid quoting: field larger than field limit…"),
        ("a.csv", "x,a\0,b\n", ":1: NUL character"),
        # JSON.
        ("a.jsonl", GOOD_JSON + "{oops}\n", ":2: not valid JSON at character 2"),
        ("a.jsonl", GOOD_JSON[:20], ":1: not valid JSON at character 16"),
        ("a.jsonl", GOOD_JSON + "[" * 900_000 + "\n", ":2: not valid JSON…"),
        ("a.jsonl", "9" * 10_000, ":1: …"),  # more digits than Python parses
        ("a.jsonl", GOOD_JSON + "[1]\n", ":2: expected a JSON object"),
        ("a.jsonl", GOOD_JSON + '"gold_label"\n', ":2: expected a JSON object"),
        ("a.jsonl", GOOD_JSON + "\n" + GOOD_JSON, ":2: blank line"),
        ("a.jsonl", '{"label": "x", "premise": "a"}', f":1: expected a key {SECOND}, got label, premise{KEYS}"),
        ("a.jsonl", json_of(), f":1: expected a key {THIRD}, got premise, hypothesis{KEYS}"),
        ("a.jsonl", '{"a\\nb\\u001b": 1}', f":1: expected a key {FIRST}, got a\\nb\\x1b{KEYS}"),
        ("a.jsonl", json.dumps({"x" * 900_000: 1}), ":1: expected a key …"),
        ("a.jsonl", json_of(label=[0.5]), ":1: label: expected a string, got list"),
        (
            "a.jsonl",
            json_of(label="x", premise={}),
            ":1: premise: expected a string, got dict (from pandas?…",
        ),
        ("a.jsonl", json_of(label=None), ":1: empty label"),
        ("a.jsonl", json_of(label=""), ":1: empty label"),
        ("a.jsonl", json_of(label="x", hypothesis="b\ud83d"), ":1: hypothesis: not valid Unicode at character 2"),
        ("a.jsonl", json_of(label="x", hypothesis="\0"), ":1: NUL character"),
    ],
)
def test_bad_file(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    said = refusal(lambda: list(read_pairs(path)))
    beginning, rest, _ = message.partition("…")
    assert said.startswith(f"{path}{beginning}") if rest else said == f"{path}{message}"
    # With on_bad_row, the reasons are also short and printable.
    bad: list[BadRow] = []
    with contextlib.suppress(DataError):
        list(read_pairs(path, on_bad_row=bad.append))
    assert all(row.reason.isprintable() and len(row.reason) < 1100 for row in bad)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a\n",
            TSV3.replace("3 columns", "2 or 3 columns") + " 1: a (another delimiter? Use…",
        ),
        ("a\tb\nx\ta\tb\n", ":2: expected 2 columns, got 3"),
        ("x\ta\tb\na\tb\n", ":2: expected 3 columns, got 2"),
        ("label\tpremise\nx\ta\n", f":1: expected a column {SECOND} in the header, got label, premise{COLUMNS}"),
    ],
)
def test_bad_unlabeled_file(tmp_path, content, message):
    path = write(tmp_path, "a.tsv", content)
    said, (beginning, rest, _) = refusal(lambda: list(read_pairs(path, labeled=False))), message.partition("…")
    assert said.startswith(f"{path}{beginning}") if rest else said == f"{path}{message}"


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("a.tsv", ("q1", "q2", "y"), ":1: expected a column q1 in the header, got id, qid1, qid2, "),
        ("a.tsv", ("1", "2", "7"), ":1: expected at least 7 columns, got 6"),
        ("a.tsv", ("1", "2"), ": expected columns of premise, hypothesis and label, got 1, 2"),
        ("a.jsonl", ("sentence1", "other", "gold_label"), ":1: expected a key other"),
        ("a.jsonl", ("a", "b"), ": expected columns of premise, hypothesis and label, got a, b"),
    ],
)
def test_columns_that_are_not_there(tmp_path, name, columns, message):
    path = write(tmp_path, name, QQP if name == "a.tsv" else GOOD_JSON)
    assert refusal(lambda: read(path, *columns)).startswith(f"{path}{message}")


def test_unreadable_files(tmp_path):
    whole = gzip.compress(TSV.encode() * 1000)
    for name, data, message in (
        ("cut.tsv.gz", whole[: len(whole) // 2], f":547: {ENDED}"),
        ("empty.tsv.gz", b"\x1f\x8b\x08\x00" + bytes(20), ":1: "),
        ("plain.tsv.gz", TSV.encode(), ":1: Not a gzipped file (b'en')"),
        ("damaged.tsv.gz", whole[:30] + bytes(20) + whole[50:], ":"),
        ("none.tsv", None, ": No such file or directory"),
        ("", None, ": Is a directory"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        assert refusal(lambda path=path: list(read_pairs(path))).startswith(f"{path}{message}")


def test_a_stream_is_parsed_as_it_arrives():
    rows = parse_pairs(io.BytesIO(b"a\tb\nc\td\te\n"), "<stdin>", KNOWN_NAMES, form="tsv", labeled=False)
    assert next(rows) == Pair("a", "b", None, 1)
    assert refusal(next, rows) == "<stdin>:2: expected 2 columns, got 3"


sentences = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]))
labels = sentences.map(str.strip).filter(lambda label: label not in ("", "-", "-1") and not label.endswith(".0"))


@given(st.lists(st.tuples(labels, sentences, sentences), min_size=1))
def test_written_rows_read_back(rows):
    keys = "label", "premise", "hypothesis"
    tsv = "".join("\t".join(row) + "\n" for row in [keys, *rows])
    jsonl = "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
    for form, text in (("tsv", tsv), ("json", jsonl)):
        pairs = parse(io.BytesIO(text.encode()), form)
        assert [(pair.label or "-", pair.premise, pair.hypothesis) for pair in pairs] == rows


def read(path: Path, *columns: str, labeled: bool = True) -> list[tuple[str, str, str | None]]:
    return [pair[:3] for pair in read_pairs(path, CorpusFormat(columns or None), labeled=labeled)]


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("qqp.tsv", QQP, ()),
        ("qqp.tsv", QQP, ("question1", "question2", "is_duplicate")),
        ("qqp.tsv", QQP, ("4", "5", "6")),
        ("qqp.csv", QQP.replace("\t", ","), ()),
        ("lcqmc.tsv", "text_a\ttext_b\tlabel\nWhy?\tHow?\t0\n", ()),
        ("lcqmc.txt", "Why?\tHow?\t0\n", ("1", "2", "3")),
        ("odd.csv.gz", "y,s1,s2\n0,Why?,How?\n", ("s1", "s2", "y")),
        ("odd.jsonl", '{"a": "Why?", "b": "How?", "y": 0}\n', ("a", "b", "y")),
        ("qqp.jsonl", '{"question1": "Why?", "question2": "How?", "is_duplicate": 0}\n', ()),
    ],
)
def test_columns(tmp_path, name, content, columns):
    assert read(write(tmp_path, name, content), *columns) == [("Why?", "How?", "0")]


def test_two_columns_where_labels_are_not_needed(tmp_path):
    path = write(tmp_path, "a.tsv", QQP)
    assert read(path, "question1", "question2", labeled=False) == [("Why?", "How?", None)]
    for columns in (("question1", "question2", "other"), ("4", "5", "7")):  # without a label column
        assert read(path, *columns, labeled=False) == [("Why?", "How?", None)]


def test_other_json_labels(tmp_path):
    rows = "".join(
        f'{{"premise": "a", "hypothesis": "b", "label": {label}}}\n' for label in ("2.0", "10", "true", "0.5")
    )
    assert [label for *_, label in read(write(tmp_path, "a.jsonl", rows))] == ["2", "10", "true", "0.5"]


def test_quoted_fields(tmp_path):
    csv = 'label,premise,hypothesis\r\nx,"a, ""b""\nc",d\r\n"y","",e\n'
    path = write(tmp_path, "a.csv", csv)
    assert list(read_pairs(path)) == [Pair('a, "b"\nc', "d", "x", 2), Pair("", "e", "y", 4)]
    # The same with tabs, beside which commas are ordinary characters.
    tsv = write(tmp_path, "a.tsv", csv.replace(",", "\t").replace("a\t", "a,"))
    assert list(read_pairs(tsv, CorpusFormat(quoted=True))) == list(read_pairs(path))


@pytest.mark.parametrize(
    ("name", "content", "lines", "bad"),
    [
        ("a.tsv", "x\ta\tb\n\nx\ta\n\tc\td\nx\te\tf\n", [1, 5], [2, 3, 4]),
        ("a.tsv", b"x\ta\tb\nx\t\xff\tb\nx\tc\td\n", [1, 3], [2]),
        ("a.tsv", "x\ta\tb\n" + "y" * 3 * LONGEST_LINE + "\nx\tc\td\n", [1, 3], [2]),
        ("a.csv", 'no,a,b\nno,"c\nd",e\nno,"f\nno,g,h\n' + "no,i,j\n" * 3, [1, 2, 5, 6, 7, 8], [4]),
        ("a.csv", 'x,a,b\nx,"c\nx,d,"e"\nx,f,g\n', [1, 3, 4], [2]),
        ("a.csv", 'no,a,b\nno,"open,h\n' + "no,a,b\n" * 20 + 'no,"quoted",h\nno,c,d\n', [1, *range(3, 25)], [2]),
        ("a.tsv", "x\ta\tb\n\n\n\nx\tc\td\n", [1, 5], [2]),
        ("a.jsonl", GOOD_JSON + "{\n" + GOOD_JSON, [1, 3], [2]),
    ],
)
def test_bad_rows_can_be_skipped(tmp_path, name, content, lines, bad):
    pairs, rows = read_and_bad_rows(write(tmp_path, name, content))
    assert ([pair.line for pair in pairs], [row.line for row in rows]) == (lines, bad)


def test_reading_that_fails_within_a_row_of_several_lines_loses_no_row_before(tmp_path):
    rows = ["no,a,b\n"] * 60 + ['no,"never ends,b\n'] + [f"no,premise {i},b\n" for i in range(3000)]
    whole = gzip.compress("".join(rows).encode())
    for size in range(80, len(whole), 97):
        (tmp_path / "a.csv.gz").write_bytes(whole[:size])
        pairs, bad = read_and_bad_rows(tmp_path / "a.csv.gz")
        assert sorted(row.line for row in (*pairs, *bad)) == list(range(1, len(pairs) + len(bad) + 1))
        assert bad[-1].reason == ENDED


# A quoted row on two lines, unclosed quotes, an open quote after others, one quote per line, only quotes.
@pytest.mark.parametrize("row", ['x,"a\nb",c\n', 'x,"a,b\n', 'a",""",' + 100 * "b" + "\n", '"\n', '""""""\n'], ids=repr)
def test_time_is_linear_in_the_file(row):
    assert_linear(lambda count: parse(io.BytesIO(b"x,a,b\n" + row.encode() * count), "csv", lambda row: None))


def test_blank_lines_take_no_memory():
    bad: list[BadRow] = []
    tracemalloc.start()
    pairs = parse(chain([b"x\ta\tb\n"], repeat(b"\n", 1_000_000), [b"x\ta\tb\n"]), "tsv", bad.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6
    assert [pair.line for pair in pairs] == [1, 1_000_002]
    assert bad == [BadRow(2, "1000000 blank lines")]


def test_text_without_columns(tmp_path):
    path = write(tmp_path, "a.txt", "A word\ttabs too\n\nand\n")
    pairs = list(read_pairs(path, CorpusFormat(text=True), labeled=False))
    assert pairs == [Pair("A word\ttabs too", "", None, 1), Pair("and", "", None, 3)]


@pytest.mark.parametrize("first", [b"\xff\tb\tc\n", b"a\tb\n", b"\n"])
def test_columns_are_settled_by_a_good_first_row_alone(tmp_path, first):
    path = write(tmp_path, "a.tsv", first + b"x\ta\tb\n")
    assert refusal(read_and_bad_rows, path).startswith(f"{path}:1: ")


def test_a_long_line_does_not_fill_the_memory():
    class Endless(io.RawIOBase):
        """A gigabyte without a line feed, then a line."""

        left = 10**9

        def readline(self, size: int = -1) -> bytes:  # type: ignore[override]
            assert 0 < size <= LONGEST_LINE + 2
            if not self.left:
                return b""
            read = b"x" * min(size, self.left)
            self.left -= len(read)
            return read if self.left else read[:-1] + b"\n"

    (line,) = bounded_lines(Endless())  # type: ignore[arg-type]
    assert len(line) == LONGEST_LINE + 1


@pytest.mark.parametrize(
    ("name", "pairs", "unlabeled"),
    [
        ("snli/dev.tsv.gz", 9842, 158),
        ("snli/snli_1.0_dev.jsonl.gz", 9842, 158),
        ("snli/train20k.tsv.gz", 20_000, 0),
        ("snli/cad_train.tsv.gz", 8330, 0),
        ("mnli/dev_matched.tsv.gz", 9815, 0),
    ],
)
def test_real_corpora(real_data, name, pairs, unlabeled):
    labels = [pair.label for pair in read_pairs(real_data / name)]
    assert (len(labels) - labels.count(None), labels.count(None)) == (pairs, unlabeled)
    assert {*labels} - {None} == {"entailment", "neutral", "contradiction"}


def test_formats_made_by_hand():
    assert CorpusFormat(columns=[1, 2, 3]).columns == ("1", "2", "3")
    with pytest.raises(TypeError, match="columns must be a sequence of names or numbers, got 'a,b'"):
        CorpusFormat(columns="a,b")
