"""Corpora: what is read, and what is said about files that are wrong."""

import gzip
import io
import json
import time
import tracemalloc
from itertools import chain, repeat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esim_fast.data import BadRow, CorpusFormat, DataError, Pair, read_pairs
from esim_fast.data.reading import KNOWN_NAMES, LONGEST_LINE, bounded_lines, parse_pairs

ROWS = [Pair("A man sleeps.", "He rests.", "entailment", 1), Pair("Two cats.", "", "neutral", 2)]
TSV = "entailment\tA man sleeps.\tHe rests.\nneutral\tTwo cats.\t\n"


def write(folder: Path, name: str, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def shifted(rows: list[Pair], lines: int) -> list[Pair]:
    return [row._replace(line=row.line + lines) for row in rows]


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.tsv.gz", "odd"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(TSV, id="plain"),
        pytest.param("\ufeff" + TSV, id="byte-order-mark"),
        pytest.param(TSV.replace("\n", "\r\n"), id="crlf"),
        pytest.param(TSV.removesuffix("\n"), id="no-final-line-feed"),
        pytest.param(TSV + "\n\r\n\n", id="blank-lines-at-the-end"),
    ],
)
def test_tab_separated(tmp_path, name, content):
    path = write(tmp_path, name, content)
    assert list(read_pairs(path)) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(
            "gold_label\tsentence1\tsentence2\nentailment\tA man sleeps.\tHe rests.\nneutral\tTwo cats.\t\n", id="snli"
        ),
        pytest.param(
            "hypothesis\tid\tlabel\tpremise\nHe rests.\t7\tentailment\tA man sleeps.\n\t8\tneutral\tTwo cats.\n",
            id="any-order-other-columns",
        ),
        pytest.param(
            "Label \t Premise\tHYPOTHESIS\n entailment \tA man sleeps.\tHe rests.\nneutral\tTwo cats.\t\n",
            id="any-case-and-blanks",
        ),
        pytest.param(
            "label\tgold_label\tsentence1\tsentence2\n"
            "x\tentailment\tA man sleeps.\tHe rests.\nx\tneutral\tTwo cats.\t\n",
            id="gold-label-rather-than-label",
        ),
        pytest.param(
            "gold_label\tsentence1\tsentence2\tgenre\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\n"
            "entailment\tA man sleeps.\tHe rests.\tfiction\tentailment\nneutral\tTwo cats.\t\tfic\tneutral\t\t\t\t\n",
            id="multinli-leaves-out-last-columns",
        ),
    ],
)
def test_header(tmp_path, content):
    assert list(read_pairs(write(tmp_path, "a.tsv", content))) == shifted(ROWS, 1)


def test_quotes_and_unicode_line_ends_are_ordinary_characters(tmp_path):
    odd = 'He said "so\u2028it\x85is\x0bnot\x0cover\x1c\r here'
    path = write(tmp_path, "a.tsv", f'neutral\t"{odd}\t"\n')
    assert list(read_pairs(path)) == [Pair(f'"{odd}', '"', "neutral", 1)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "keys", [("gold_label", "sentence1", "sentence2"), ("label", "premise", "hypothesis")], ids=lambda keys: keys[0]
)
def test_json_lines(tmp_path, name, keys):
    rows = [dict(zip(keys, (row.label, row.premise, row.hypothesis), strict=True)) | {"pairID": 7} for row in ROWS]
    assert list(read_pairs(write(tmp_path, name, "\n".join(map(json.dumps, rows)) + "\n\n"))) == ROWS


def test_json_lines_prefer_the_gold_label(tmp_path):
    row = {"label": "x", "gold_label": "neutral", "premise": "x", "sentence1": "Two cats.", "sentence2": ""}
    assert list(read_pairs(write(tmp_path, "a.jsonl", json.dumps(row)))) == [Pair("Two cats.", "", "neutral", 1)]


