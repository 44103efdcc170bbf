"""Pretrained vectors: the right row at the right id, and what is said about files that are wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esim_fast.data import PADDING_ID, UNKNOWN_ID, DataError, Vocabulary, load_vectors, words_with_vector
from esim_fast.data import vectors as vectors_module
from tests.data.vector_rows import ROWS, VOCABULARY, Rows, as_binary, as_text, write, write_npz


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["MCDONALD 4", "Mcdonald 3", "mcdonald 2", "McDonald 1"], 1),
        (["MCDONALD 4", "Mcdonald 3", "mcdonald 2"], 2),
        (["MCDONALD 4", "Mcdonald 3"], 3),
        (["MCDONALD 4", "mcDonald 5"], 4),
    ],
)
def test_case_of_a_cased_vocabulary(tmp_path, lines, expected):
    path = write(tmp_path, "v.txt", "".join(f"{line}\n" for line in lines))
    result = load_vectors(path, Vocabulary(["<unk>", "<pad>", "McDonald"]))
    assert result.found == 1
    assert result.matrix[2].item() == expected


def test_cased_vocabulary_shares_a_spelling(tmp_path):
    _, vectors, found = load_vectors(
        write(tmp_path, "v.txt", "Paris 2\n"), Vocabulary(["<unk>", "<pad>", "paris", "Paris"])
    )
    assert found == 2
    assert vectors[2:].tolist() == [[2], [2]]


def test_more_words(tmp_path):
    path = write(tmp_path, "v.txt", "usa 1\nzebra 2\nthe 3\nApe 4\n<pad> 5\n<unk> 6\nyak 7\n a 8\n")
    more = ["yak", "the", "unheard of", "zebra", "", "<pad>", "a\nb", "yak", "<unk>", "\ud83d", "ape", "none", "paris"]
    vocabulary, matrix, found = load_vectors(path, VOCABULARY, more_words=more)
    assert vocabulary.words == [*VOCABULARY.words, "yak", "zebra", "ape"]
    assert matrix[:, 0][[2, 5, 7, 8, 9]].tolist() == [3, 1, 7, 2, 4]
    assert found == 5
    assert VOCABULARY.words[-1] == "unheard"
    # All rows found are what the others resemble, and those of more_words are drawn for nobody else.
    generator = torch.Generator().manual_seed(0)
    expected = torch.tensor([3, 1, 7, 2, 4.0]).mean() + torch.tensor([3, 1, 7, 2, 4.0]).std(correction=0) * torch.randn(
        5, 1, generator=generator
    )
    torch.testing.assert_close(matrix[[0, 3, 4, 6]], expected[[0, 2, 3, 4]])


def test_only_more_words_found(tmp_path):
    vocabulary, matrix, found = load_vectors(
        write(tmp_path, "v.txt", "yak 7\n"), VOCABULARY, more_words=["yak", "none"]
    )
    assert vocabulary.words == [*VOCABULARY.words, "yak"]
    assert matrix[:, 0].tolist() == [7, 0, 7, 7, 7, 7, 7, 7]
    assert found == 1


class TestCache:
    """Rows that were found once are not looked for again, unless anything that decides them is another."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path, "v.txt", ROWS + "paris 3 2 1\nZebra 7 7 7\n")

    @pytest.fixture
    def parsed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the files that were parsed."""
        names, parse = [], vectors_module.wanted_rows

        def noting(name: str, wanted: object) -> object:
            names.append(name)
            return parse(name, wanted)

        monkeypatch.setattr(vectors_module, "wanted_rows", noting)
        return names

    def test_second_time(self, path, tmp_path, parsed):
        first = load_vectors(path, VOCABULARY, more_words=["zebra", "ape"], cache=tmp_path / "cache")
        first.matrix[2] = 0  # its memory is not the file's
        again = load_vectors(path, VOCABULARY, more_words=["zebra", "ape"], cache=tmp_path / "cache")
        without = load_vectors(path, VOCABULARY, more_words=["zebra", "ape"])
        assert parsed == [str(path)] * 2
        assert again.vocabulary == without.vocabulary
        assert torch.equal(again.matrix, without.matrix)
        assert again.found == without.found == 4

    def test_seed(self, path, tmp_path, parsed):
        zero, one = (load_vectors(path, VOCABULARY, seed=seed, cache=tmp_path / "cache").matrix for seed in (0, 1))
        assert len(parsed) == 1
        assert torch.equal(zero[2:5], one[2:5])
        assert not torch.equal(zero[UNKNOWN_ID], one[UNKNOWN_ID])
        assert torch.equal(one, load_vectors(path, VOCABULARY, seed=1).matrix)

    def test_other_words(self, path, tmp_path, parsed):
        vocabularies = [VOCABULARY, Vocabulary([*VOCABULARY.words, "of"]), Vocabulary(["<unk>", "<pad>", "cat", "the"])]
        for vocabulary in vocabularies:
            cached = load_vectors(path, vocabulary, cache=tmp_path / "cache")
            assert torch.equal(cached.matrix, load_vectors(path, vocabulary).matrix)
        load_vectors(path, VOCABULARY, more_words=["zebra"], cache=tmp_path / "cache")
        load_vectors(path, VOCABULARY, more_words=["the"], cache=tmp_path / "cache")  # no other words
        assert len(parsed) == 7

    def test_other_content(self, path, tmp_path, parsed):
        load_vectors(path, VOCABULARY, cache=tmp_path / "cache")
        path.write_text(ROWS.replace("the 1", "the 5"))
        assert load_vectors(path, VOCABULARY, cache=tmp_path / "cache").matrix[2, 0] == 5
        assert len(parsed) == 2

    def test_damaged(self, path, tmp_path, parsed):
        expected = load_vectors(path, VOCABULARY, cache=tmp_path / "cache").matrix
        (kept,) = (tmp_path / "cache").glob("*.safetensors")
        data = kept.read_bytes()
        for damaged in (b"", data[:-1], data[:-1] + b"\1"):
            kept.write_bytes(damaged)
            assert torch.equal(load_vectors(path, VOCABULARY, cache=tmp_path / "cache").matrix, expected)
        assert len(parsed) == 4

    def test_error(self, tmp_path, parsed):
        path = write(tmp_path, "v.txt", "the 1 2 3\nunneeded 1\n")
        for _ in range(2):
            with pytest.raises(DataError, match=":2: expected 3 numbers, got 1"):
                load_vectors(path, VOCABULARY, cache=tmp_path / "cache")
        assert len(parsed) == 2


floats = st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32)


# Without the characters that end a word or a line in the file, and of one case, so that no word stands in for another.
file_words = st.text(
    st.characters(exclude_categories=["Cs", "Lu", "Ll", "Lt"], exclude_characters=" \n\r\0"), min_size=1
)


@st.composite
def tables(draw: st.DrawFn) -> Rows:
    words = draw(st.lists(file_words, min_size=1, max_size=5, unique=True))
    dimension = draw(st.integers(1, 4))
    return [(word, np.array(draw(st.tuples(*[floats] * dimension)), dtype=np.float32)) for word in words]


@pytest.mark.parametrize("form", ["glove", "word2vec text", "word2vec binary", "gensim binary", "npz"])
@given(rows=tables())
def test_whatever_is_written_reads_back(tmp_path_factory, form, rows):
    folder = tmp_path_factory.mktemp("vectors")
    if form == "npz":
        words, vectors = zip(*rows, strict=True)
        path = write_npz(folder, words=np.array(words), vectors=np.array(vectors))
    elif form.endswith("binary"):
        path = write(folder, "v.bin", as_binary(rows, b"\n" if form.startswith("word2vec") else b""))
    else:
        dimension = len(rows[0][1])
        # Not GloVe's first row, or a file of single numbers might begin with what looks like a header.
        first = f"{len(rows)} {dimension}\n" if form == "word2vec text" else f"1st{dimension * ' 0'}\n"
        path = write(folder, "v.txt", first.encode() + as_text(rows))
    result = load_vectors(path, Vocabulary(["<unk>", "<pad>", *(word for word, _ in rows)]))
    assert result.found == len(rows)
    assert result.matrix[2:].numpy().tobytes() == np.array([row for _, row in rows]).tobytes()


def test_special_words_are_not_looked_up(tmp_path):
    _, vectors, found = load_vectors(write(tmp_path, "v.txt", "<unk> 100\n<pad> 100\nthe 1\ncat 2\n"), VOCABULARY)
    assert found == 2
    assert abs(vectors[UNKNOWN_ID].item()) < 10
    assert vectors[PADDING_ID].item() == 0


def test_missing_words_resemble_the_found_ones(tmp_path):
    generator = np.random.default_rng(0)
    mean, deviation = np.array([5, -3, 0]), np.array([0.1, 2, 1])
    rows = generator.normal(mean, deviation, size=(500, 3))
    path = write(tmp_path, "v.txt", "".join(f"w{i} {' '.join(map(str, row))}\n" for i, row in enumerate(rows)))
    vocabulary = Vocabulary(["<unk>", "<pad>", *(f"w{i}" for i in range(500)), *(f"m{i}" for i in range(4000))])
    state = torch.get_rng_state()
    _, vectors, found = load_vectors(path, vocabulary, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == 500
    np.testing.assert_array_equal(vectors[2:502], rows.astype(np.float32))
    # Five standard errors of 4,000 draws around the moments of the 500 found rows.
    drawn = vectors[502:].double().numpy()
    tolerance = 5 * rows.std(0) / 4000**0.5
    assert (abs(drawn.mean(0) - rows.mean(0)) < tolerance).all()
    assert (abs(drawn.std(0) - rows.std(0)) < tolerance).all()
    assert len(np.unique(drawn, axis=0)) == 4000
    assert torch.equal(load_vectors(path, vocabulary, seed=3).matrix, vectors)
    assert not torch.equal(load_vectors(path, vocabulary, seed=4).matrix, vectors)


def test_real_glove(real_data):
    vocabulary = Vocabulary(["<unk>", "<pad>", "man", "the", "xyzzyx"])
    _, vectors, found = load_vectors(real_data / "vectors/glove.6B.50d.top9162.txt.gz", vocabulary)
    assert vectors.shape == (5, 50)
    assert found == 2
    np.testing.assert_array_equal(vectors[3, :3], np.array([0.418, 0.24968, -0.41242], dtype=np.float32))


def test_real_word2vec(real_data):
    path = real_data / "vectors/word2vec_googlenews_300d_8007.npz"
    with np.load(path) as archive:
        words, expected = archive["words"].tolist(), archive["vectors"].astype(np.float32)
    _, vectors, found = load_vectors(path, Vocabulary(["<unk>", "<pad>", *reversed(words)]))
    assert found == 8007
    np.testing.assert_array_equal(vectors[2:], expected[::-1])


def test_words_with_vector(tmp_path):
    path = write(tmp_path, "v.txt", ROWS)
    assert words_with_vector(path, ["cat", "CAT", "unheard", "<pad>", "the", "the"], cache=tmp_path) == [
        "cat",
        "CAT",
        "the",
    ]
    assert words_with_vector(path, ["unheard"], cache=tmp_path) == []
    with pytest.raises(DataError, match=r"v\.txt: expected vectors of the vocabulary's words, got none of 1$"):
        load_vectors(path, Vocabulary(["<unk>", "<pad>", "unheard"]), cache=tmp_path)
