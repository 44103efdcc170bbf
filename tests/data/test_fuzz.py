"""Corpora with damaged rows: each row is read correctly or reported with its line, whatever its neighbors are."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable

import pytest

from esim_fast.data import BadRow, CorpusFormat, DataError, Pair, prepare, read_pairs
from esim_fast.data.reading import Form, parse_pairs
from tests.data.files import damage, pairs_of

FILES, ROWS, DAMAGED = 400, 12, 7  # 2,800 damaged rows in each of four forms
WORDS = ["a", "man", "isn't", '"so"', "Ünïcode", "睡觉", "3,5", "\u2028", "", " ", "{x}", "-", "\\", "🙂", "'"]
PIECES = [b"\t", b",", b'"', b'""', b"\n", b"\r\n", b"\r", b"\0", b"-", b"\\", b"{", b"}", b" ", b'","', b"\t\t"]
PIECES += [b"null", b"\xff", b"\xef\xbb\xbf"]
PIECES += [b"\\u0000", b"\\ud800", b"\xf0\x9f", b"\x85", b"[]", b"1e999", b"\x1c", b"\xe2\x80\xa8"]
NAMES = ("label", "premise", "hypothesis")
HEADERS = {form: "\t".join(NAMES).encode() + b"\n" for form in ("tsv", "quoted-tsv")}
HEADERS |= {"csv": ",".join(NAMES).encode() + b"\n", "semicolons": ";".join(NAMES).encode() + b"\n", "json": b""}
DELIMITERS = {"csv": ",", "semicolons": ";", "tsv": "\t", "quoted-tsv": "\t"}
Row = tuple[str, str, str]


def tsv(row: Row) -> bytes:
    return "\t".join(row).encode() + b"\n"


def quoted(delimiter: str) -> Callable[[Row], bytes]:
    def write(row: Row) -> bytes:
        line = io.StringIO()
        csv.writer(line, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(row)
        return line.getvalue().encode()

    return write


def jsonl(row: Row) -> bytes:
    ascii_only = len(row[1]) % 2 == 0
    return json.dumps(dict(zip(NAMES, row, strict=True)), ensure_ascii=ascii_only).encode() + b"\n"


def draw_row(draw: random.Random) -> Row:
    label = draw.choice(["entailment", "neutral", "contradiction", "0", "-"])
    return label, *(" ".join(draw.choices(WORDS, k=draw.randrange(6))) for _ in "ph")


def as_read(row: Row) -> tuple[str, str, str | None]:
    label, premise, hypothesis = row
    return premise, hypothesis, None if label == "-" else label


def damaged_row(row: bytes, draw: random.Random) -> bytes:
    """A row with one to three random changes, which keep its line feed."""
    return damage(row.removesuffix(b"\n"), draw, PIECES) + b"\n"


def damaged_rows(write: Callable[[Row], bytes], draw: random.Random) -> list[bytes]:
    rows = [write(draw_row(draw)) for _ in range(ROWS)]
    for place in draw.sample(range(ROWS), DAMAGED):
        rows[place] = damaged_row(rows[place], draw)
    return rows


def expected_pair(line: bytes, form: str) -> tuple[str, str, str | None] | None:
    """The pair on a line of an unquoted form, or None if it is bad; an independent implementation of the rules."""
    try:
        text = line.decode().removesuffix("\n").removesuffix("\r")
        fields = text.split("\t") if form == "tsv" else [json.loads(text)[name] for name in NAMES]
    except (ValueError, KeyError, TypeError):  # not UTF-8, not JSON, a missing key, not an object
        return None
    if form == "json" and isinstance(fields[0], int):
        fields[0] = json.dumps(fields[0])
    if len(fields) != 3 or not all(isinstance(field, str) for field in fields):
        return None
    if any(character == "\0" or 0xD800 <= ord(character) < 0xE000 for character in "".join(fields)):
        return None
    label, premise, hypothesis = fields
    return as_read((label.strip(), premise, hypothesis)) if label.strip() else None


def read(content: bytes, form: str) -> tuple[list[Pair], list[BadRow]]:
    bad: list[BadRow] = []
    written: Form = {"quoted-tsv": "tsv", "semicolons": "csv"}.get(form, form)  # type: ignore[assignment]
    corpus_format = CorpusFormat(quoted=form == "quoted-tsv", delimiter=DELIMITERS.get(form))
    lines = io.BytesIO(content)
    pairs = list(parse_pairs(lines, "memory", corpus_format, form=written, labeled=True, on_bad_row=bad.append))
    return pairs, bad


def named_lines(bad: list[BadRow]) -> list[int]:
    """The reported lines, with every one of several blank lines."""
    several = {row.line: int(row.reason.split()[0]) for row in bad if row.reason.endswith(" blank lines")}
    return sorted(row.line + more for row in bad for more in range(several.get(row.line, 1)))


@pytest.mark.parametrize("form", ["tsv", "json"])
def test_a_row_a_line(form):
    draw = random.Random(form)
    write = {"tsv": tsv, "json": jsonl}[form]
    reported = 0
    for _ in range(FILES):
        content = HEADERS[form] + b"".join(damaged_rows(write, draw))
        lines = content.split(b"\n")
        while lines and not lines[-1].rstrip(b"\r"):
            del lines[-1]  # a file may end with blank lines
        first = 0 if form == "json" else 1
        expected = {number: expected_pair(line, form) for number, line in enumerate(lines[first:], start=first + 1)}
        if form == "json" and lines and lines[0].startswith(b"\xef\xbb\xbf"):
            expected[1] = expected_pair(lines[0][3:], form)
        pairs, bad = read(content, form)
        assert {pair.line: pair[:3] for pair in pairs} == {n: pair for n, pair in expected.items() if pair}, content
        assert named_lines(bad) == [n for n, pair in expected.items() if not pair], content
        assert all(row.reason and "\n" not in row.reason for row in bad)
        reported += len(bad)
        if bad:
            with pytest.raises(DataError, match=rf"^memory:{bad[0].line}: "):
                list(parse_pairs(io.BytesIO(content), "memory", CorpusFormat(), form=form, labeled=True))  # type: ignore[arg-type]
    assert reported > FILES  # otherwise nothing was damaged


@pytest.mark.parametrize("form", ["csv", "quoted-tsv", "semicolons"])
def test_rows_of_several_lines(form):
    """A damaged quote may hide the rows after it, but they are reported or part of a reported row."""
    draw = random.Random(form)
    delimiter = DELIMITERS[form]
    write = quoted(delimiter)
    for _ in range(FILES):
        rows = [draw_row(draw) for _ in range(ROWS)]
        written = [write(row) for row in rows]
        damaged = set(draw.sample(range(ROWS), DAMAGED))
        content, begins, line = HEADERS[form], [], 2
        for place, row in enumerate(written):
            row = damaged_row(row, draw) if place in damaged else row
            begins.append(line)
            line += row.count(b"\n")
            content += row
        pairs, bad = read(content, form)
        at = {pair.line: pair for pair in pairs}
        named = set(named_lines(bad))
        assert not at.keys() & named
        reasons = {row.line: row.reason for row in bad}
        blank_end = len(content[: len(content.rstrip(b"\r\n"))].split(b"\n"))
        lines = content.split(b"\n")
        for place, (begin, row) in enumerate(zip(begins, rows, strict=True)):
            if place in damaged:
                continue
            if begin in at:
                assert at[begin][:3] == as_read(row), content
            elif begin not in named:
                # Then it is inside another row, whose quotes contain its line break.
                before = max(number for number in {*at, *named} if number < begin)
                assert before in at or "invalid quoting" in reasons[before], content
                assert b'"' in b"\n".join(lines[before - 1 : begin]), content
                assert begin <= blank_end, content
        for number, pair in at.items():  # a strict parser's result from that line on
            following = b"\n".join(lines[number - 1 :]).decode(errors="surrogateescape")
            label, premise, hypothesis = next(
                csv.reader(io.StringIO(following, newline=""), delimiter=delimiter, strict=True)
            )
            assert pair[:3] == as_read((label.strip(), premise, hypothesis)), content


def test_damaged_arrays(tmp_path):
    """In a JSON array, the objects before the damage are read correctly, and all skipped ones are reported."""
    draw = random.Random(0)
    path = tmp_path / "a.json"
    reported = 0
    for _ in range(FILES):
        rows = [draw_row(draw) for _ in range(ROWS)]
        objects = [json.dumps(dict(zip(NAMES, row, strict=True)), indent=draw.choice([None, 1])) for row in rows]
        place = draw.randrange(ROWS)
        begin = ("[" + ",\n".join(objects[:place])).encode()
        rest = (
            ("," if place else "") + objects[place] + "," * (place < ROWS - 1) + ",".join(objects[place + 1 :]) + "]"
        ).encode()
        path.write_bytes(begin + damage(rest, draw, PIECES))
        bad: list[BadRow] = []
        try:
            pairs = list(read_pairs(path, on_bad_row=bad.append))
        except DataError as error:  # the damage is at the start of the file, or leaves no row
            assert str(error).startswith(str(path))  # noqa: PT017
            continue
        found = {pair.line: pair[:3] for pair in pairs}
        # The damage may change where the previous object ends, because that depends on the text between them.
        for number in range(1, place):
            assert found[number] == as_read(rows[number - 1]), path.read_bytes()
        assert sorted([*found, *(row.line for row in bad)]) == list(range(1, len(found) + len(bad) + 1))
        reported += len(bad)
    assert reported > FILES / 3


def test_damaged_archives(tmp_path):
    """A gzip file with damaged bytes gives a beginning of its content, and the rest is reported."""
    draw = random.Random(0)
    rows = [draw_row(draw) for _ in range(300)]
    whole = gzip.compress(b"".join(map(tsv, rows)))
    expected = [as_read(row) for row in rows]
    path = tmp_path / "a.tsv.gz"
    for _ in range(FILES):
        content = bytearray(whole)
        if draw.random() < 0.5:
            del content[draw.randrange(1, len(content)) :]
        else:
            content[draw.randrange(10, len(content) - 8)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        bad: list[BadRow] = []
        try:
            pairs = list(read_pairs(path, on_bad_row=bad.append))
        except DataError as error:  # not even the first row can be read
            assert str(error).startswith(f"{path}:1: ")  # noqa: PT017
            continue
        assert bad, "damage passed unnoticed"
        if len(content) < len(whole):  # a flipped bit may change rows, which only the final checksum reveals
            assert [pair[:3] for pair in pairs] == expected[: len(pairs)]


@pytest.mark.parametrize("form", ["tsv", "csv", "quoted-tsv", "semicolons"])
def test_damaged_headers(form):
    """Either the header is rejected, or the rows after it are read as usual."""
    draw = random.Random(form)
    write = tsv if form == "tsv" else quoted(DELIMITERS[form])
    refused = 0
    for _ in range(FILES):
        rows = [draw_row(draw) for _ in range(3)]
        header = damaged_row(HEADERS[form], draw)
        content = header + b"".join(map(write, rows))
        expected = [as_read(row) for row in rows]
        try:
            pairs, bad = read(content, form)
        except DataError as error:
            refused += 1
            assert str(error).startswith("memory:1: ")  # noqa: PT017
        else:
            at = {pair.line: pair[:3] for pair in pairs}
            for number, pair in enumerate(expected, start=header.count(b"\n") + 1):
                assert at.get(number, pair) == pair, content
                assert number in at or number in named_lines(bad), content
    assert FILES > refused > FILES / 2


@pytest.mark.parametrize(("name", "write"), [("a.tsv", tsv), ("a.jsonl", jsonl), ("a.csv", quoted(","))])
def test_prepared_corpora_match_reading(tmp_path, name, write):
    draw = random.Random(name)
    path = tmp_path / name
    for _ in range(30):
        header = b"" if path.suffix == ".jsonl" else HEADERS[path.suffix[1:]]
        path.write_bytes(header + b"".join(damaged_rows(write, draw)))
        bad: list[BadRow] = []
        pairs = [
            (p.split(), h.split(), label, line) for p, h, label, line, _ in read_pairs(path, on_bad_row=bad.append)
        ]
        corpus = prepare(path, str.split, skip_bad_rows=True, allow_empty=True)
        assert corpus.bad_rows == bad
        assert pairs_of(corpus) == pairs
