"""Files in other containers and encodings are read, or the error names what they are and what to do."""

import bz2
import gzip
import json
import lzma
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from esim_fast.data import BadRow, CorpusFormat, Pair, prepare, read_pairs
from tests.data.files import refusal, write, zipped

RECORDS = [{"sentence1": f"a man {i}", "sentence2": "he", "label": str(i % 2)} for i in range(30)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
PAIRS = [Pair(f"a man {i}", "he", str(i % 2), i + 1) for i in range(30)]


def read(path: Path, **options) -> list[Pair]:
    return list(read_pairs(path, **options))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.JSON", "a.json.gz"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2, ensure_ascii=False),
        "\ufeff" + json.dumps(RECORDS) + " \n\n",
        " [\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    ],
    ids=["lines", "array", "indented", "mark", "a line each"],
)
def test_json(tmp_path, name, content):
    assert read(write(tmp_path, name, content)) == PAIRS


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_lines_in_a_file_named_txt(tmp_path, mark):
    assert read(write(tmp_path, "a.txt", mark + LINES)) == PAIRS
    assert ":1: expected 3 columns" in refusal(read, write(tmp_path, "a.txt", mark + "{not json}\n" + LINES))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", None),
        ("[1, 2]", ":1: expected an object in the array, got '1'"),
        (json.dumps(RECORDS)[:-1], ":31: the file ends inside its array, or the rest is not valid JSON"),
        (json.dumps(RECORDS)[:-9], ":30: the file ends inside its array, or the rest is not valid JSON"),
        (json.dumps(RECORDS) + "[", ":31: expected the end of the file after the array"),
        (json.dumps(RECORDS[:2]).replace("}, {", "} {"), ":2: expected ',' in the array, got '{'"),
        ('[{"a": ' + "[" * 200_000, ":1: not valid JSON: "),
        ('[{"a": ' + "9" * 5000 + "}]", ":1: not valid JSON: "),
        ('[{"a": "' + "x" * 1_200_000 + '"}]', ":1: not valid JSON, or an object of more than 1000000 bytes"),
        ('[{"a": "' + "x" * 3_000_000, ":1: not valid JSON, or an object of more than 1000000 bytes"),
        (json.dumps(RECORDS[0], indent=1), ":1: not valid JSON at character 2 (expected one object per line, or a s"),
        ('[{"sentence1": "a"}, {}]', ":1: expected a key sentence2, "),
        (b'[{"a": "\xff"}]', ":1: not valid UTF-8 at byte 8"),
        (b"[\xff", ":1: expected an object in the array, got '\\udcff'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_arrays(tmp_path, content, message):
    path = write(tmp_path, "a.json", content)
    if message is None:
        assert read(path) == []
    else:
        assert refusal(read, path).startswith(f"{path}{message}")


def test_a_large_array_takes_little_memory(tmp_path):
    path = write(tmp_path, "a.json", json.dumps(RECORDS * 2_000))
    assert path.stat().st_size > 3 * 10**6
    tracemalloc.start()
    count = sum(1 for _ in read_pairs(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, peak < 3 * 10**6) == (60_000, True)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl.xz", lambda data: lzma.compress(data[:500]) + lzma.compress(data[500:]) + bytes(4)),
        ("a.jsonl.BZ2", lambda data: bz2.compress(data[:500]) + bz2.compress(data[500:])),
        ("a.jsonl.zip", lambda data: zipped({"other.jsonl": data}, zipfile.ZIP_DEFLATED)),
        ("a.zip", lambda data: zipped({"b/c.jsonl": data, "__MACOSX/b/._c.jsonl": b"x"}, zipfile.ZIP_DEFLATED)),
    ],
)
def test_compressed(tmp_path, name, pack):
    path = tmp_path / name
    packed = pack(LINES.encode())
    path.write_bytes(packed)
    assert read(path) == PAIRS
    corpus = prepare(path, "whitespace", cache=tmp_path / "cache")
    assert len(corpus) == len(prepare(path, "whitespace", cache=tmp_path / "cache")) == 30
    # Truncated or damaged files: the readable beginning is read, and the rest is reported.
    for content in (packed[: len(packed) // 2], packed[:40] + bytes(30) + packed[70:]):
        path.write_bytes(content)
        bad: list[BadRow] = []
        try:
            found = read(path, on_bad_row=bad.append)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert bad
            assert [pair[:3] for pair in found] == [pair[:3] for pair in PAIRS[: len(found)]]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "expected a zip archive of one file, got none"),
        ({"train.tsv": b"", "dev.tsv": b""}, "expected a zip archive of one file, got train.tsv, dev.tsv; unpack it"),
    ],
)
def test_archives_of_several_files(tmp_path, members, message):
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(members))
    assert f"{path}: {message}" in refusal(read, path)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.tsv", "neutral\ta\tb\n".encode("utf-16"), "UTF-16; convert it with iconv -f UTF-16 -t UTF-8 OLD > NEW"),
        ("a.tsv", "neutral\ta\tb\n".encode("utf-16-be"), "NUL characters (UTF-16 without a byte order mark?"),
        ("a.jsonl", LINES.encode("utf-32"), "UTF-32; convert it with iconv -f UTF-32 -t UTF-8 OLD > NEW"),
        ("a.csv", b"\xfe\xff" + "neutral,a,b\n".encode("utf-16-be"), "UTF-16; convert it"),
        ("a.tsv", bz2.compress(LINES.encode()), "a bzip2 file; its name should end in .bz2"),
        ("a.jsonl", lzma.compress(LINES.encode()), "an xz file; its name should end in .xz"),
        ("a.txt", zipped({"a": b"b"}), "a zip archive; its name should end in .zip"),
        ("a.csv", b"PAR1\x15\x04\x15", "a Parquet file; it must not be compressed, and"),
    ],
)
def test_files_that_are_not_text(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(read, path).startswith(f"{path}: expected text in UTF-8, got {what}")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.tsv.gz"])
@pytest.mark.parametrize("header", ["label\tpremise\thypothesis\r", ""])
def test_lines_that_end_in_carriage_returns_alone(tmp_path, name, header):
    content = header + "neutral\ta man\tb\rentailment\tc\td\r" * 3
    if name == "a.csv":
        content = content.replace("\t", ",")
    path = write(tmp_path, name, content)
    expected = f"{path}:1: lines end in carriage returns only; convert with tr '\\r' '\\n' < OLD > NEW"
    assert refusal(read, path) == expected
    assert refusal(lambda: prepare(path, skip_bad_rows=True, allow_empty=True)) == expected


def test_an_array_with_carriage_returns(tmp_path):
    content = json.dumps(RECORDS, indent=1).replace("\n", "\r\n")
    assert read(write(tmp_path, "a.json", content)) == PAIRS


@pytest.mark.parametrize(
    ("text", "encoding", "hint"),
    [("naïf", "latin-1", "CP1252"), ("He doesn’t go", "cp1252", "CP1252"), ("他在睡觉", "gbk", "GB18030")],
)
def test_encodings_that_are_guessed(tmp_path, text, encoding, hint):
    path = write(tmp_path, "a.tsv", b"label\tpremise\thypothesis\n0\t" + text.encode(encoding) + b"\tb\n")
    assert f"-f {hint}" in refusal(read, path)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_a_file_of_another_kind_gives_one_message(tmp_path, name):
    keys = ("neutral", "一个男人", "他") if name != "a.jsonl" else ("label", "context_a", "b")
    gbk = ("," if name == "a.csv" else "\t").join(keys) + "\n"
    text = json.dumps({keys[0]: "0", keys[1]: "a", keys[2]: "c"}) + "\n" if name == "a.jsonl" else gbk
    path = write(tmp_path, name, (text * 40).encode("gbk"))
    bad: list[BadRow] = []
    said = refusal(read, path, on_bad_row=bad.append, labeled=False)
    assert bad == []
    if name == "a.jsonl":
        assert f"{path}:1: expected a key sentence1" in said
        assert "--columns (40 of the first 40 rows cannot be read)" in said
    else:
        assert "(convert it with iconv -f GB18030 -t UTF-8 OLD > NEW if it is Chinese, " in said
    # A few of them are ordinary rows.
    header = "" if name == "a.jsonl" else gbk.replace(keys[0], "label").replace(keys[1], "premise")
    write(tmp_path, name, header.replace(keys[2], "hypothesis").encode() + text.encode("gbk") * 4)
    assert read(path, on_bad_row=bad.append, labeled=False) == []
    assert len(bad) == 4


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "label\tpremise\thypothesis\n-1\ta\tb\n0\tc\td\n1.0\te\t\n-1.0\t5\th\n"),
        ("a.csv", "label,premise,hypothesis\n-1,a,b\n0,c,d\n1.0,e,\n-1.0,5,h\n"),
        (
            "a.jsonl",
            '{"label": -1, "premise": "a", "hypothesis": "b"}\n{"label": 0, "premise": "c", "hypothesis": "d"}\n'
            '{"label": 1.0, "premise": "e", "hypothesis": null}\n{"label": "-1.0", "premise": 5, "hypothesis": "h"}\n',
        ),
    ],
)
def test_labels_and_sentences_that_are_numbers_or_missing(tmp_path, name, content, labeled):
    found = [pair[:3] for pair in read(write(tmp_path, name, content), labeled=labeled)]
    assert found == [("a", "b", None), ("c", "d", "0"), ("e", "", "1"), ("5", "h", None)]


