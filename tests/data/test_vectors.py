"""Pretrained vectors: the right row for each id, bit for bit."""

import os
import threading
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from esim_fast.data import PADDING_ID, UNKNOWN_ID, Vocabulary, load_vectors, vector_files, words_with_vector
from esim_fast.data import vectors as vectors_module
from tests.data.files import refusal, vocabulary_of, write
from tests.data.vectors import BEHIND_TABS, REMEDY, ROWS, THREE, VOCABULARY, Rows, as_binary, as_text, saved, write_npz


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz", "word2vec.vec", "glove.zip", "v.txt.bz2", "v.vec.XZ"])
@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        ROWS.replace("\n", " \n"),  # blanks at the ends of lines
        ROWS.replace("\n", "\r\n"),
        ROWS.removesuffix("\n"),
        ROWS + ". . . 7 7 7\nthe end 8 8 8\nat nan@domain.com 9 9 9\n",  # blanks in words
        ROWS + "the 7 7 7\n",  # the first of two counts
        ROWS + "<unk> 100 100 100\n<pad> 100 100 100\n",  # not looked up
        ROWS.encode() + b"\xff\x85\xe3\x80\x80 7 7 7\nof 1 x nan\n",  # not needed
        "\ufeff" + ROWS,  # a byte order mark
        "\ufeff3 3\n" + ROWS,  # with word2vec's header
        "3 3\n" + ROWS,
        "3 3 \r\n" + ROWS,
        ROWS + "\n\n",  # blank lines at the end
        f"3 3\n{ROWS} \r\n\t\n",
        ROWS.replace(" ", "\t"),
        BEHIND_TABS,
        f"3 3\n{BEHIND_TABS}",
        f"\ufeff3\t3\r\n{BEHIND_TABS}",
        BEHIND_TABS.replace(" ", "\t"),
        BEHIND_TABS.replace("\n", "\t \r\n") + "\r\n",
        BEHIND_TABS + ". . .\t7 7 7\nthe 3\t8 8 8\nroute 66\t8\t8 8\n\t9 9 9\n",
    ],
)
def test_text(tmp_path, name, content):
    _, vectors, found = load_vectors(write(tmp_path, name, content), VOCABULARY)
    assert vectors.shape == (7, 3)
    assert vectors.dtype == torch.float32
    assert found == 2
    assert torch.equal(vectors[2:4], torch.tensor([[1, 2, 3], [-0.1, 0.5, 4]]))
    assert vectors[PADDING_ID].tolist() == [0, 0, 0]
    assert vectors[UNKNOWN_ID].abs().max() < 20


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("words", "rows", "expected"),
    [
        # For a lowercase word: itself, then capitalized, then in capitals, then any other.
        ("paris", "PARIS 1, Paris 2, paris 3", [3]),
        ("paris", "paris 3, Paris 2, PARIS 1", [3]),
        ("paris", "PARIS 1, Paris 2", [2]),
        ("paris", "Paris 2, PARIS 1", [2]),
        ("paris", "PARIS 1, pARIS 4", [1]),
        ("paris", "PARIS 1, paris 2, PARIS 3, paris 4", [2]),
        # For a word with capitals: itself, lowercase, capitalized, in capitals.
        ("McDonald", "MCDONALD 4, Mcdonald 3, mcdonald 2, McDonald 1", [1]),
        ("McDonald", "MCDONALD 4, Mcdonald 3, mcdonald 2", [2]),
        ("McDonald", "MCDONALD 4, Mcdonald 3", [3]),
        ("McDonald", "MCDONALD 4, mcDonald 5", [4]),
        # Two words may share a row.
        ("paris Paris", "Paris 2", [2, 2]),
    ],
)
def test_case(tmp_path, words, rows, expected):
    spellings, numbers = zip(*map(str.split, rows.split(", ")), strict=True)
    text = write(tmp_path, "v.txt", rows.replace(", ", "\n") + "\n")
    npz = write_npz(tmp_path, words=spellings, vectors=np.array(numbers, dtype=np.float32)[:, None])
    for path in (text, npz):
        result = load_vectors(path, vocabulary_of(*words.split()))
        assert result.found == len(expected)
        assert result.matrix[2:, 0].tolist() == expected


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("order", "dtype"), [("C", np.float16), ("C", np.float32), ("F", np.float32)])
def test_npz(tmp_path, save, order, dtype):
    words = np.array([f"w{i}" for i in range(5000)] + ["x" * 100])
    numbers = np.random.default_rng(0).normal(size=(5001, 50)).astype(dtype, order=order)
    path = write(tmp_path, "v.npz", saved(save, more=np.array([None]), vectors=numbers, words=words))
    _, vectors, found = load_vectors(path, vocabulary_of("unheard", *words[::-1].tolist()))
    assert found == 5001
    assert vectors.dtype == torch.float32
    np.testing.assert_array_equal(vectors[3:], numbers[::-1].astype(np.float32))
    assert vectors[PADDING_ID].tolist() == [0] * 50