@pytest.mark.parametrize("labeled", [True, False])
def test_rows_without_a_gold_label(tmp_path, labeled):
    path = write(tmp_path, "a.tsv", "-\ta\tb\nneutral\tc\td\n")
    assert list(read_pairs(path, labeled=labeled)) == [Pair("a", "b", None, 1), Pair("c", "d", "neutral", 2)]


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("a.tsv", "a\tb\nc\td\n", Pair("a", "b", None, 1)),
        ("a.tsv", "neutral\ta\tb\n", Pair("a", "b", "neutral", 1)),
        ("a.tsv", "hypothesis\tpremise\nb\ta\n", Pair("a", "b", None, 2)),
        ("a.tsv", "gold_label\tsentence1\tsentence2\n-\ta\tb\n", Pair("a", "b", None, 2)),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b"}\n', Pair("a", "b", None, 1)),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b", "label": null}\n', Pair("a", "b", None, 1)),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b", "label": "x"}\n', Pair("a", "b", "x", 1)),
    ],
)
def test_labels_may_be_absent(tmp_path, name, content, first):
    assert next(read_pairs(write(tmp_path, name, content), labeled=False)) == first


OR = ", a header with known names, or to be told the columns"
SECOND, THIRD = "sentence2, hypothesis, question2 or text_b", "gold_label, label or is_duplicate"
GOOD = "neutral\ta\tb\n"
GOOD_JSON = '{"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", GOOD * 16 + "neutral\ta\n", ":17: expected 3 columns, got 2"),
        ("a.tsv", GOOD + "neutral\ta\tb\tc\n", ":2: expected 3 columns, got 4"),
        ("a.tsv", "a\tb\n", f":1: expected 3 columns{OR}, got 2: a, b"),
        ("a.tsv", "label\tpremise\thypothesis\tid\nx\ta\n", ":2: expected 4 columns, got 2"),
        ("a.tsv", "label\tpremise\thypothesis\tid\nx\ta\tb\t1\t2\n", ":2: expected 4 columns, got 5"),
        ("a.tsv", "label\tsentence1\nx\ta\n", f":1: expected a column {SECOND} in the header, got label, sentence1"),
        (
            "a.tsv",
            "premise\thypothesis\na\tb\n",
            f":1: expected a column {THIRD} in the header, got premise, hypothesis",
        ),
        ("a.tsv", GOOD + "\n\n" + GOOD, ":2: 2 blank lines"),
        ("a.tsv", GOOD + "\ta\tb\n", ":2: empty label"),
        ("a.tsv", GOOD.encode() + b"x\ta\xff\tb\n", ":2: not valid UTF-8 at byte 4"),
        ("a.tsv", GOOD.encode("utf-16"), ":1: not valid UTF-8 at byte 1 (UTF-16?)"),
        (
            "a.tsv",
            gzip.compress(GOOD.encode()),
            ":1: not valid UTF-8 at byte 2 (a gzip file? Its name should end in .gz)",
        ),
        ("a.jsonl", GOOD_JSON + "{oops}\n", ":2: not valid JSON at character 2"),
        ("a.jsonl", GOOD_JSON[:20], ":1: not valid JSON at character 16"),
        ("a.jsonl", GOOD_JSON + "[1]\n", ":2: expected a JSON object"),
        ("a.jsonl", GOOD_JSON + '"gold_label"\n', ":2: expected a JSON object"),
        ("a.jsonl", GOOD_JSON + "\n" + GOOD_JSON, ":2: blank line"),
        (
            "a.jsonl",
            '{"label": "x", "premise": "a"}',
            ":1: expected a key sentence2, hypothesis, question2 or text_b, got label, premise",
        ),
        (
            "a.jsonl",
            '{"premise": "a", "hypothesis": "b"}',
            ":1: expected a key gold_label, label or is_duplicate, got premise, hypothesis",
        ),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b", "label": 0.5}', ":1: label: expected a string, got float"),
        (
            "a.jsonl",
            '{"sentence1": null, "sentence2": "b", "label": "x"}',
            ":1: sentence1: expected a string, got NoneType",
        ),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b", "label": ""}', ":1: empty label"),
        (
            "a.jsonl",
            r'{"premise": "a", "hypothesis": "b\ud83d", "label": "x"}',
            ":1: hypothesis: not valid Unicode at character 2",
        ),
    ],
)
def test_bad_file(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        list(read_pairs(path))
    assert str(caught.value) == path + message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n", f":1: expected 2 or 3 columns{OR}, got 1: a"),
        ("a\tb\nx\ta\tb\n", ":2: expected 2 columns, got 3"),
        ("x\ta\tb\na\tb\n", ":2: expected 3 columns, got 2"),
        ("label\tpremise\nx\ta\n", f":1: expected a column {SECOND} in the header, got label, premise"),
        ("\ta\tb\n", ":1: empty label"),
    ],
)
def test_bad_unlabeled_file(tmp_path, content, message):
    path = write(tmp_path, "a.tsv", content)
    with pytest.raises(DataError) as caught:
        list(read_pairs(path, labeled=False))
    assert str(caught.value) == path + message


