"""Bad vectors: their error messages, and reading the rows around them."""

import gzip
import random
import zlib
from functools import partial

import numpy as np
import pytest
import torch

from esim_fast.data import BadRow, DataError, load_vectors, vector_files, words_with_vector
from esim_fast.data import vectors as vectors_module
from tests.data.files import compressed, refusal, vocabulary_of, write, zipped
from tests.data.vectors import NONE, REMEDY, ROWS, THREE, VOCABULARY, as_binary, as_text, saved, write_npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, save):
    """Any wrong byte is an error, unless it does not concern the vectors."""
    whole = saved(save, words=np.array(["the", "Cat"]), vectors=np.array([[1, 2], [3, 0.5]], dtype=np.float32))
    path = write(tmp_path, "v.npz", whole)
    expected, errors = load_vectors(path, VOCABULARY).matrix, 0
    for place in range(len(whole)):
        for other in (whole[place] ^ 1, whole[place] ^ 255):
            path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            try:
                assert torch.equal(load_vectors(path, VOCABULARY).matrix, expected)
            except DataError as error:
                assert "\n" not in str(error)  # noqa: PT017 (not every byte raises)
                errors += 1
    assert errors > len(whole) // 2
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(load_vectors, path, VOCABULARY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", NONE),
        ("of 1 2\n", NONE),
        (f"{'9' * 5000} {'9' * 5000}\n", NONE),
        # The first line, which defines the rows.
        ("the\n", ":1: expected a word and its vector"),
        ("\n", ":1: expected a word and its vector"),
        ("3 0\nthe 1\n", ":1: expected a word and its vector"),
        ("3\t0\nthe 1\n", ":1: expected a word and its vector"),
        ("label\tpremise\thypothesis\n", ":1: expected a word and its vector"),
        ("\0 1 2\nunneeded 1 \0\n", ":1: NUL byte"),
        (bytes(5000), ":1: NUL byte"),
        ((2**20 + 1) * "\0", ":1: expected a line break within 1048576 bytes, got none"),
        ((2**22 + 1) * "x", ":1: expected a line break within 1048576 bytes, got none"),
        ("4 1000000000000\n" + ROWS, ":1: expected at most 10000 numbers in a row, got 1000000000000"),
        ("the" + 10_001 * " 1", ":1: expected at most 10000 numbers in a row, got 10001"),
        ("the\t1" + 10_000 * " 1", ":1: expected at most 10000 numbers in a row, got 10001"),
        # Where reading cannot continue.
        (ROWS + (2**20 + 1) * "x", ":4: expected a line break within 1048576 bytes, got none"),
        (ROWS + (2**22 + 1) * "x" + "\nof 1\n", ":4: expected a line break within 1048576 bytes, got none"),
        (ROWS + "\n\n" + (2**20 + 1) * "x", ":6: expected a line break within 1048576 bytes, got none"),
        ("3 3\n" + (2**20 + 1) * "x", ":2: expected a line break within 1048576 bytes, got none"),
    ],
)
@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
@pytest.mark.usefixtures("both_ways")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_text_of_vectors(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    assert refusal(load_vectors, path, VOCABULARY) == f"{path}{message}"
    assert refusal(load_vectors, path, VOCABULARY, on_bad_row=print) == f"{path}{message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the 1 2 3\nunneeded 1 2\n", "2: expected 3 numbers, got 2"),
        ("the 1 2 3\nunneeded 1 2  \n", "2: expected 3 numbers, got 2"),
        ("the 1 2 3\nunneeded 1 2\t \t\n", "2: expected 3 numbers, got 2"),
        ("the 1 2 3\nunneeded 1 2 \r\n", "2: expected 3 numbers, got 2"),
        ("the 1 2 3\nunneeded 1 2", "2: expected 3 numbers, got 2"),
        ("the 1 2 3\n1 2 3\ncat 1 2 3\n", "2: expected 3 numbers, got 2 (is the word missing?)"),
        ("the 1 2 3\n 1 2\ncat 1 2 3\n", "2: expected 3 numbers, got 2"),
        ("the 1 2 3\n7 2\ncat 1 2 3\n", "2: expected 3 numbers, got 1"),
        (ROWS + "cat 1 2\nof 1 1 1\n", "4: expected 3 numbers, got 2"),
        ("4 3\n" + ROWS + "cat x 2 3\n", "5: expected a finite number, got 'x'"),
        (f"\ufeff4 3\n{ROWS}cat 1 2 3 4", "5: expected 3 numbers, got 4"),
        (ROWS.replace("\n", "\r\n") + "of 1 2 \0\r\nof 1 1 1", "4: NUL byte"),
        ("the 1 2\nunneeded 1 \0\n", "2: NUL byte"),
        ("the 1 2 3\n\ncat 1 2 3\n", "2: expected 3 numbers, got 0"),
        ("the 1 2 3\n \t\r\ncat 1 2 3\n\n", "2: expected 3 numbers, got 0"),
        ("the 1 2 3\ncat 1 2 3 4\n", "2: expected 3 numbers, got 4"),
        ("3 3\nof 1 x 3\nthe 1 2\nthe 1 1 1", "3: expected 3 numbers, got 2"),
        ("the 1 2 3\ncat 1 x 3\n", "2: expected a finite number, got 'x'"),
        ("the 1 2 3\ncat 1  3\n", "2: expected a finite number, got ''"),
        ("the 1 2 3\ncat 1 2 nan\n", "2: expected a finite number, got 'nan'"),
        ("the 1 2 3\nCat 1 -inf 2\n", "2: expected a finite number, got '-inf'"),
        ("the 1 2 3\ncat 1 1e39 2\n", "2: expected a finite number, got '1e39'"),
        (b"the 1 \xff\nusa 1 2", "1: expected a finite number, got '\ufffd'"),
        (f"the {'9' * 5000}\nusa 1", f"1: expected a finite number, got '{'9' * 40}'"),
        # With a tab after the word.
        ("the\t1 2 3\ncat\t1 2\n", "2: expected 3 numbers, got 2"),
        ("the\t1 2 3\ncat\t1 2 3 4\n", "2: expected 3 numbers, got 4"),
        ("the\t1\t2\t3\ncat\t1\tx\t3\n", "2: expected a finite number, got 'x'"),
        ("the\t1 2 3\nroute 66\t1 2\nroute 66\t1 2 3\n", "2: expected 3 numbers, got 2"),
        ("the\t1 2\ncat 1 2\n", "2: expected a tab after the word, got none"),
        ("the\t1 2\nthe cat 1 2\n", "2: expected a tab after the word, got none"),
        ("3\t3\nthe\t1 2 3\ncat 1 2\t3\nof\t1 1 1", "3: expected 3 numbers, got 1"),
        ("the\t1 2 3\n1\t2 3\nof\t1 1 1", "2: expected 3 numbers, got 2 (is the word missing?)"),
        ("the\t1 2 3\n\ncat\t1 2 3\n", "2: expected 3 numbers, got 0"),
        ("the\t1 2 3\ncat\t\ncat\t1 2 3\n", "2: expected a tab after the word, got none"),
        # Fewer or more rows than the first line declares.
        ("2 3\n" + ROWS, "5: expected 2 rows, as line 1 says, but the file ends after 3"),
        ("4 3\n" + ROWS, "5: expected 4 rows, as line 1 says, but the file ends after 3"),
        ("4 3\n" + ROWS + "\n \n", "5: expected 4 rows, as line 1 says, but the file ends after 3"),
        ("999999999999999999 3\nthe 1 2 3\n", "3: expected 999999999999999999 rows, as line 1 says, but the file ends"),
    ],
)
@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
@pytest.mark.usefixtures("both_ways")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_bad_rows_of_text(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    said = refusal(load_vectors, path, VOCABULARY)
    assert said.startswith(f"{path}:{message}")
    assert said.endswith(REMEDY)
    bad: list[BadRow] = []
    assert load_vectors(path, VOCABULARY, on_bad_row=bad.append).found > 0
    assert f"{path}:{bad[0].line}: {bad[0].reason}{REMEDY}" == said
    assert bad[1:] == [row for row in bad[1:] if "as line 1 says" in row.reason]


BAD_ROWS = {
    "of 1 2": "expected 3 numbers, got 2",
    "w7 1 2": "expected 3 numbers, got 2",
    "w8 1 2 3 4": "expected 3 numbers, got 4",
    "w9 1 x 3": "expected a finite number, got 'x'",
    "w9 inf 2 3": "expected a finite number, got 'inf'",
    "0.1 2 3": "expected 3 numbers, got 2 (is the word missing?)",
    "of 1 \0 3": "NUL byte",
    "": "expected 3 numbers, got 0",
    " \t\r": "expected 3 numbers, got 0",
}


class TestLeavingOut:
    """With ``on_bad_row``, bad rows are reported and skipped, and the others are read as usual."""

    @pytest.mark.usefixtures("both_ways")
    @pytest.mark.parametrize("tab", [False, True])
    @pytest.mark.parametrize("header", [False, True])
    def test_anywhere(self, tmp_path, monkeypatch, tab, header):
        """Single bad rows and groups of them between good ones, wherever the file is cut."""
        draw = random.Random(f"{tab}{header}")
        vocabulary = vocabulary_of(*(f"w{number}" for number in range(10)))
        for _ in range(60):
            monkeypatch.setattr(vector_files, "_RANGE", draw.randrange(1, 60))
            monkeypatch.setattr(vector_files, "_BLOCK", draw.randrange(1, 60))
            rows = [f"w{place % 10} {place} -1 0.5" for place in range(20)]
            expected = []
            for place in range(1, 19):
                if draw.random() < draw.choice([0.1, 0.6]):
                    rows[place] = draw.choice([*BAD_ROWS])
                    expected.append(BadRow(place + 1 + header, BAD_ROWS[rows[place]]))
            good = [row for row in rows if row not in BAD_ROWS]
            if tab:
                rows, good = ([row.replace(" ", "\t", 1) for row in each] for each in (rows, good))
            first, end = f"{len(rows)} 3\n" if header else "", draw.choice(["", "\n", "\n\n", "\n \n\n"])
            found: list[BadRow] = []
            path = write(tmp_path, "v.txt", first + "\n".join(rows) + end)
            result = load_vectors(path, vocabulary, on_bad_row=found.append)
            assert found == expected
            without = load_vectors(write(tmp_path, "good.txt", "\n".join(good)), vocabulary)
            assert torch.equal(result.matrix, without.matrix)
            assert result.found == without.found

    @pytest.mark.parametrize("cached", [False, True])
    def test_second_time(self, tmp_path, cached):
        """The cache reports the same rows, and raises without ``on_bad_row``."""
        path, cache = write(tmp_path, "v.txt", "5 3\n" + ROWS + "of 1\n"), tmp_path / "cache" if cached else None
        rows = [BadRow(5, "expected 3 numbers, got 1")]
        rows.append(BadRow(6, "expected 5 rows, as line 1 says, but the file ends after 4"))
        for _ in range(2):
            for read in (partial(load_vectors, path, VOCABULARY), partial(words_with_vector, path, ["cat", "none"])):
                assert refusal(read, cache=cache) == f"{path}:5: expected 3 numbers, got 1{REMEDY}"
                found: list[BadRow] = []
                read(cache=cache, on_bad_row=found.append)
                assert found == rows
        assert len(list(tmp_path.glob("cache/*.safetensors"))) == 2 * cached
        path.write_text("4 3\n" + ROWS + "of 1 2 3\n")
        assert load_vectors(path, VOCABULARY, cache=cache).found == 2

    def test_none_is_left(self, tmp_path):
        path = write(tmp_path, "v.txt", "of 1 2\nof 1 2 3\nthe 1 2 3\ncat 1 2 3\n")
        found: list[BadRow] = []
        said = refusal(load_vectors, path, VOCABULARY, on_bad_row=found.append)
        assert said == f"{path}{NONE} that can be read; line 3: expected 2 numbers, got 3"
        assert [row.line for row in found] == [3, 4]

    @pytest.mark.usefixtures("both_ways")
    @pytest.mark.parametrize("line", ["of", "the x", ""])
    def test_too_many(self, tmp_path, monkeypatch, line):
        monkeypatch.setattr(vectors_module, "_MOST_BAD_ROWS", 5)
        content = "usa 1\nthe 2\n" + 5 * f"{line}\n" + "cat 3\n"
        found: list[BadRow] = []
        assert load_vectors(write(tmp_path, "v.txt", content), VOCABULARY, on_bad_row=found.append).found == 3
        assert [row.line for row in found] == [3, 4, 5, 6, 7]
        path = write(tmp_path, "v.txt", content.replace("the 2\n", f"{line}\n"))
        said = refusal(load_vectors, path, VOCABULARY, on_bad_row=found.append)
        assert said == f"{path}:7: {found[0].reason}, and 5 rows before it are bad as well"

    def test_reading_stops_after_too_many(self):
        """Workers also stop, because their results would fill the memory."""
        read: list[int] = []
        blocks = (read.append(number) or b"the\n" * 100 for number in range(1000))
        layout = vector_files._Layout(None, 3, b" ", 0)
        found = list(vector_files._scan(blocks, {}, set(), layout, most_bad=250))
        assert len(read) == 3
        assert sum(len(part.bad_rows) for part in found) == 300


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("ending", ["", "\n", "\nof 1\n"])
def test_longest_line(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(vector_files, "_BLOCK", 16)
    monkeypatch.setattr(vector_files, "_LONGEST_LINE", 50)
    for before in range(20):
        first = f"the {'1':0>{1 + before}}\n"
        assert load_vectors(write(tmp_path, "v.txt", f"{first}cat {'5':0>46}{ending}"), VOCABULARY).matrix[3] == 5
        path = write(tmp_path, "v.txt", f"{first}cat {'5':0>47}{ending}")
        assert refusal(load_vectors, path, VOCABULARY) == f"{path}:2: expected a line break within 50 bytes, got none"


@pytest.mark.parametrize("name", ["v.txt", "v.bin"])
def test_truncated_gzip(tmp_path, name):
    """The message names the line or row after the last one that could be read."""
    noise = np.random.default_rng(0).normal(size=(3000, 3)).astype(np.float32)
    rows = [(f"w{i:04}", row) for i, row in enumerate(noise)]
    whole = gzip.compress(as_text(rows) if name == "v.txt" else as_binary(rows))
    path = tmp_path / f"{name}.gz"
    for length in (len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        readable = zlib.decompressobj(31).decompress(whole[:length])
        where = f":{readable.count(10) + 1}" if name == "v.txt" else f": row {(len(readable) - 7) // 18 + 1}"
        ending = "Compressed file ended before the end-of-stream marker was reached"
        assert refusal(load_vectors, path, VOCABULARY) == f"{path}{where}: {ending}"


def with_counts(line: str) -> bytes:
    return as_binary(THREE).replace(b"3 2", line.encode())


COUNTS = "1: expected the number of rows and of numbers per row, got"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # The first line.
        (b"", f":{COUNTS} ''"),
        (b"1 2", f":{COUNTS} '1 2'"),
        (b"the 1 x\n", f":{COUNTS} 'the 1 x'"),
        (b"1 -2\n", f":{COUNTS} '1 -2'"),
        (b"\xba\x16O?\n", f":{COUNTS} '\ufffd\\x16O?'"),
        (b"9" * 3000, f":{COUNTS} '{'9' * 100}'"),
        (b"1 " + b"9" * 30 + b"\n", f":{COUNTS} '1 {'9' * 30}'"),
        (b"9" * 30 + b" 1\n", f":{COUNTS} '{'9' * 30} 1'"),
        (b"1 0\nthe ", ":1: expected 1 to 10000 numbers in a row, got 0"),
        (b"1 1000000000000\nthe ", ":1: expected 1 to 10000 numbers in a row, got 1000000000000"),
        # Another number of rows than it declares.
        (with_counts("2 2"), ": expected 2 rows, as line 1 says, got more"),
        (with_counts("0 2"), ": expected 0 rows, as line 1 says, got more"),
        (as_binary(THREE) + b"\n\n", ": expected 3 rows, as line 1 says, got more"),
        (as_binary(THREE) + b"x", ": expected 3 rows, as line 1 says, got more"),
        # Words and numbers.
        (as_binary([*THREE, ("x" * 2002, np.zeros(2))]), ": row 4: expected a word of at most 2000 bytes"),
        (b"9 1\n" + bytes(400_000), ": row 1: expected a word of at most 2000 bytes"),
        (as_binary([("of", np.zeros(1))]), NONE),
        (b"0 1\n", NONE),
    ],
)
@pytest.mark.parametrize("name", ["v.bin", "v.bin.gz"])
def test_bad_binary(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    assert refusal(load_vectors, path, VOCABULARY) == f"{path}{message}"
    assert refusal(load_vectors, path, VOCABULARY, on_bad_row=print) == f"{path}{message}"


HERE = "rows, as line 1 says, but the file ends here"


@pytest.mark.parametrize(
    ("content", "message", "found"),
    [
        (with_counts("4 2"), f"4: expected 4 {HERE}", 2),
        (with_counts("999999999999999999 2"), f"4: expected 999999999999999999 {HERE}", 2),
        (as_binary(THREE)[:-1], f"3: expected 3 {HERE}", 1),
        (with_counts("3 3"), f"2: expected 3 {HERE}", 1),
        (as_binary([*THREE, ("Cat", np.array([np.nan, 1]))]), "4: expected finite numbers, got others for 'Cat'", 2),
        (as_binary([("CAT", np.array([1, -np.inf])), *THREE]), "1: expected finite numbers, got others for 'CAT'", 2),
        (as_binary([("the", np.array([np.nan, 1])), *THREE]), "1: expected finite numbers, got others for 'the'", 2),
    ],
)
@pytest.mark.parametrize("name", ["v.bin", "v.bin.gz", "v.BIN.bz2", "v.bin.xz", "v.bin.zip"])
def test_bad_rows_of_binary(tmp_path, name, content, message, found):
    path = write(tmp_path, name, content)
    assert refusal(load_vectors, path, VOCABULARY) == f"{path}:{message}{REMEDY}"
    bad: list[BadRow] = []
    result = load_vectors(path, VOCABULARY, on_bad_row=bad.append)
    assert [f"{row.line}: {row.reason}" for row in bad] == [message]
    assert result.found == found
    assert result.matrix[2, :2].tolist() == [1, 2]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("name", "whole", "last"),
    [
        # Missing digits of the last number and a missing final line feed cannot be noticed.
        pytest.param("v.txt", f"3 3\n{ROWS}".encode(), 2, id="text"),
        *((name, compressed(name, f"3 3\n{ROWS}".encode()), 0) for name in ("v.txt.gz", "v.bz2", "v.vec.xz", "v.zip")),
        *((name, compressed(name, as_binary(THREE)), 0) for name in ("v.bin.gz", "v.bin.bz2", "v.bin.xz", "v.bin.zip")),
        pytest.param("v.bin", as_binary(THREE), 0, id="gensim"),
        pytest.param("v.bin", as_binary(THREE, b"\n"), 1, id="word2vec"),
    ],
)
def test_cut_off_anywhere(tmp_path, name, whole, last):
    path = tmp_path / name
    for length in range(len(whole) - last):
        path.write_bytes(whole[:length])
        assert refusal(load_vectors, path, VOCABULARY).startswith(str(path))
    path.write_bytes(whole.removesuffix(b"\n"))
    assert load_vectors(path, VOCABULARY).found == 2


WORDS, NUMBERS = np.array(["the", "cat"]), np.ones((2, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"words": WORDS}, "expected the arrays words and vectors, got words"),
        ({}, "expected the arrays words and vectors, got none"),
        ({"words": WORDS, "vectors": NUMBERS[:1]}, "got words [2] <U3 and vectors [1, 3] float32"),
        ({"words": WORDS, "vectors": NUMBERS[0]}, "got words [2] <U3 and vectors [3] float32"),
        ({"words": WORDS, "vectors": NUMBERS[:, :0]}, "got words [2] <U3 and vectors [2, 0] float32"),
        ({"words": WORDS, "vectors": NUMBERS.astype(int)}, "got words [2] <U3 and vectors [2, 3] int64"),
        ({"words": np.arange(2), "vectors": NUMBERS}, "got words [2] int64 and vectors [2, 3] float32"),
        ({"words": WORDS.astype(object), "vectors": NUMBERS}, "expected an .npz archive of plain arrays"),
        ({"words": np.array(["of", "or"]), "vectors": NUMBERS}, NONE),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    path = write_npz(tmp_path, **arrays)
    said = refusal(load_vectors, path, VOCABULARY)
    assert said.startswith(f"{path}: ")
    assert said.endswith(message)


def test_bad_rows_of_npz(tmp_path):
    numbers = np.array([[1, 2], [3, np.inf], [4, 5], [np.nan, 6]], dtype=np.float32)
    path = write_npz(tmp_path, words=np.array(["the", "Cat", "usa", "of"]), vectors=numbers)
    message = "2: expected finite numbers, got others for 'Cat'"
    assert refusal(load_vectors, path, VOCABULARY) == f"{path}:{message}{REMEDY}"
    bad: list[BadRow] = []
    result = load_vectors(path, VOCABULARY, on_bad_row=bad.append)
    assert [f"{row.line}: {row.reason}" for row in bad] == [message]
    assert (result.found, result.matrix[[2, 5]].tolist()) == (2, [[1, 2], [4, 5]])


COMPRESSED = saved(np.savez_compressed, words=np.array(["the"]), vectors=np.random.default_rng(0).random((1, 500)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"the 1 2 3\n",
        b"PK\x03\x04",
        saved(np.save, NUMBERS),
        COMPRESSED[: len(COMPRESSED) // 2],
        COMPRESSED[:700] + bytes(60) + COMPRESSED[760:],
        # More words or numbers than their headers declare.
        zipped({"words.npy": saved(np.save, WORDS) + b"x", "vectors.npy": saved(np.save, NUMBERS)}),
        zipped({"words.npy": saved(np.save, WORDS), "vectors.npy": saved(np.save, NUMBERS) + b"x"}),
    ],
    ids=range(8),
)
def test_not_an_npz(tmp_path, content):
    path = write(tmp_path, "v.npz", content)
    assert refusal(load_vectors, path, VOCABULARY) == f"{path}: expected an .npz archive of plain arrays"


@pytest.mark.parametrize("name", ["none.txt", "none.txt.gz", "none.bin", "none.npz"])
def test_missing_file(tmp_path, name):
    assert refusal(load_vectors, tmp_path / name, VOCABULARY) == f"{tmp_path / name}: No such file or directory"


def test_not_gzip(tmp_path):
    path = tmp_path / "v.txt.gz"
    path.write_text(ROWS)
    assert refusal(load_vectors, path, VOCABULARY) == f"{path}:1: Not a gzipped file (b'th')"
    path.write_bytes(b"\x1f\x8b\x08\x08" + b"x" * 100_000)  # a name that never ends
    assert refusal(load_vectors, path, VOCABULARY).startswith(f"{path}:1: ")