def test_more_words(tmp_path):
    path = write(tmp_path, "v.txt", "usa 1\nzebra 2\nthe 3\nApe 4\n<pad> 5\n<unk> 6\nyak 7\n a 8\n")
    more = ["yak", "the", "unheard of", "zebra", "", "<pad>", "a\nb", "yak", "<unk>", "\ud83d", "ape", "none", "paris"]
    vocabulary, matrix, found = load_vectors(path, VOCABULARY, more_words=more)
    assert vocabulary.words == [*VOCABULARY.words, "yak", "zebra", "ape"]
    assert matrix[:, 0][[2, 5, 7, 8, 9]].tolist() == [3, 1, 7, 2, 4]
    assert found == 5
    assert VOCABULARY.words[-1] == "unheard"
    # Missing words resemble all found rows; rows of more_words do not change the other draws.
    rows, noise = torch.tensor([3, 1, 7, 2, 4.0]), torch.randn(5, 1, generator=torch.Generator().manual_seed(0))
    expected = rows.mean() + rows.std(correction=0) * noise
    torch.testing.assert_close(matrix[[0, 3, 4, 6]], expected[[0, 2, 3, 4]])
    # If only one of those is found:
    path = write(tmp_path, "v.txt", "yak 7\n")
    vocabulary, matrix, found = load_vectors(path, VOCABULARY, more_words=["yak", "none"])
    assert vocabulary.words == [*VOCABULARY.words, "yak"]
    assert matrix[:, 0].tolist() == [7, 0, 7, 7, 7, 7, 7, 7]
    assert found == 1


class TestCache:
    """Rows found once come from the cache, unless something that determines them has changed."""

    @pytest.fixture
    def path(self, tmp_path):
        return write(tmp_path, "v.txt", ROWS + "paris 3 2 1\nZebra 7 7 7\n")

    @pytest.fixture
    def cached(self, path, tmp_path):
        """Loads vectors with a cache."""
        return partial(load_vectors, path, cache=tmp_path / "cache")

    @pytest.fixture
    def parsed(self, monkeypatch):
        """Records the names of the parsed files."""
        names, parse = [], vectors_module.wanted_rows
        noting = lambda name, *rest: names.append(name) or parse(name, *rest)  # noqa: E731
        monkeypatch.setattr(vectors_module, "wanted_rows", noting)
        return names

    def test_second_time(self, path, cached, parsed):
        first = cached(VOCABULARY, more_words=["zebra", "ape"])
        first.matrix[2] = 0  # its memory is separate from the file's
        again = cached(VOCABULARY, more_words=["zebra", "ape"])
        without = load_vectors(path, VOCABULARY, more_words=["zebra", "ape"])
        assert parsed == [str(path)] * 2
        assert again.vocabulary == without.vocabulary
        assert torch.equal(again.matrix, without.matrix)
        assert again.found == without.found == 4

    def test_seed(self, path, cached, parsed):
        zero, one = (cached(VOCABULARY, seed=seed).matrix for seed in (0, 1))
        assert len(parsed) == 1
        assert torch.equal(zero[2:5], one[2:5])
        assert not torch.equal(zero[UNKNOWN_ID], one[UNKNOWN_ID])
        assert torch.equal(one, load_vectors(path, VOCABULARY, seed=1).matrix)

    def test_other_words(self, path, cached, parsed):
        for vocabulary in (VOCABULARY, Vocabulary([*VOCABULARY.words, "of"]), vocabulary_of("cat", "the")):
            assert torch.equal(cached(vocabulary).matrix, load_vectors(path, vocabulary).matrix)
        cached(VOCABULARY, more_words=["zebra"])
        cached(VOCABULARY, more_words=["the"])  # no additional words
        assert len(parsed) == 7


floats = st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32)


