"""Corpora: what is read, and what is said about files that are wrong."""

import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esim_fast.data import DataError, Pair, get_tokeniser, parse_pairs, read_pairs

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
def test_tab_separated(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    corpus = read_pairs(path)
    assert corpus.path == path
    assert corpus.pairs == ROWS
    assert corpus.dropped == 0


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
            "label\tgold_label\tsentence1\tsentence2\n"
            "x\tentailment\tA man sleeps.\tHe rests.\nx\tneutral\tTwo cats.\t\n",
            id="gold-label-rather-than-label",
        ),
        pytest.param(
            "gold_label\tsentence1\tsentence2\tgenre\tlabel1\tlabel2\n"
            "entailment\tA man sleeps.\tHe rests.\tfiction\tentailment\nneutral\tTwo cats.\t\tfiction\tneutral\t\n",
            id="multinli-leaves-out-last-columns",
        ),
    ],
)
def test_header(tmp_path: Path, content: str) -> None:
    assert read_pairs(write(tmp_path, "a.tsv", content)).pairs == shifted(ROWS, 1)


def test_quotes_and_unicode_line_ends_are_ordinary_characters(tmp_path: Path) -> None:
    odd = 'He said "so\u2028it\x85is\x0bnot\x0cover\x1c\r here'
    assert read_pairs(write(tmp_path, "a.tsv", f'neutral\t"{odd}\t"\n')).pairs == [Pair(f'"{odd}', '"', "neutral", 1)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "keys", [("gold_label", "sentence1", "sentence2"), ("label", "premise", "hypothesis")], ids=lambda keys: keys[0]
)
def test_json_lines(tmp_path: Path, name: str, keys: tuple[str, str, str]) -> None:
    rows = [dict(zip(keys, (row.label, row.premise, row.hypothesis), strict=True)) | {"pairID": 7} for row in ROWS]
    assert read_pairs(write(tmp_path, name, "\n".join(map(json.dumps, rows)) + "\n\n")).pairs == ROWS


def test_json_lines_prefer_the_gold_label(tmp_path: Path) -> None:
    row = {"label": "x", "gold_label": "neutral", "premise": "x", "sentence1": "Two cats.", "sentence2": ""}
    assert read_pairs(write(tmp_path, "a.jsonl", json.dumps(row))).pairs == [Pair("Two cats.", "", "neutral", 1)]


def test_rows_without_a_gold_label_are_dropped_or_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "-\ta\tb\nneutral\tc\td\n-\te\tf\n")
    labelled, unlabelled = read_pairs(path), read_pairs(path, labelled=False)
    assert (labelled.pairs, labelled.dropped) == ([Pair("c", "d", "neutral", 2)], 2)
    assert unlabelled.pairs == [Pair("a", "b", None, 1), Pair("c", "d", "neutral", 2), Pair("e", "f", None, 3)]
    assert unlabelled.dropped == 0


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
def test_labels_may_be_absent(tmp_path: Path, name: str, content: str, first: Pair) -> None:
    assert read_pairs(write(tmp_path, name, content), labelled=False).pairs[0] == first


GOOD = "neutral\ta\tb\n"
GOOD_JSON = '{"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", ": expected sentence pairs, got none"),
        ("a.tsv", "\n\n", ": expected sentence pairs, got none"),
        ("a.tsv", "label\tpremise\thypothesis\n", ": expected sentence pairs, got none"),
        ("a.tsv", "-\ta\tb\n-\tc\td\n", ": expected sentence pairs, got only 2 labelled -"),
        ("a.tsv", GOOD * 16 + "neutral\ta\n", ":17: expected 3 columns, got 2"),
        ("a.tsv", GOOD + "neutral\ta\tb\tc\n", ":2: expected 3 columns, got 4"),
        ("a.tsv", "a\tb\n", ":1: expected 3 columns, got 2"),
        ("a.tsv", "label\tpremise\thypothesis\tid\nx\ta\n", ":2: expected 4 columns, got 2"),
        ("a.tsv", "label\tpremise\thypothesis\tid\nx\ta\tb\t1\t2\n", ":2: expected 4 columns, got 5"),
        ("a.tsv", "label\tsentence1\nx\ta\n", ":1: expected a column sentence2 or hypothesis in the header"),
        ("a.tsv", "premise\thypothesis\na\tb\n", ":1: expected a column gold_label or label in the header"),
        ("a.tsv", GOOD + "\n\n" + GOOD, ":2: blank line"),
        ("a.tsv", GOOD + "\ta\tb\n", ":2: empty label"),
        ("a.tsv", GOOD.encode() + b"x\ta\xff\tb\n", ":2: not valid UTF-8 at byte 4"),
        ("a.tsv", GOOD.encode("utf-16"), ":1: not valid UTF-8 at byte 1"),
        ("a.jsonl", "", ": expected sentence pairs, got none"),
        ("a.jsonl", GOOD_JSON + "{oops}\n", ":2: not valid JSON at character 2"),
        ("a.jsonl", GOOD_JSON[:20], ":1: not valid JSON at character 16"),
        ("a.jsonl", GOOD_JSON + "[1]\n", ":2: expected a JSON object"),
        ("a.jsonl", GOOD_JSON + '"gold_label"\n', ":2: expected a JSON object"),
        ("a.jsonl", GOOD_JSON + "\n" + GOOD_JSON, ":2: blank line"),
        ("a.jsonl", '{"label": "x", "premise": "a"}', ":1: expected a key sentence2 or hypothesis"),
        ("a.jsonl", '{"premise": "a", "hypothesis": "b"}', ":1: expected a key gold_label or label"),
        (
            "a.jsonl",
            '{"premise": "a", "hypothesis": "b", "label": 0}',
            ":1: label: expected a string, got int",
        ),
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
def test_bad_file(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert str(caught.value) == path + message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n", ":1: expected 2 or 3 columns, got 1"),
        ("a\tb\nx\ta\tb\n", ":2: expected 2 columns, got 3"),
        ("x\ta\tb\na\tb\n", ":2: expected 3 columns, got 2"),
        ("label\tpremise\nx\ta\n", ":1: expected a column sentence2 or hypothesis in the header"),
        ("\ta\tb\n", ":1: empty label"),
    ],
)
def test_bad_unlabelled_file(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, "a.tsv", content)
    with pytest.raises(DataError) as caught:
        read_pairs(path, labelled=False)
    assert str(caught.value) == path + message