def test_unreadable_files(tmp_path):
    def message(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            list(read_pairs(path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    whole = gzip.compress(TSV.encode() * 1000)
    for name, data in {
        "cut.tsv.gz": whole[: len(whole) // 2],
        "plain.tsv.gz": TSV.encode(),
        "damaged.tsv.gz": whole[:30] + bytes(20) + whole[50:],
    }.items():
        (tmp_path / name).write_bytes(data)
        assert message(tmp_path / name).startswith(f"{tmp_path / name}:")
    end = "ended before the end-of-stream marker was reached"
    assert message(tmp_path / "cut.tsv.gz") == f"{tmp_path / 'cut.tsv.gz'}:547: Compressed file {end}"
    assert message(tmp_path / "plain.tsv.gz") == f"{tmp_path / 'plain.tsv.gz'}:1: Not a gzipped file (b'en')"
    assert message(tmp_path / "none.tsv") == f"{tmp_path / 'none.tsv'}: No such file or directory"
    assert message(tmp_path) == f"{tmp_path}: Is a directory"


@pytest.mark.parametrize("content", ["[" * 200_000, "9" * 10_000], ids=["deep", "long"])
def test_json_that_python_refuses(tmp_path, content):
    path = write(tmp_path, "a.jsonl", content)
    with pytest.raises(DataError, match=r"a\.jsonl:1: "):
        list(read_pairs(path))


def test_a_stream_is_parsed_as_it_arrives():
    lines = io.BytesIO(b"a\tb\nc\td\te\n")
    rows = parse_pairs(lines, "<stdin>", KNOWN_NAMES, form="tsv", labeled=False)
    assert next(rows) == Pair("a", "b", None, 1)
    with pytest.raises(DataError, match=r"^<stdin>:2: expected 2 columns, got 3$"):
        next(rows)


sentences = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]))


labels = sentences.map(str.strip).filter(lambda label: label not in ("", "-"))


@given(st.lists(st.tuples(labels, sentences, sentences), min_size=1))
def test_whatever_is_written_is_read_back(rows):
    tsv = "".join("\t".join(row) + "\n" for row in [("label", "premise", "hypothesis"), *rows])
    jsonl = "".join(json.dumps(dict(zip(("label", "premise", "hypothesis"), row, strict=True))) + "\n" for row in rows)
    for form, text in (("tsv", tsv), ("jsonl", jsonl)):
        pairs = parse_pairs(io.BytesIO(text.encode()), "memory", KNOWN_NAMES, form=form, labeled=True)
        assert [(pair.label or "-", pair.premise, pair.hypothesis) for pair in pairs] == rows


def read(path: str, *columns: str, quoted: bool = False, labeled: bool = True) -> list[tuple[str, str, str | None]]:
    corpus_format = CorpusFormat(columns or None, quoted)
    return [(pair.premise, pair.hypothesis, pair.label) for pair in read_pairs(path, corpus_format, labeled=labeled)]


OFFICIAL = "gold_label\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tpairID\t"
OFFICIAL += "label1\tlabel2\tlabel3\tlabel4\tlabel5\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tHow?\t0\n"


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
    for columns in (("question1", "question2", "other"), ("4", "5", "7")):  # nor need a label's column be there
        assert read(path, *columns, labeled=False) == [("Why?", "How?", None)]


def test_labels_that_json_writes_otherwise(tmp_path):
    rows = "".join(f'{{"premise": "a", "hypothesis": "b", "label": {label}}}\n' for label in ("-1", "10", "true"))
    assert [label for *_, label in read(write(tmp_path, "a.jsonl", rows))] == ["-1", "10", "true"]


def test_quoted_fields(tmp_path):
    csv = 'label,premise,hypothesis\r\nx,"a, ""b""\nc",d\r\n"y","",e\n'
    expected = [('a, "b"\nc', "d", "x"), ("", "e", "y")]
    assert read(write(tmp_path, "a.csv", csv)) == expected
    # The same with tabs; it is a tab that separates then, so the comma says nothing.
    tsv = csv.replace(",", "\t").replace("a\t", "a,")
    assert read(write(tmp_path, "a.tsv", tsv), quoted=True) == expected
    lines = [pair.line for pair in read_pairs(write(tmp_path, "b.csv", csv))]
    assert lines == [2, 4]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.tsv", QQP, ("q1", "q2", "y"), ":1: expected a column q1 in the header, got id, qid1, qid2, "),
        ("a.tsv", GOOD, ("1", "2", "4"), ":1: expected at least 4 columns, got 3"),
        ("a.jsonl", GOOD_JSON, ("sentence1", "other", "gold_label"), ":1: expected a key other"),
        ("a.csv", 'label,premise,hypothesis\nx,"a"b,c\n', (), ":2: a double quote is not closed, or not followed by"),
        ("a.csv", 'label,premise,hypothesis\nx,"a,b\nx,a,b\n', (), ":2: a double quote is not closed, or not followed"),
        ("a.csv", 'label,premise,hypothesis\nx,a\rb,c\n', (), ":2: not valid quoting: new-line character seen in"),
        ("a.csv", f'x,a,b\nx,{"c" * 140_000},d\n', (), ":2: not valid quoting: field larger than field limit"),
        ("a.tsv", OFFICIAL + "x\t(\t(\ta\tb\t7\tx\tx\tx\tx\n", (), ":2: expected 11 columns, got 10"),
        ("a.tsv", GOOD, ("1", "2"), ": expected columns of premise, hypothesis and label, got 1, 2"),
        ("a.jsonl", GOOD_JSON, ("a", "b"), ": expected columns of premise, hypothesis and label, got a, b"),
        ("a.tsv", 'label\tpremise\thypothesis\nx\t"a\nb"\tc\n', (), ":2: expected 3 columns, got 2 (are there quoted"),
        ("a.tsv", GOOD + "x\ta\0\tb\n", (), ":2: NUL character"),
        ("a.csv", "x,a\0,b\n", (), ":1: NUL character"),
        ("a.jsonl", '{"premise": "a", "hypothesis": "\\u0000", "label": "x"}', (), ":1: NUL character"),
        ("a.tsv", GOOD + "x\t" + "a" * LONGEST_LINE + "\tb\n", (), ":2: expected at most 1000000 bytes in a row, got"),
    ],
)  # fmt: skip
def test_bad_rows_of_other_forms(tmp_path, name, content, columns, message):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read(path, *columns)
    assert str(caught.value).startswith(path + message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "lines", "bad"),
    [
        ("a.tsv", "x\ta\tb\n\nx\ta\n\tc\td\nx\te\tf\n", [1, 5], [2, 3, 4]),
        ("a.tsv", b"x\ta\tb\nx\t\xff\tb\nx\tc\td\n", [1, 3], [2]),
        ("a.tsv", "x\ta\tb\n" + "y" * 3 * LONGEST_LINE + "\nx\tc\td\n", [1, 3], [2]),
        ("a.csv", 'x,a,b\nx,"c\nd",e\nx,"f\nx,g,h\n' + "x,i,j\n" * 3, [1, 2, 5, 6, 7, 8], [4]),
        ("a.csv", 'x,a,b\nx,"c\nx,d,"e"\nx,f,g\n', [1, 3, 4], [2]),
        ("a.csv", 'x,a,b\nx,"open,h\n' + "x,a,b\n" * 20 + 'x,"quoted",h\nx,c,d\n', [1, *range(3, 25)], [2]),
        ("a.tsv", "x\ta\tb\n\n\n\nx\tc\td\n", [1, 5], [2]),
        ("a.jsonl", GOOD_JSON + "{\n" + GOOD_JSON, [1, 3], [2]),
    ],
)
def test_bad_rows_can_be_left_out(tmp_path, name, content, lines, bad):
    rows: list[BadRow] = []
    pairs = list(read_pairs(write(tmp_path, name, content), on_bad_row=rows.append))
    assert [pair.line for pair in pairs] == lines
    assert [row.line for row in rows] == bad