# Without characters that end a word or a line, and in one case, so that no word is used for another.
characters = st.characters(exclude_categories=["Cs", "Lu", "Ll", "Lt"], exclude_characters=" \n\r\0")


@st.composite
def tables(draw: st.DrawFn) -> Rows:
    words = draw(st.lists(st.text(characters, min_size=1), min_size=1, max_size=5, unique=True))
    row = st.tuples(*[floats] * draw(st.integers(1, 4)))
    return [(word, np.array(draw(row), dtype=np.float32)) for word in words]


FORMS = ["glove", "word2vec text", "behind a tab", "tabs", "word2vec tabs", "word2vec binary", "gensim binary", "npz"]


@pytest.mark.parametrize("form", FORMS)
@given(rows=tables())
@example(rows=[("\tx", np.float32([0])), ("x\t", np.float32([1])), ("\u3000", np.float32([2])), ("x", np.float32([3]))])
def test_whatever_is_written_reads_back(tmp_path_factory, form, rows):
    folder = tmp_path_factory.mktemp("vectors")
    if form == "npz":
        words, vectors = zip(*rows, strict=True)
        path = write_npz(folder, words=np.array(words), vectors=np.array(vectors))
    elif form.endswith("binary"):
        path = write(folder, "v.bin", as_binary(rows, b"\n" if form.startswith("word2vec") else b""))
    else:
        dimension, word_end, between = len(rows[0][1]), "\t" if "tab" in form else " ", "\t" if "tabs" in form else " "
        if "tab" in form:  # words may contain blanks but not tabs
            rows = [(word.replace("\t", " ") + str(number), row) for number, (word, row) in enumerate(rows)]
        # Without GloVe's first row, because single numbers in it could look like a header.
        header = f"{len(rows)}{between}{dimension}\n"
        first = header if form.startswith("word2vec") else f"1st{word_end}{between.join('0' * dimension)}\n"
        path = write(folder, "v.txt", first.encode() + as_text(rows, word_end.encode(), between.encode()))
    result = load_vectors(path, vocabulary_of(*(word for word, _ in rows)))
    assert result.found == len(rows)
    assert result.matrix[2:].numpy().tobytes() == np.array([row for _, row in rows]).tobytes()


def test_missing_words_resemble_the_found_ones(tmp_path):
    generator = np.random.default_rng(0)
    mean, deviation = np.array([5, -3, 0]), np.array([0.1, 2, 1])
    rows = generator.normal(mean, deviation, size=(500, 3))
    path = write(tmp_path, "v.txt", "".join(f"w{i} {' '.join(map(str, row))}\n" for i, row in enumerate(rows)))
    vocabulary = vocabulary_of(*(f"w{i}" for i in range(500)), *(f"m{i}" for i in range(4000)))
    state = torch.get_rng_state()
    _, vectors, found = load_vectors(path, vocabulary, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == 500
    np.testing.assert_array_equal(vectors[2:502], rows.astype(np.float32))
    # Within five standard errors of 4,000 draws from the moments of the 500 found rows.
    drawn = vectors[502:].double().numpy()
    tolerance = 5 * rows.std(0) / 4000**0.5
    assert (abs(drawn.mean(0) - rows.mean(0)) < tolerance).all()
    assert (abs(drawn.std(0) - rows.std(0)) < tolerance).all()
    assert len(np.unique(drawn, axis=0)) == 4000
    assert torch.equal(load_vectors(path, vocabulary, seed=3).matrix, vectors)
    assert not torch.equal(load_vectors(path, vocabulary, seed=4).matrix, vectors)


@pytest.mark.usefixtures("both_ways")
def test_line_numbers_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_files, "_BLOCK", 30_000)
    monkeypatch.setattr(vector_files, "_RANGE", 100_000)
    lines = [f"w{i} {'0' * (i % 300)}1 {i}\n" for i in range(5000)]  # 0.8 MB
    vocabulary = vocabulary_of(*(f"w{i}" for i in range(0, 5000, 100)))
    _, vectors, found = load_vectors(write(tmp_path, "v.txt", "".join(lines)), vocabulary)
    assert found == 50
    assert vectors[2:, 0].tolist() == [1] * 50
    assert vectors[2:, 1].tolist() == list(range(0, 5000, 100))
    for number in range(2, 5000, 97):
        lines[number - 1], whole = "unneeded 2\n", lines[number - 1]
        path = write(tmp_path, "v.txt", "".join(lines))
        assert refusal(load_vectors, path, vocabulary) == f"{path}:{number}: expected 2 numbers, got 1{REMEDY}"
        lines[number - 1] = whole


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("final", ["\n", ""])
def test_wherever_it_is_cut_into_ranges(tmp_path, monkeypatch, final):
    lines = ["w0 0", 50 * "x" + " 1", "w2 2", "w3 " + 30 * "0" + "3", "of the 4", "w5 5", "w0 6"]
    vocabulary = vocabulary_of("w0", "w2", "w3", "of the", "w5")
    path = write(tmp_path, "v.txt", "\n".join(lines) + final)
    for size in range(1, path.stat().st_size + 1):
        monkeypatch.setattr(vector_files, "_RANGE", size)
        assert load_vectors(path, vocabulary).matrix[2:, 0].tolist() == [0, 2, 3, 4, 5]