def test_unreadable_files(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            read_pairs(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    whole = gzip.compress(TSV.encode() * 1000)
    for name, data in {
        "cut.tsv.gz": whole[: len(whole) // 2],
        "plain.tsv.gz": TSV.encode(),
        "damaged.tsv.gz": whole[:30] + bytes(20) + whole[50:],
    }.items():
        (tmp_path / name).write_bytes(data)
        assert message(tmp_path / name).startswith(f"{tmp_path / name}: ")
    assert message(tmp_path / "cut.tsv.gz").endswith("ended before the end-of-stream marker was reached")
    assert message(tmp_path / "plain.tsv.gz") == f"{tmp_path / 'plain.tsv.gz'}: Not a gzipped file (b'en')"
    assert message(tmp_path / "none.tsv") == f"{tmp_path / 'none.tsv'}: No such file or directory"
    assert message(tmp_path) == f"{tmp_path}: Is a directory"


@pytest.mark.parametrize("content", ["[" * 200_000, "9" * 10_000], ids=["deep", "long"])
def test_json_that_python_refuses(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, "a.jsonl", content)
    with pytest.raises(DataError, match=r"a\.jsonl:1: "):
        read_pairs(path)


def test_a_stream_is_parsed_as_it_arrives() -> None:
    rows = parse_pairs(io.BytesIO(b"a\tb\nc\td\te\n"), "<stdin>", form="tsv", labelled=False)
    assert next(rows) == Pair("a", "b", None, 1)
    with pytest.raises(DataError, match=r"^<stdin>:2: expected 2 columns, got 3$"):
        next(rows)


sentences = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]))


@given(st.lists(st.tuples(sentences.filter(lambda label: label not in ("", "-")), sentences, sentences), min_size=1))
def test_whatever_is_written_is_read_back(rows: list[tuple[str, str, str]]) -> None:
    tsv = "".join("\t".join(row) + "\n" for row in [("label", "premise", "hypothesis"), *rows])
    jsonl = "".join(json.dumps(dict(zip(("label", "premise", "hypothesis"), row, strict=True))) + "\n" for row in rows)
    for form, text in (("tsv", tsv), ("jsonl", jsonl)):
        pairs = parse_pairs(io.BytesIO(text.encode()), "memory", form=form)
        assert [(pair.label or "-", pair.premise, pair.hypothesis) for pair in pairs] == rows


@pytest.mark.parametrize(
    ("name", "pairs", "dropped"),
    [
        ("snli/dev.tsv.gz", 9842, 158),
        ("snli/snli_1.0_dev.jsonl.gz", 9842, 158),
        ("snli/train20k.tsv.gz", 20_000, 0),
        ("mnli/dev_matched.tsv.gz", 9815, 0),
    ],
)
def test_real_corpora(real_data: Path, name: str, pairs: int, dropped: int) -> None:
    corpus = read_pairs(real_data / name)
    assert (len(corpus.pairs), corpus.dropped) == (pairs, dropped)
    assert {pair.label for pair in corpus.pairs} == {"entailment", "neutral", "contradiction"}
    assert len(read_pairs(real_data / name, labelled=False).pairs) == pairs + dropped


def test_both_forms_of_snli_hold_the_same_examples(real_data: Path) -> None:
    tokenise = get_tokeniser()
    tsv, jsonl = (
        [(pair.label, tokenise(pair.premise), tokenise(pair.hypothesis)) for pair in read_pairs(real_data / name).pairs]
        for name in ("snli/dev.tsv.gz", "snli/snli_1.0_dev.jsonl.gz")
    )
    assert tsv == jsonl
