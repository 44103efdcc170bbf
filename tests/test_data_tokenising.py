"""Tokenisers: NLTK's answers, lower-cased afterwards."""

from collections.abc import Iterator
from pathlib import Path

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize

from esim_fast.data import DataError, Pair, get_tokeniser, read_pairs, tokenise_pairs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man isn't sleeping.", ["a", "man", "is", "n't", "sleeping", "."]),
        ('He said: "Go, now!"', ["he", "said", ":", "``", "go", ",", "now", "!", "''"]),
        ("It costs $3.88 (or so).", ["it", "costs", "$", "3.88", "(", "or", "so", ")", "."]),
        ("One sentence. And another.", ["one", "sentence.", "and", "another", "."]),
        ("DON'T Don'T", ["do", "n't", "don't"]),  # split first, then lowered
        ("Ünïcode\u2028\x85\x1c\u00a0CAFÉ", ["ünïcode", "café"]),
        (
            "I Cannot wait, gonna go, 3 of us, , .",
            ["i", "can", "not", "wait", ",", "gon", "na", "go"] + [",", "3", "of", "us", ",", ",", "."],
        ),
        ("Well, he can't.", ["well", ",", "he", "ca", "n't", "."]),
        ("They wanna.", ["they", "wan", "na", "."]),
        ("", []),
        (" \t ", []),
    ],
)
def test_nltk(text: str, words: list[str]) -> None:
    assert get_tokeniser()(text) == words
    assert get_tokeniser("nltk")(text) == words


pieces = st.sampled_from(["a", "B", "5", " ", " ", ", ", ",", ".", "'", "cannot", "Gonna", "wanna", "more'n", "can't"])


@given(st.text() | st.text("aB.'\"`,:-$( )\n?") | st.lists(pieces).map("".join))
def test_nltk_is_word_tokenize_lowered_without_whitespace(text: str) -> None:
    words = get_tokeniser("nltk")(text)
    assert words == [word.lower() for word in word_tokenize(text, preserve_line=True)]
    assert not any(character.isspace() for word in words for character in word)
    assert all(words)


def test_nltk_on_real_sentences(real_data: Path) -> None:
    tokenise = get_tokeniser("nltk")
    for pair in read_pairs(real_data / "mnli/dev_matched.tsv.gz").pairs[:2000]:
        assert tokenise(pair.premise) == [word.lower() for word in word_tokenize(pair.premise, preserve_line=True)]


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^expected a tokeniser among nltk, nltk-punkt, got 'spacy'$"):
        get_tokeniser("spacy")


@pytest.fixture
def nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder as the only place where NLTK looks for data."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    yield tmp_path
    nltk.tokenize._get_punkt_tokenizer.cache_clear()


@pytest.mark.usefixtures("nltk_data")
def test_punkt_without_its_data() -> None:
    with pytest.raises(DataError) as caught:
        get_tokeniser("nltk-punkt")
    assert str(caught.value) == (
        "tokeniser nltk-punkt: expected NLTK's data punkt_tab; get it with: python -m nltk.downloader punkt_tab"
    )


def test_punkt_splits_sentences_first(nltk_data: Path) -> None:
    folder = nltk_data / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    # Punkt's parameters, with one thing learnt: "mr" is an abbreviation.
    for name, content in {
        "abbrev_types.txt": "mr",
        "collocations.tab": "",
        "sent_starters.txt": "",
        "ortho_context.tab": "",
    }.items():
        (folder / name).write_text(content)
    text = "Mr. Smith slept. HE woke."
    assert get_tokeniser("nltk-punkt")(text) == ["mr.", "smith", "slept", ".", "he", "woke", "."]
    assert get_tokeniser("nltk")(text) == ["mr.", "smith", "slept.", "he", "woke", "."]


def test_pairs_are_tokenised_once_per_sentence() -> None:
    seen: list[str] = []

    def tokeniser(text: str) -> list[str]:
        seen.append(text)
        return text.split()

    pairs = [Pair("a b", "c", "x", 1), Pair("a b", "", None, 2), Pair("c", "a b", "x", 3)]
    assert tokenise_pairs(pairs, tokeniser) == [(["a", "b"], ["c"]), (["a", "b"], []), (["c"], ["a", "b"])]
    assert seen == ["a b", "c", ""]
