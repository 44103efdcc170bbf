"""The vocabulary: ids, special words, and its file."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esim_fast.data import PADDING, PADDING_ID, UNKNOWN, UNKNOWN_ID, Vocabulary
from tests.data.files import refusal, vocabulary_of


def count(sentences: Iterable[Sequence[str]]) -> Counter[str]:
    return Counter(chain.from_iterable(sentences))


def test_build_orders_by_frequency_then_alphabet():
    counts = count([["the", "cat", "the"], [], ["dog", "cat", "bird"], ["the"]])
    assert Vocabulary.build(counts) == vocabulary_of("the", "cat", "bird", "dog")
    assert Vocabulary.build(counts, min_count=2) == vocabulary_of("the", "cat")
    assert Vocabulary.build({}) == vocabulary_of() != ["<unk>", "<pad>"]
    assert Vocabulary.build({"a": 1}) != vocabulary_of("b")


@pytest.mark.parametrize("words", [{"<unk>": 0, "<pad>": 1, "a": 2}, {"<unk>", "<pad>"}, "ab", {"<pad>": 1}.keys()])
def test_words_without_an_order(words):
    with pytest.raises(TypeError, match=r"^words must be a list in the order of their ids, got "):
        Vocabulary(words)


def test_encode():
    vocabulary = vocabulary_of("a", "b")
    assert len(vocabulary) == 4
    assert vocabulary.encode(["b", "c", "a"]) == [3, UNKNOWN_ID, 2]
    assert vocabulary.encode([]) == []
    assert "a" in vocabulary
    assert "c" not in vocabulary
    # In a text, special words are unknown.
    assert vocabulary.words[UNKNOWN_ID] == UNKNOWN
    assert vocabulary.words[PADDING_ID] == PADDING
    assert vocabulary.encode(["<pad>", "<unk>", "a"]) == [UNKNOWN_ID, UNKNOWN_ID, 2]
    assert PADDING not in vocabulary
    assert UNKNOWN not in vocabulary
    assert Vocabulary.build({"<pad>": 2, "<unk>": 1, "a": 1}).words == [UNKNOWN, PADDING, "a"]


def test_extended():
    vocabulary = vocabulary_of("b", "a")
    more = ["d", "a", "<pad>", "", "c", "x\ny", "d", "<unk>", "\r", "\ud83d", "e f"]
    assert vocabulary.extended(more).words == ["<unk>", "<pad>", "b", "a", "d", "c", "e f"]
    assert vocabulary.extended(more).encode(["e f", "b"]) == [6, 2]
    assert vocabulary.extended(iter([])) == vocabulary
    assert len(vocabulary) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected <unk> and <pad> first, got 0 words"),
        (["<unk>"], "expected <unk> and <pad> first, got 1 words"),
        (["<pad>", "<unk>"], "word 0: expected <unk>, got '<pad>'"),
        (["<unk>", "a"], "word 1: expected <pad>, got 'a'"),
        (["<unk>", "<pad>", "a", "b", "a"], "expected distinct words, got 'a' 2 times"),
        (["<unk>", "<pad>", "<pad>"], "expected distinct words, got '<pad>' 2 times"),
        (["<unk>", "<pad>", ""], "word 2: expected a word without line breaks, got ''"),
        (["<unk>", "<pad>", "a\nb"], r"word 2: expected a word without line breaks, got 'a\nb'"),
        (["<unk>", "<pad>", "a\r"], r"word 2: expected a word without line breaks, got 'a\r'"),
        (["<unk>", "<pad>", "\ud83d"], r"word 2: expected a word without line breaks, got '\ud83d'"),
    ],
)
def test_bad_words(words, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Vocabulary(words)
    if len(words) == 3 and "line breaks" in message:
        with pytest.raises(ValueError, match="expected a word without line breaks"):
            Vocabulary.build({words[2]: 1})


def test_file_format(tmp_path):
    path = tmp_path / "vocabulary.txt"
    vocabulary_of("é", "a").save(path)
    assert path.read_bytes() == "<unk>\n<pad>\né\na\n".encode()
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert Vocabulary.load(path) == vocabulary_of("é", "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": expected <unk> and <pad> first, got 0 lines"),
        (b"<unk>\n", ": expected <unk> and <pad> first, got 1 lines"),
        (b"the\ncat\n", ":1: expected <unk>, got 'the'"),
        (b"<unk>\r\n<pad>\r\n", r":1: expected <unk>, got '<unk>\r'"),
        (b"<unk>\n<pad>\na\nb\na\n", ":5: expected distinct words, got 'a' as on line 3"),
        (b"<unk>\n<pad>\na\n\nb\n", ":4: expected a word without line breaks, got ''"),
        (b"<unk>\n<pad>\na\xff\n", ":3: not valid UTF-8 at byte 2"),
    ],
)
def test_bad_file(tmp_path, content, message):
    path = tmp_path / "vocabulary.txt"
    assert refusal(Vocabulary.load, path) == f"{path}: No such file or directory"
    path.write_bytes(content)
    assert refusal(Vocabulary.load, path) == f"{path}{message}"


words = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1)
lines_that_are_not = st.sampled_from(["a\u2028b", "a\x85b", "\x1c", "\x0b\x0c", "\ufeff", " ", "a\x00"])


@pytest.mark.parametrize("name", ["vocabulary.txt", "vocabulary.txt.gz"])
@given(sentences=st.lists(st.lists(words | lines_that_are_not)))
def test_any_word_survives_the_file(tmp_path_factory, name, sentences):
    path = tmp_path_factory.mktemp("vocabulary") / name
    vocabulary = Vocabulary.build(count(sentences))
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
