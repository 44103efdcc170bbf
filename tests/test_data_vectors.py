"""Pretrained vectors: the right row at the right id, and what is said about files that are wrong."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from esim_fast.data import PADDING_ID, UNKNOWN_ID, DataError, Vocabulary, load_vectors

VOCABULARY = Vocabulary(["<unk>", "<pad>", "the", "cat", "paris", "usa", "unheard"])
ROWS = "the 1 2 3\nof 9 9 9\ncat -1e-1 0.5 4\n"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def write_npz(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "vectors.npz"
    np.savez(path, **arrays)
    return path


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
        pytest.param(ROWS.encode() + b"\xff\x85\xe3\x80\x80 7 7 7\nof 1 x nan\n", id="rows-not-needed"),
    ],
)
def test_text(tmp_path: Path, name: str, content: str | bytes) -> None:
    vectors, found = load_vectors(write(tmp_path, name, content), VOCABULARY)
    assert vectors.shape == (7, 3)
    assert vectors.dtype == torch.float32
    assert found == 2
    assert vectors[2].tolist() == [1, 2, 3]
    assert torch.equal(vectors[3], torch.tensor([-0.1, 0.5, 4]))
    assert vectors[PADDING_ID].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_npz(tmp_path: Path, dtype: type) -> None:
    path = write_npz(
        tmp_path, words=np.array(["of", "the", "cat"]), vectors=np.array([[9, 9], [1, 2], [3, 0.5]], dtype=dtype)
    )
    vectors, found = load_vectors(path, VOCABULARY)
    assert vectors.shape == (7, 2)
    assert vectors.dtype == torch.float32
    assert found == 2
    assert vectors[2:4].tolist() == [[1, 2], [3, 0.5]]
    assert vectors[PADDING_ID].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["PARIS 1", "Paris 2", "paris 3"], 3),
        (["paris 3", "Paris 2", "PARIS 1"], 3),
        (["PARIS 1", "Paris 2"], 2),
        (["Paris 2", "PARIS 1"], 2),
        (["PARIS 1", "pARIS 4"], 1),
    ],
)
def test_case(tmp_path: Path, lines: list[str], expected: int) -> None:
    text = write(tmp_path, "v.txt", "".join(f"{line}\n" for line in lines))
    words, values = zip(*map(str.split, lines), strict=True)
    npz = write_npz(tmp_path, words=np.array(words), vectors=np.array(values, dtype=np.float32)[:, None])
    for path in (text, npz):
        vectors, found = load_vectors(path, VOCABULARY)
        assert found == 1
        assert vectors[VOCABULARY.words.index("paris")].item() == expected


def test_cased_vocabulary_shares_a_spelling(tmp_path: Path) -> None:
    vectors, found = load_vectors(
        write(tmp_path, "v.txt", "Paris 2\n"), Vocabulary(["<unk>", "<pad>", "paris", "Paris"])
    )
    assert found == 2
    assert vectors[2:].tolist() == [[2], [2]]


def test_special_words_are_not_looked_up(tmp_path: Path) -> None:
    vectors, found = load_vectors(write(tmp_path, "v.txt", "<unk> 100\n<pad> 100\nthe 1\ncat 2\n"), VOCABULARY)
    assert found == 2
    assert abs(vectors[UNKNOWN_ID].item()) < 10
    assert vectors[PADDING_ID].item() == 0


def test_missing_words_resemble_the_found_ones(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    mean, deviation = np.array([5, -3, 0]), np.array([0.1, 2, 1])
    rows = generator.normal(mean, deviation, size=(500, 3))
    path = write(tmp_path, "v.txt", "".join(f"w{i} {' '.join(map(str, row))}\n" for i, row in enumerate(rows)))
    vocabulary = Vocabulary(["<unk>", "<pad>", *(f"w{i}" for i in range(500)), *(f"m{i}" for i in range(4000))])
    state = torch.get_rng_state()
    vectors, found = load_vectors(path, vocabulary, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == 500
    np.testing.assert_array_equal(vectors[2:502], rows.astype(np.float32))
    # Five standard errors of 4,000 draws around the moments of the 500 found rows.
    drawn = vectors[502:].double().numpy()
    tolerance = 5 * rows.std(0) / 4000**0.5
    assert (abs(drawn.mean(0) - rows.mean(0)) < tolerance).all()
    assert (abs(drawn.std(0) - rows.std(0)) < tolerance).all()
    assert len(np.unique(drawn, axis=0)) == 4000
    assert torch.equal(load_vectors(path, vocabulary, seed=3)[0], vectors)
    assert not torch.equal(load_vectors(path, vocabulary, seed=4)[0], vectors)


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
        ("the 1 2 3\n\ncat 1 2 3\n", ":2: expected 3 numbers, got 0"),
        ("the 1 2 3\ncat 1 2 3 4\n", ":2: expected 3 numbers, got 4"),
        ("2 300\nthe 1 2 3\n", ":2: expected 300 numbers, got 3"),
        ("the 1 2 3\ncat 1 x 3\n", ":2: expected a finite number, got 'x'"),
        ("the 1 2 3\ncat 1  3\n", ":2: expected a finite number, got ''"),
        ("the 1 2 3\ncat 1 2 nan\n", ":2: expected a finite number, got 'nan'"),
        ("the 1 2 3\nCat 1 -inf 2\n", ":2: expected a finite number, got '-inf'"),
        ("the 1 2 3\ncat 1 1e39 2\n", ":2: expected a finite number, got '1e39'"),
        (b"the 1 \xff\n", ":1: expected a finite number, got '\ufffd'"),
    ],
)
def test_bad_text(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, "v.txt", content)
    with pytest.raises(DataError) as caught:
        load_vectors(path, VOCABULARY)
    assert str(caught.value) == f"{path}{message}"


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
        ({"words": WORDS, "vectors": NUMBERS * np.nan}, "expected finite numbers, got others in the vector of 'the'"),
        (
            {"words": WORDS.astype(object), "vectors": NUMBERS},
            "expected an .npz archive of plain arrays",
        ),
        (
            {"words": np.array(["of", "or"]), "vectors": NUMBERS},
            "expected vectors of the vocabulary's words, got none of 5",
        ),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = write_npz(tmp_path, **arrays)
    with pytest.raises(DataError) as caught:
        load_vectors(path, VOCABULARY)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(message)


def test_not_an_npz(tmp_path: Path) -> None:
    archive = io.BytesIO()
    np.savez_compressed(archive, words=np.array(["the"]), vectors=np.random.default_rng(0).random((1, 500)))
    array = io.BytesIO()
    np.save(array, NUMBERS)
    whole = archive.getvalue()
    for data in (b"", b"the 1 2 3\n", whole[: len(whole) // 2], whole[:700] + bytes(60) + whole[760:]):
        with pytest.raises(DataError, match=r"v\.npz: expected an \.npz archive of plain arrays$"):
            load_vectors(write(tmp_path, "v.npz", data), VOCABULARY)
    with pytest.raises(DataError, match=r"v\.npz: expected the arrays words and vectors, got none$"):
        load_vectors(write(tmp_path, "v.npz", array.getvalue()), VOCABULARY)


@pytest.mark.parametrize("name", ["none.txt", "none.npz"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_vectors(tmp_path / name, VOCABULARY)
    assert str(caught.value) == f"{tmp_path / name}: No such file or directory"


def test_real_glove(real_data: Path) -> None:
    vocabulary = Vocabulary(["<unk>", "<pad>", "man", "the", "xyzzyx"])
    vectors, found = load_vectors(real_data / "vectors/glove.6B.50d.top9162.txt.gz", vocabulary)
    assert vectors.shape == (5, 50)
    assert found == 2
    np.testing.assert_array_equal(vectors[3, :3], np.array([0.418, 0.24968, -0.41242], dtype=np.float32))


def test_real_word2vec(real_data: Path) -> None:
    path = real_data / "vectors/word2vec_googlenews_300d_8007.npz"
    with np.load(path) as archive:
        words, expected = archive["words"].tolist(), archive["vectors"].astype(np.float32)
    vectors, found = load_vectors(path, Vocabulary(["<unk>", "<pad>", *reversed(words)]))
    assert found == 8007
    np.testing.assert_array_equal(vectors[2:], expected[::-1])