def test_a_file_that_ends_too_early_keeps_its_whole_rows(tmp_path):
    whole = gzip.compress("".join(f"x\tpremise {i}\thypothesis {i}\n" for i in range(5000)).encode())
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    rows: list[BadRow] = []
    pairs = list(read_pairs(path, on_bad_row=rows.append))
    assert pairs == [Pair(f"premise {i}", f"hypothesis {i}", "x", i + 1) for i in range(len(pairs))]
    assert rows == [(len(pairs) + 1, "Compressed file ended before the end-of-stream marker was reached")]


def test_reading_that_fails_within_a_row_of_several_lines_loses_no_row_before(tmp_path):
    rows = ["x,a,b\n"] * 60 + ['x,"never ends,b\n'] + [f"x,premise {i},b\n" for i in range(3000)]
    whole = gzip.compress("".join(rows).encode())
    path = tmp_path / "a.csv.gz"
    for size in range(80, len(whole), 97):
        path.write_bytes(whole[:size])
        bad: list[BadRow] = []
        lines = [pair.line for pair in read_pairs(path, on_bad_row=bad.append)]
        assert sorted([*lines, *(row.line for row in bad)]) == list(range(1, len(lines) + len(bad) + 1))
        assert bad[-1].reason == "Compressed file ended before the end-of-stream marker was reached"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param('x,"a\nb",c\n', id="two-lines-each"),
        pytest.param('x,"a,b\n', id="never-closed"),
        pytest.param('a",""",' + "b" * 100 + "\n", id="open-for-ever"),
        pytest.param('"\n', id="a-quote-a-line"),
        pytest.param('""""""\n', id="nothing-but-quotes"),
    ],
)
def test_time_grows_with_the_file_and_not_faster(row):
    def seconds(count: int) -> float:
        lines = io.BytesIO(b"x,a,b\n" + row.encode() * count)
        begin = time.process_time()
        list(parse_pairs(lines, "memory", KNOWN_NAMES, form="csv", labeled=True, on_bad_row=lambda row: None))
        return time.process_time() - begin

    seconds(100)
    short, long = min(seconds(1000) for _ in range(3)), seconds(16_000)
    assert long < 5 * 16 * short  # a square would be 16 times 16


def test_blank_lines_take_no_memory():
    tracemalloc.start()
    try:
        lines = chain([b"x\ta\tb\n"], repeat(b"\n", 1_000_000), [b"x\ta\tb\n"])
        bad: list[BadRow] = []
        pairs = list(parse_pairs(lines, "m", KNOWN_NAMES, form="tsv", labeled=True, on_bad_row=bad.append))
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    assert [pair.line for pair in pairs] == [1, 1_000_002]
    assert bad == [BadRow(2, "1000000 blank lines")]


def test_text_without_columns(tmp_path):
    path = write(tmp_path, "a.txt", "A word\ttabs too\n\nand\n")
    pairs = list(read_pairs(path, CorpusFormat(text=True), labeled=False))
    assert pairs == [Pair("A word\ttabs too", "", None, 1), Pair("and", "", None, 3)]


def test_columns_are_settled_by_a_good_first_row_alone(tmp_path):
    for content in (b"\xff\tb\tc\nx\ta\tb\n", b"a\tb\nx\ta\tb\n", b"\nx\ta\tb\n"):
        with pytest.raises(DataError, match=r"a\.tsv:1: "):
            list(read_pairs(write(tmp_path, "a.tsv", content), on_bad_row=lambda row: None))


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