class TestProcesses:
    @pytest.fixture(autouse=True)
    def _several(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vector_files, "processors", lambda: 3)
        monkeypatch.setattr(vector_files, "_RANGE", 12)

    @pytest.fixture
    def tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Records the ids of the processes that parse."""
        monkeypatch.setattr(vector_files, "_parse", lambda fields: np.full(len(fields), os.getpid(), dtype=np.float32))

    @pytest.mark.usefixtures("tell")
    @pytest.mark.parametrize(
        ("name", "content", "processors", "by_others"),
        [
            ("v.txt", ROWS, 3, True),
            ("v.txt.gz", ROWS, 3, False),
            ("v.txt", ROWS[:19], 3, False),
            ("v.txt", ROWS, 1, False),
        ],
        ids=["large", "compressed", "small", "one processor"],
    )
    def test_large_files_are_read_by_others(self, tmp_path, monkeypatch, name, content, processors, by_others):
        monkeypatch.setattr(vector_files, "processors", lambda: processors)
        process = load_vectors(write(tmp_path, name, content), VOCABULARY).matrix[2, 0].item()
        assert (process != os.getpid()) == by_others

    def test_they_read_what_one_does(self, tmp_path):
        assert load_vectors(write(tmp_path, "v.txt", "3 3\n" + ROWS), VOCABULARY).matrix[2].tolist() == [1, 2, 3]
        path = write(tmp_path, "v.txt", f"4 3\n{ROWS}cat x 2 3\n")
        assert refusal(load_vectors, path, VOCABULARY) == f"{path}:5: expected a finite number, got 'x'{REMEDY}"

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
    def test_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "v.txt")
        writer = threading.Thread(target=(tmp_path / "v.txt").write_text, args=("3 3\n" + ROWS,))
        writer.start()
        result = load_vectors(tmp_path / "v.txt", VOCABULARY)
        writer.join()
        assert (result.matrix[2].tolist(), result.found) == ([1, 2, 3], 2)

    @pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no names for open files")
    @pytest.mark.usefixtures("tell")
    def test_open_file(self, tmp_path):
        with open(write(tmp_path, "v.txt", ROWS), "rb") as file:
            assert load_vectors(f"/dev/fd/{file.fileno()}", VOCABULARY).matrix[2, 0].item() == os.getpid()

    def test_file_that_cannot_be_opened_again(self, tmp_path, monkeypatch):
        path = write(tmp_path, "v.txt", ROWS)
        cut = vector_files._ranges
        monkeypatch.setattr(vector_files, "_ranges", lambda name, begin: path.unlink() or cut(name, begin))
        assert refusal(load_vectors, path, VOCABULARY) == f"{path}: No such file or directory"


NUMBERS_AS_TEXT = ["1.00000005960464477539", "1.000000059604644775390625", "1.0000000596046447753906251", "16777217"]

NUMBERS_AS_TEXT += ["3.4028235e38", "-3.4028235677973362e38", "3.4028234663852886e38"]  # round to float32's largest

NUMBERS_AS_TEXT += ["1e-45", "7e-46", "7.1e-46", "-1e-400", "-0", "0e99"]

NUMBERS_AS_TEXT += ["1", "+1.", ".5", "-.5e-1", "1E5", "0001", "-0.082752"]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_numbers_are_rounded_once_from_double(tmp_path):
    path = write(tmp_path, "v.txt", f"the {' '.join(NUMBERS_AS_TEXT)}\n")
    with np.errstate(all="ignore"):
        expected = np.array(list(map(float, NUMBERS_AS_TEXT))).astype(np.float32)
    assert load_vectors(path, VOCABULARY).matrix[2].numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["v.bin", "v.bin.gz", "v.bin.bz2", "v.bin.xz", "v.bin.zip"])
@pytest.mark.parametrize(
    "content",
    [
        as_binary(THREE),  # gensim's form
        as_binary(THREE, b"\n"),  # word2vec's form
        as_binary([*THREE, ("the", np.zeros(2))]),  # the first of two counts
        as_binary([*THREE, ("x" * 2000, np.zeros(2))], b"\n"),  # the longest word
        as_binary(THREE).replace(b"of", b"\xff\xfe"),  # not UTF-8
        as_binary(THREE).replace(b"of", b""),  # an empty word
    ],
)
def test_binary(tmp_path, name, content):
    result = load_vectors(write(tmp_path, name, content), VOCABULARY)
    assert result.found == 2
    assert result.matrix[2].tolist() == [1, 2]
    assert np.array_equal(result.matrix[3], THREE[2][1])


def test_binary_across_blocks(tmp_path):
    words = [f"w{i}" for i in range(5000)]
    numbers = np.random.default_rng(0).normal(size=(5000, 50)).astype(np.float32)
    rows = list(zip(words, numbers, strict=True))
    vocabulary = vocabulary_of(*reversed(words))
    for ending, name in ((b"", "v.bin"), (b"\n", "v.bin"), (b"", "v.bin.gz"), (b"\n", "v.bin.gz")):
        result = load_vectors(write(tmp_path, name, as_binary(rows, ending)), vocabulary)
        assert result.found == 5000
        np.testing.assert_array_equal(result.matrix[2:], numbers[::-1])


def test_real_vectors(real_data):
    path = real_data / "vectors/glove.6B.50d.top9162.txt.gz"
    _, vectors, found = load_vectors(path, vocabulary_of("man", "the", "xyzzyx"))
    assert (vectors.shape, found) == ((5, 50), 2)
    np.testing.assert_array_equal(vectors[3, :3], np.array([0.418, 0.24968, -0.41242], dtype=np.float32))
    path = real_data / "vectors/word2vec_googlenews_300d_8007.npz"
    with np.load(path) as archive:
        words, expected = archive["words"].tolist(), archive["vectors"].astype(np.float32)
    _, vectors, found = load_vectors(path, vocabulary_of(*reversed(words)))
    assert found == 8007
    np.testing.assert_array_equal(vectors[2:], expected[::-1])


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz", "v.bin", "v.npz"])
def test_progress(tmp_path, monkeypatch, name):
    """A bar counts the bytes read, out of the file's size."""
    shown = []

    def bar(desc, total, disable, **_):
        read = []
        shown.append((desc, total, disable, read))
        return nullcontext(SimpleNamespace(update=read.append))

    monkeypatch.setattr(vectors_module, "tqdm", bar)
    words, vectors = np.array([f"word{i}" for i in range(40)]), np.ones((40, 5), np.float32)
    path = tmp_path / name
    if name == "v.npz":
        np.savez(path, words=words, vectors=vectors)
        size = words.nbytes + vectors.nbytes
    else:
        rows = list(zip(words.tolist(), vectors, strict=True))
        write(tmp_path, name, as_binary(rows, b"\n") if name == "v.bin" else as_text(rows))
        size = len(as_binary(rows, b"\n")) if name == "v.bin" else len(as_text(rows))
    for watched in (True, False):
        assert load_vectors(path, vocabulary_of("word7"), show_progress_bar=watched).found == 1
    assert words_with_vector(path, ["word3"], show_progress_bar=True) == ["word3"]
    total = path.stat().st_size if name in ("v.txt", "v.bin") else None
    assert [bar[:3] for bar in shown] == [(str(path), total, disabled) for disabled in (False, True, False)]
    assert [sum(read) for *_, read in shown] == [size] * 3


def test_words_with_vector(tmp_path):
    path = write(tmp_path, "v.txt", ROWS)
    asked = ["cat", "CAT", "unheard", "<pad>", "the", "the"]
    assert words_with_vector(path, asked, cache=tmp_path) == ["cat", "CAT", "the"]
    assert words_with_vector(path, ["unheard"], cache=tmp_path) == []
    said = refusal(load_vectors, path, vocabulary_of("unheard"), cache=tmp_path)
    assert said == f"{path}: expected vectors of the vocabulary's words, got none of 1"