@pytest.mark.parametrize("label", ["", "nan", "NaN", " "])
def test_labels_that_are_missing(tmp_path, label):
    """An error if labels are needed, otherwise ordinary pairs."""
    for name, content in (
        ("a.csv", f"label,premise,hypothesis\n{label},a,b\n"),
        ("a.tsv", f"{label}\ta\tb\n"),
        ("a.jsonl", json.dumps({"label": label, "premise": "a", "hypothesis": "b"}) + "\n"),
        ("b.jsonl", '{"label": null, "premise": "a", "hypothesis": "b"}\n'),
    ):
        path = write(tmp_path, name, content)
        assert refusal(read, path).endswith(": empty label")
        assert [pair[:3] for pair in read(path, labeled=False)] == [("a", "b", None)]


def test_names_for_labels(tmp_path):
    rows = "".join(f"{label}\ta\tb\n" for label in ("-1", "2.0", "Yes", "no", "-"))
    path = write(tmp_path, "a.tsv", "label\tpremise\thypothesis\n" + rows)
    label_map = {"-1": "against", "2": "for", "Yes": "yes", "no": "-"}
    labels = [pair.label for pair in read_pairs(path, CorpusFormat(label_map=label_map))]
    assert labels == ["against", "for", "yes", None, None]


SNLI = ["index", "captionID", "pairID", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse"]
SNLI += ["sentence2_parse", "sentence1", "sentence2"]


def test_other_labels_before_the_last_column(tmp_path):
    header = "sentence1\tsentence2\tlabel1\tlabel2\tlabel\n"
    path = write(tmp_path, "a.tsv", header + "A\tB\tx\ty\n")
    assert refusal(read, path) == f"{path}:2: expected 5 columns, got 4"


@pytest.mark.parametrize("given", [1, 5])
def test_gold_labels_after_annotators_labels(tmp_path, given):
    header = "\t".join([*SNLI, *(f"label{i + 1}" for i in range(given)), "gold_label"])
    rows = [[*map(str, range(7)), "A b.", "C.", *["neutral"] * others, "entailment"] for others in (given, 1, 5)]
    path = write(tmp_path, "train.tsv", header + "\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert [pair[:3] for pair in read(path)] == [("A b.", "C.", "entailment")] * 3
    write(tmp_path, "train.tsv", header + "\n" + "\t".join(rows[0][:-2]) + "\n")
    assert f":2: expected {9 + given + 1} columns, got" in refusal(read, path)


class TestParquet:
    """With names of classes, as Hugging Face's library writes them, and without."""

    pyarrow = pytest.importorskip("pyarrow", reason="the extra [hub] is not installed")

    def write(self, path: Path, metadata=None, **columns) -> Path:
        from pyarrow import parquet

        table = {"premise": ["a b", None, "e"], "hypothesis": ["c", "d", ""], "label": [0, -1, 1], **columns}
        parquet.write_table(self.pyarrow.table(table).replace_schema_metadata(metadata), path)
        return path

    def test_rows(self, tmp_path):
        path = self.write(tmp_path / "a.parquet", tokens=[["a"], [], None], when=[b"", b"x", None])
        assert read(path) == [Pair("a b", "c", "0", 1), Pair("", "d", None, 2), Pair("e", "", "1", 3)]
        corpus = prepare(path, "whitespace", cache=tmp_path / "cache")
        assert (corpus.label_names, corpus.unlabeled, corpus.lines.tolist()) == (["0", "1"], 1, [1, 2, 3])

    def test_names_of_classes(self, tmp_path):
        features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}, "premise": {"_type": "Value"}}
        note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        path = self.write(tmp_path / "a.parquet", note)
        assert [pair.label for pair in read(path)] == ["no", None, "yes"]
        for odd in (b"", b"[]", b'{"info": 1}', b'{"info": {"features": {"label": {"names": 3}}}}'):
            assert [pair.label for pair in read(self.write(path, {b"huggingface": odd}))] == ["0", None, "1"]

    def test_columns_of_pandas(self, tmp_path):
        pyarrow = self.pyarrow
        label = pyarrow.array(["no", "yes", "no"]).dictionary_encode()
        path = self.write(tmp_path / "a.parquet", label=label)
        assert [pair.label for pair in read(path)] == ["no", "yes", "no"]

    def test_strings_that_many_rows_share(self, tmp_path):
        rows = 1000
        path = tmp_path / "a.parquet"
        columns = {"premise": ["a" * 200_000] * rows, "hypothesis": ["b"] * rows, "label": ["0", "1"] * (rows // 2)}
        from pyarrow import parquet

        parquet.write_table(self.pyarrow.table(columns), path)
        assert path.stat().st_size < 10**6
        tracemalloc.start()
        assert sum(1 for _ in read_pairs(path)) == rows
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 10**8

    def test_mistakes(self, tmp_path, monkeypatch):
        path = self.write(tmp_path / "a.parquet")
        whole = path.read_bytes()
        for content in (b"", b"PAR1" * 3, whole[:-10], whole[:40] + bytes(40) + whole[80:]):
            path.write_bytes(content)
            assert refusal(read, path).startswith(f"{path}: not a Parquet file, or a damaged one: ")
        assert refusal(read, tmp_path / "none.parquet") == f"{tmp_path / 'none.parquet'}: No such file or directory"
        path.write_bytes(whole)
        monkeypatch.setattr("esim_fast.data.hub._LARGEST_GROUP", 10)
        assert "expected row groups of at most 10 bytes" in refusal(read, path)
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        assert refusal(read, path) == f"{path}: needs pyarrow: pip install pyarrow"
