"""Files of word vectors in every form: what is read, and what is said about files that are wrong."""

import gzip
import io
import os
import signal
import threading
import zipfile
import zlib

import numpy as np
import pytest
import torch

from esim_fast.data import PADDING_ID, DataError, Vocabulary, load_vectors, vector_files
from tests.data.vector_rows import ROWS, VOCABULARY, as_binary, as_text, write, write_npz


@pytest.fixture(params=["in one piece", "in ranges"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is read as a whole, as small files are, or cut up for several processes, as large ones: here into pieces of
    a line or two, which are read by this process."""
    if request.param == "in ranges":
        monkeypatch.setattr(vector_files, "processors", lambda: 3)
        monkeypatch.setattr(vector_files, "_RANGE", 8)
        here = lambda function, ranges, workers: (function(each, lambda: False) for each in ranges)  # noqa: E731
        monkeypatch.setattr(vector_files, "map_in_processes", here)
    else:
        monkeypatch.setattr(vector_files, "processors", lambda: 1)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz", "word2vec.vec"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(ROWS, id="glove"),
        pytest.param("3 3\n" + ROWS, id="word2vec"),
        pytest.param(ROWS.replace("\n", " \n"), id="spaces-at-line-ends"),
        pytest.param(ROWS.replace("\n", "\r\n"), id="crlf"),
        pytest.param(ROWS.removesuffix("\n"), id="no-final-line-feed"),
        pytest.param(ROWS + ". . . 7 7 7\nthe end 8 8 8\nat nan@domain.com 9 9 9\n", id="words-with-spaces"),
        pytest.param(ROWS + "the 7 7 7\n", id="first-of-two"),
        pytest.param("\ufeff" + ROWS, id="byte-order-mark"),
        pytest.param("\ufeff3 3\n" + ROWS, id="byte-order-mark-and-header"),
        pytest.param("3 3 \r\n" + ROWS, id="header-with-spaces-and-crlf"),
        pytest.param(ROWS.encode() + b"\xff\x85\xe3\x80\x80 7 7 7\nof 1 x nan\n", id="rows-not-needed"),
    ],
)
def test_text(tmp_path, name, content):
    _, vectors, found = load_vectors(write(tmp_path, name, content), VOCABULARY)
    assert vectors.shape == (7, 3)
    assert vectors.dtype == torch.float32
    assert found == 2
    assert vectors[2].tolist() == [1, 2, 3]
    assert torch.equal(vectors[3], torch.tensor([-0.1, 0.5, 4]))
    assert vectors[PADDING_ID].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_npz(tmp_path, dtype):
    path = write_npz(
        tmp_path, words=np.array(["of", "the", "cat"]), vectors=np.array([[9, 9], [1, 2], [3, 0.5]], dtype=dtype)
    )
    _, vectors, found = load_vectors(path, VOCABULARY)
    assert vectors.shape == (7, 2)
    assert vectors.dtype == torch.float32
    assert found == 2
    assert vectors[2:4].tolist() == [[1, 2], [3, 0.5]]
    assert vectors[PADDING_ID].tolist() == [0, 0]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_across_blocks(tmp_path, save, order):
    words = np.array([f"w{i}" for i in range(5000)] + ["x" * 100])
    vectors = np.random.default_rng(0).normal(size=(5001, 50)).astype(np.float32, order=order)
    save(tmp_path / "v.npz", more=np.array([None]), vectors=vectors, words=words)
    result = load_vectors(tmp_path / "v.npz", Vocabulary(["<unk>", "<pad>", *words[::-1].tolist()]))
    assert result.found == 5001
    np.testing.assert_array_equal(result.matrix[2:], vectors[::-1])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, save):
    """Whichever byte is wrong: an error, or a byte that says nothing of the vectors."""
    path = tmp_path / "v.npz"
    save(path, words=np.array(["the", "Cat"]), vectors=np.array([[1, 2], [3, 0.5]], dtype=np.float32))
    whole, expected = path.read_bytes(), load_vectors(path, VOCABULARY).matrix
    errors = 0
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
        with pytest.raises(DataError):
            load_vectors(path, VOCABULARY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": expected vectors of the vocabulary's words, got none of 5"),
        ("of 1 2\n", ": expected vectors of the vocabulary's words, got none of 5"),
        ("the\n", ":1: expected a word and its vector"),
        ("3 0\nthe 1\n", ":1: expected a word and its vector"),
        ("label\tpremise\thypothesis\n", ":1: expected a word and its vector"),
        ("the 1 2 3\ncat 1 2\n", ":2: expected 3 numbers, got 2"),
        ("the 1 2 3\nunneeded 1 2\n", ":2: expected 3 numbers, got 2"),
        (ROWS + "cat 1 2\nof 1\n\0\n", ":4: expected 3 numbers, got 2"),
        ("4 3\n" + ROWS + "cat x 2 3\n", ":5: expected a finite number, got 'x'"),
        (f"\ufeff4 3\n{ROWS}cat 1 2 3 4", ":5: expected 3 numbers, got 4"),
        (ROWS.replace("\n", "\r\n") + "of 1 2 \0\r\nof", ":4: NUL byte"),
        ("the 1 2 3\n\ncat 1 2 3\n", ":2: expected 3 numbers, got 0"),
        ("the 1 2 3\ncat 1 2 3 4\n", ":2: expected 3 numbers, got 4"),
        ("2 300\nthe 1 2 3\n", ":2: expected 300 numbers, got 3"),
        ("the 1 2 3\ncat 1 x 3\n", ":2: expected a finite number, got 'x'"),
        ("the 1 2 3\ncat 1  3\n", ":2: expected a finite number, got ''"),
        ("the 1 2 3\ncat 1 2 nan\n", ":2: expected a finite number, got 'nan'"),
        ("the 1 2 3\nCat 1 -inf 2\n", ":2: expected a finite number, got '-inf'"),
        ("the 1 2 3\ncat 1 1e39 2\n", ":2: expected a finite number, got '1e39'"),
        (b"the 1 \xff\n", ":1: expected a finite number, got '\ufffd'"),
        ("the 1 2 3\nunneeded 1 2  \n", ":2: expected 3 numbers, got 2"),
        ("the 1 2 3\nunneeded 1 2 \r\n", ":2: expected 3 numbers, got 2"),
        ("the 1 2 3\nunneeded 1 2", ":2: expected 3 numbers, got 2"),
        ("the 1 2 3\n\n", ":2: expected 3 numbers, got 0"),
        ("\n", ":1: expected a word and its vector"),
        ("the 1 2\nunneeded 1 \0\n", ":2: NUL byte"),
        ("\0 1 2\nunneeded 1 \0\n", ":1: NUL byte"),
        (bytes(5000), ":1: NUL byte"),
        (ROWS.encode("utf-16"), ":1: NUL byte"),
        ("2 3\n" + ROWS, ": expected 2 rows, as line 1 says, got 3"),
        ("4 3\n" + ROWS, ": expected 4 rows, as line 1 says, got 3"),
        ("4 3\n", ": expected 4 rows, as line 1 says, got 0"),
        ("4 1000000000000\n" + ROWS, ":1: expected at most 10000 numbers in a row, got 1000000000000"),
        ("the" + 10_001 * " 1", ":1: expected at most 10000 numbers in a row, got 10001"),
        (f"the {'9' * 5000}\n", f":1: expected a finite number, got '{'9' * 40}'"),
        (f"{'9' * 5000} {'9' * 5000}\n", ": expected vectors of the vocabulary's words, got none of 5"),
        (ROWS + (2**20 + 1) * "x", ":4: expected a line break within 1048576 bytes, got none"),
        (ROWS + (2**22 + 1) * "x" + "\nof 1\n", ":4: expected a line break within 1048576 bytes, got none"),
        ((2**20 + 1) * "\0", ":1: expected a line break within 1048576 bytes, got none"),
    ],
)
@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
@pytest.mark.usefixtures("both_ways")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_bad_text(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        load_vectors(path, VOCABULARY)
    assert str(caught.value) == f"{path}{message}"


@pytest.mark.usefixtures("both_ways")
def test_line_numbers_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_files, "_BLOCK", 30_000)
    monkeypatch.setattr(vector_files, "_RANGE", 100_000)
    lines = [f"w{i} {'0' * (i % 300)}1 {i}\n" for i in range(5000)]  # 0.8 MB
    vocabulary = Vocabulary(["<unk>", "<pad>", *(f"w{i}" for i in range(0, 5000, 100))])
    _, vectors, found = load_vectors(write(tmp_path, "v.txt", "".join(lines)), vocabulary)
    assert found == 50
    assert vectors[2:, 0].tolist() == [1] * 50
    assert vectors[2:, 1].tolist() == list(range(0, 5000, 100))
    for number in range(2, 5000, 97):
        lines[number - 1], whole = "unneeded 2\n", lines[number - 1]
        path = write(tmp_path, "v.txt", "".join(lines))
        with pytest.raises(DataError, match=f":{number}: expected 2 numbers, got 1$"):
            load_vectors(path, vocabulary)
        lines[number - 1] = whole


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("final", ["\n", ""])
def test_wherever_it_is_cut_into_ranges(tmp_path, monkeypatch, final):
    lines = ["w0 0", 50 * "x" + " 1", "w2 2", "w3 " + 30 * "0" + "3", "of the 4", "w5 5", "w0 6"]
    vocabulary = Vocabulary(["<unk>", "<pad>", "w0", "w2", "w3", "of the", "w5"])
    path = write(tmp_path, "v.txt", "\n".join(lines) + final)
    for size in range(1, path.stat().st_size + 1):
        monkeypatch.setattr(vector_files, "_RANGE", size)
        assert load_vectors(path, vocabulary).matrix[2:, 0].tolist() == [0, 2, 3, 4, 5]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("ending", ["", "\n", "\nof 1\n"])
def test_longest_line(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(vector_files, "_BLOCK", 16)
    monkeypatch.setattr(vector_files, "_LONGEST_LINE", 50)
    for before in range(20):
        first = f"the {'1':0>{1 + before}}\n"
        assert load_vectors(write(tmp_path, "v.txt", f"{first}cat {'5':0>46}{ending}"), VOCABULARY).matrix[3] == 5
        with pytest.raises(DataError, match=r":2: expected a line break within 50 bytes, got none$"):
            load_vectors(write(tmp_path, "v.txt", f"{first}cat {'5':0>47}{ending}"), VOCABULARY)


class TestProcesses:
    @pytest.fixture(autouse=True)
    def _several(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vector_files, "processors", lambda: 3)
        monkeypatch.setattr(vector_files, "_RANGE", 12)

    @pytest.fixture
    def tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Numbers are those of the processes that parsed them."""
        monkeypatch.setattr(vector_files, "_parse", lambda fields: np.full(len(fields), os.getpid(), dtype=np.float32))

    @pytest.mark.usefixtures("tell")
    def test_large_files_are_read_by_others(self, tmp_path):
        for name, content, by_others in (("v.txt", ROWS, True), ("v.txt.gz", ROWS, False), ("v.txt", ROWS[:19], False)):
            process = load_vectors(write(tmp_path, name, content), VOCABULARY).matrix[2, 0].item()
            assert (process != os.getpid()) == by_others

    def test_they_read_what_one_does(self, tmp_path):
        assert load_vectors(write(tmp_path, "v.txt", "3 3\n" + ROWS), VOCABULARY).matrix[2].tolist() == [1, 2, 3]
        with pytest.raises(DataError, match=r":5: expected a finite number, got 'x'$"):
            load_vectors(write(tmp_path, "v.txt", f"4 3\n{ROWS}cat x 2 3\n"), VOCABULARY)

    @pytest.mark.usefixtures("tell")
    def test_one_processor(self, tmp_path, monkeypatch):
        monkeypatch.setattr(vector_files, "processors", lambda: 1)
        assert load_vectors(write(tmp_path, "v.txt", ROWS), VOCABULARY).matrix[2, 0].item() == os.getpid()

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
    def test_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "v.txt")
        writer = threading.Thread(target=(tmp_path / "v.txt").write_text, args=("3 3\n" + ROWS,))
        writer.start()
        result = load_vectors(tmp_path / "v.txt", VOCABULARY)
        writer.join()
        assert result.matrix[2].tolist() == [1, 2, 3]
        assert result.found == 2

    @pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no names for open files")
    @pytest.mark.usefixtures("tell")
    def test_open_file(self, tmp_path):
        with open(write(tmp_path, "v.txt", ROWS), "rb") as file:
            assert load_vectors(f"/dev/fd/{file.fileno()}", VOCABULARY).matrix[2, 0].item() == os.getpid()

    def test_one_that_is_killed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(vector_files, "_parse", lambda fields: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(DataError, match=r"was killed; is memory short\?$"):
            load_vectors(write(tmp_path, "v.txt", ROWS), VOCABULARY)

    def test_file_that_cannot_be_opened_again(self, tmp_path, monkeypatch):
        path = write(tmp_path, "v.txt", ROWS)
        cut = vector_files._ranges

        def ranges(name: str, begin: int) -> object:
            path.unlink()
            return cut(name, begin)

        monkeypatch.setattr(vector_files, "_ranges", ranges)
        with pytest.raises(DataError) as caught:
            load_vectors(path, VOCABULARY)
        assert str(caught.value) == f"{path}: No such file or directory"


@pytest.mark.parametrize("name", ["v.txt", "v.bin"])
def test_truncated_gzip(tmp_path, name):
    """The line, or row, is the one after the last that could be read."""
    noise = np.random.default_rng(0).normal(size=(3000, 3)).astype(np.float32)
    rows = [(f"w{i:04}", row) for i, row in enumerate(noise)]
    plain = as_text(rows) if name == "v.txt" else as_binary(rows)
    whole = gzip.compress(plain)
    path = tmp_path / f"{name}.gz"
    for length in (len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        readable = zlib.decompressobj(31).decompress(whole[:length])
        number = readable.count(b"\n") + 1 if name == "v.txt" else (len(readable) - 7) // 18 + 1
        where = f":{number}" if name == "v.txt" else f": row {number}"
        with pytest.raises(DataError) as caught:
            load_vectors(path, VOCABULARY)
        ending = "Compressed file ended before the end-of-stream marker was reached"
        assert str(caught.value) == f"{path}{where}: {ending}"


def test_not_gzip(tmp_path):
    (tmp_path / "v.txt.gz").write_text(ROWS)
    with pytest.raises(DataError, match=r"v\.txt\.gz:1: Not a gzipped file \(b'th'\)$"):
        load_vectors(tmp_path / "v.txt.gz", VOCABULARY)


NEAR_HALVES = ["1.00000005960464477539", "1.000000059604644775390625", "1.0000000596046447753906251", "16777217"]


LARGEST = ["3.4028235e38", "-3.4028235677973362e38", "3.4028234663852886e38"]  # rounded down to float32's largest


SMALLEST = ["1e-45", "7e-46", "7.1e-46", "-1e-400", "-0", "0e99"]


SPELLINGS = ["1", "+1.", ".5", "-.5e-1", "1E5", "0001", "-0.082752"]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_numbers_are_rounded_once_from_double(tmp_path):
    fields = NEAR_HALVES + LARGEST + SMALLEST + SPELLINGS
    vectors = load_vectors(write(tmp_path, "v.txt", f"the {' '.join(fields)}\n"), VOCABULARY).matrix
    with np.errstate(all="ignore"):
        expected = np.array([float(field) for field in fields], dtype=np.float64).astype(np.float32)
    assert vectors[2].numpy().tobytes() == expected.tobytes()


THREE = [
    ("the", np.array([1, 2], dtype=np.float32)),
    ("of", np.array([np.nan, np.inf], dtype=np.float32)),  # not needed, so not looked at
    ("Cat", np.frombuffer(b"\n \x00\x3f \n\x20\x40", dtype="<f4")),  # their bytes are those of text
]


@pytest.mark.parametrize("name", ["v.bin", "v.bin.gz"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(as_binary(THREE), id="gensim"),
        pytest.param(as_binary(THREE, b"\n"), id="word2vec"),
        pytest.param(as_binary([*THREE, ("the", np.zeros(2)), ("cat", np.full(2, 7))][:4]), id="first-of-two"),
        pytest.param(as_binary([*THREE, ("x" * 2000, np.zeros(2))], b"\n"), id="longest-word"),
        pytest.param(as_binary(THREE).replace(b"of", b"\xff\xfe"), id="not-utf-8"),
        pytest.param(as_binary(THREE).replace(b"of", b""), id="no-word"),
    ],
)
def test_binary(tmp_path, name, content):
    result = load_vectors(write(tmp_path, name, content), VOCABULARY)
    assert result.found == 2
    assert result.matrix[2].tolist() == [1, 2]
    assert np.array_equal(result.matrix[3], THREE[2][1])


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_binary_words_are_taken_as_they_are(tmp_path, ending):
    words = ["\tx", "x\t", "\u3000", "x"]
    rows = [(word, np.array([index], dtype=np.float32)) for index, word in enumerate(words)]
    result = load_vectors(write(tmp_path, "v.bin", as_binary(rows, ending)), Vocabulary(["<unk>", "<pad>", *words]))
    assert result.matrix[2:, 0].tolist() == [0, 1, 2, 3]


def test_binary_across_blocks(tmp_path):
    words = [f"w{i}" for i in range(5000)]
    numbers = np.random.default_rng(0).normal(size=(5000, 50)).astype(np.float32)
    rows = list(zip(words, numbers, strict=True))
    vocabulary = Vocabulary(["<unk>", "<pad>", *reversed(words)])
    for ending in (b"", b"\n"):
        for name in ("v.bin", "v.bin.gz"):
            result = load_vectors(write(tmp_path, name, as_binary(rows, ending)), vocabulary)
            assert result.found == 5000
            np.testing.assert_array_equal(result.matrix[2:], numbers[::-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: expected the number of rows and of numbers in each, got ''"),
        (b"1 2", ":1: expected the number of rows and of numbers in each, got '1 2'"),
        (b"the 1 2\n", ":1: expected the number of rows and of numbers in each, got 'the 1 2'"),
        (b"1 -2\n", ":1: expected the number of rows and of numbers in each, got '1 -2'"),
        (b"\xba\x16O/\n", ":1: expected the number of rows and of numbers in each, got '\ufffd\\x16O/'"),
        (b"9" * 3000, f":1: expected the number of rows and of numbers in each, got '{'9' * 100}'"),
        (b"1 " + b"9" * 30 + b"\n", f":1: expected the number of rows and of numbers in each, got '1 {'9' * 30}'"),
        (b"1 0\nthe ", ":1: expected 1 to 10000 numbers in a row, got 0"),
        (b"1 1000000000000\nthe ", ":1: expected 1 to 10000 numbers in a row, got 1000000000000"),
        (as_binary(THREE).replace(b"3 2", b"4 2"), ": row 4: expected 4 rows, as line 1 says, but the file ends here"),
        (
            as_binary(THREE).replace(b"3 2", b"999999999999999999 2"),
            ": row 4: expected 999999999999999999 rows, as line 1 says, but the file ends here",
        ),
        (as_binary(THREE).replace(b"3 2", b"2 2"), ": expected 2 rows, as line 1 says, got more"),
        (as_binary(THREE).replace(b"3 2", b"0 2"), ": expected 0 rows, as line 1 says, got more"),
        (as_binary(THREE) + b"\n\n", ": expected 3 rows, as line 1 says, got more"),
        (as_binary(THREE) + b"x", ": expected 3 rows, as line 1 says, got more"),
        (as_binary(THREE).replace(b"3 2", b"3 3"), ": row 2: expected 3 rows, as line 1 says, but the file ends here"),
        (as_binary([*THREE, ("x" * 2002, np.zeros(2))]), ": row 4: expected a word of at most 2000 bytes"),
        (b"9 1\n" + bytes(400_000), ": row 1: expected a word of at most 2000 bytes"),
        (as_binary([("of", np.zeros(1)), ("Cat", np.array([np.nan]))]), ": row 2: expected finite numbers, got others"),
        (as_binary([("CAT", np.array([-np.inf]))]), ": row 1: expected finite numbers, got others"),
        (as_binary([("of", np.zeros(1))]), ": expected vectors of the vocabulary's words, got none of 5"),
        (b"0 1\n", ": expected vectors of the vocabulary's words, got none of 5"),
    ],
)
@pytest.mark.parametrize("name", ["v.bin", "v.bin.gz"])
def test_bad_binary(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        load_vectors(path, VOCABULARY)
    assert str(caught.value).removesuffix(" for 'Cat'").removesuffix(" for 'CAT'") == f"{path}{message}"


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_binary_cut_off_anywhere(tmp_path, ending):
    whole = as_binary(THREE, ending)
    expected = load_vectors(write(tmp_path, "v.bin", whole), VOCABULARY).matrix
    for length in range(len(whole) - len(ending)):
        with pytest.raises(DataError):
            load_vectors(write(tmp_path, "v.bin", whole[:length]), VOCABULARY)
    path = write(tmp_path, "v.bin", whole.removesuffix(b"\n"))
    assert torch.equal(load_vectors(path, VOCABULARY).matrix, expected)


@pytest.mark.usefixtures("both_ways")
def test_text_cut_off_anywhere(tmp_path):
    """The header says how many rows there are: only digits that the last number loses are not noticed."""
    whole = "3 3\n" + ROWS
    for length in range(len(whole) - len("4\n")):
        with pytest.raises(DataError):
            load_vectors(write(tmp_path, "v.txt", whole[:length]), VOCABULARY)


WORDS = np.array(["the", "cat"])


NUMBERS = np.ones((2, 3), dtype=np.float32)


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
        ({"words": WORDS, "vectors": NUMBERS * np.nan}, "expected finite numbers, got others in the vector of 'the'"),
        ({"words": WORDS.astype(object), "vectors": NUMBERS}, "expected an .npz archive of plain arrays"),
        (
            {"words": np.array(["of", "or"]), "vectors": NUMBERS},
            "expected vectors of the vocabulary's words, got none of 5",
        ),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    path = write_npz(tmp_path, **arrays)
    with pytest.raises(DataError) as caught:
        load_vectors(path, VOCABULARY)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(message)


def test_not_an_npz(tmp_path):
    archive = io.BytesIO()
    np.savez_compressed(archive, words=np.array(["the"]), vectors=np.random.default_rng(0).random((1, 500)))
    array = io.BytesIO()
    np.save(array, NUMBERS)
    whole = archive.getvalue()
    for data in (
        b"",
        b"the 1 2 3\n",
        array.getvalue(),
        whole[: len(whole) // 2],
        whole[:700] + bytes(60) + whole[760:],
    ):
        with pytest.raises(DataError, match=r"v\.npz: expected an \.npz archive of plain arrays$"):
            load_vectors(write(tmp_path, "v.npz", data), VOCABULARY)


@pytest.mark.parametrize("longer", ["words", "vectors"])
def test_npz_with_more_than_the_headers_say(tmp_path, longer):
    path = tmp_path / "v.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in (("words", WORDS), ("vectors", NUMBERS)):
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{key}.npy", content.getvalue() + b"x" * (key == longer))
    with pytest.raises(DataError, match=r"v\.npz: expected an \.npz archive of plain arrays$"):
        load_vectors(path, VOCABULARY)


@pytest.mark.parametrize("name", ["none.txt", "none.txt.gz", "none.bin", "none.npz"])
def test_missing_file(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load_vectors(tmp_path / name, VOCABULARY)
    assert str(caught.value) == f"{tmp_path / name}: No such file or directory"


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["PARIS 1", "Paris 2", "paris 3"], 3),
        (["paris 3", "Paris 2", "PARIS 1"], 3),
        (["PARIS 1", "Paris 2"], 2),
        (["Paris 2", "PARIS 1"], 2),
        (["PARIS 1", "pARIS 4"], 1),
        (["PARIS 1", "paris 2", "PARIS 3", "paris 4"], 2),
    ],
)
def test_case(tmp_path, lines, expected):
    text = write(tmp_path, "v.txt", "".join(f"{line}\n" for line in lines))
    words, values = zip(*map(str.split, lines), strict=True)
    npz = write_npz(tmp_path, words=np.array(words), vectors=np.array(values, dtype=np.float32)[:, None])
    for path in (text, npz):
        _, vectors, found = load_vectors(path, VOCABULARY)
        assert found == 1
        assert vectors[VOCABULARY.words.index("paris")].item() == expected
