"""Tokenizers give NLTK's words in lowercase."""

import random
import re
import string
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer, word_tokenize

from esim_fast.data import get_tokenizer, read_pairs
from esim_fast.tokenizing import name_of
from tests.data.files import assert_linear, refusal

pieces = st.sampled_from(["a", "B", "5", " ", " ", ", ", ",", ".", "'", "cannot", "Gonna", "wanna", "more'n", "can't"])
texts = st.text() | st.text("aB.'\"`,:-$( )\n?") | st.lists(pieces).map("".join)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("nltk", "A man isn't sleeping.", ["a", "man", "is", "n't", "sleeping", "."]),
        ("nltk", 'He said: "Go, now!"', ["he", "said", ":", "``", "go", ",", "now", "!", "''"]),
        ("nltk", "It costs $3.88 (or so).", ["it", "costs", "$", "3.88", "(", "or", "so", ")", "."]),
        ("nltk", "One sentence. And another.", ["one", "sentence.", "and", "another", "."]),
        ("nltk", "DON'T Don'T", ["do", "n't", "don't"]),  # split first, then lowercased
        ("nltk", "Ünïcode\u2028\x85\x1c\u00a0CAFÉ", ["ünïcode", "café"]),
        ("nltk", "I Cannot wait, gonna go", ["i", "can", "not", "wait", ",", "gon", "na", "go"]),
        ("nltk", "3 of us, , .", ["3", "of", "us", ",", ",", "."]),
        ("nltk", "Well, he can't.", ["well", ",", "he", "ca", "n't", "."]),
        ("nltk", "They wanna.", ["they", "wan", "na", "."]),
        ("nltk", " \t ", []),
        ("nltk-cased", "Don't wake Ann.", ["Do", "n't", "wake", "Ann", "."]),
        ("coetaur0", "Ann sleeps.", ["_BOS_", "Ann", "sleeps", ".", "_EOS_"]),
        ("whitespace", " A man\u3000isn't\tHERE. ", ["a", "man", "isn't", "here."]),
        ("characters", "花呗如何还款?", list("花呗如何还款?")),
        ("characters", "iPhone 15怎么 用，99元", ["iphone", "15", "怎", "么", "用", "，", "99", "元"]),
        ("characters", "ÉTÉ\u2028🙂", ["é", "t", "é", "🙂"]),
    ],
)
def test_words(name, text, words):
    assert get_tokenizer(name)(text) == words
    if name == "nltk":  # the default
        assert get_tokenizer()(text) == words


@pytest.mark.parametrize("name", ["nltk", "whitespace", "characters"])
@given(text=texts)
def test_words_are_never_empty_and_hold_no_whitespace(name, text):
    assert get_tokenizer(name)(" \n") == get_tokenizer(name)("") == []
    words = get_tokenizer(name)(text)
    assert all(words)
    assert not any(map(str.isspace, "".join(words)))


@given(texts)
def test_nltk_is_word_tokenize_lowered(text):
    assert get_tokenizer("nltk")(text) == [word.lower() for word in word_tokenize(text, preserve_line=True)]


def test_all_contractions_of_nltks():
    """Those of the installed release; esim_fast splits plain sentences without NLTK."""
    for rule in NLTKWordTokenizer.CONTRACTIONS2:
        contraction = "".join(re.findall(r"\(([\w']+)\)", rule.pattern))
        text = f"I {contraction} go."
        words = word_tokenize(text, preserve_line=True)
        assert len(words) == 5
        assert get_tokenizer("nltk-cased")(text) == words


def test_nltk_on_real_sentences(real_data):
    tokenize = get_tokenizer("nltk")
    for pair in islice(read_pairs(real_data / "mnli/dev_matched.tsv.gz"), 2000):
        assert tokenize(pair.premise) == [word.lower() for word in word_tokenize(pair.premise, preserve_line=True)]


@pytest.fixture
def nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder as NLTK's only data path."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    yield tmp_path
    nltk.tokenize._get_punkt_tokenizer.cache_clear()


def test_punkt_splits_sentences_first(nltk_data):
    missing = "tokenizer nltk-punkt: NLTK's data punkt_tab is missing; run `python -m nltk.downloader punkt_tab`"
    assert refusal(get_tokenizer, "nltk-punkt") == missing
    folder = nltk_data / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    # Punkt's parameters, with "mr" learned as an abbreviation.
    (folder / "abbrev_types.txt").write_text("mr")
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    text = "Mr. Smith slept. HE woke."
    assert get_tokenizer("nltk-punkt")(text) == ["mr.", "smith", "slept", ".", "he", "woke", "."]
    assert get_tokenizer("nltk")(text) == ["mr.", "smith", "slept.", "he", "woke", "."]


@pytest.mark.parametrize("piece", [" ", "a", ", ", ",", ".", "'", '"', "(", "$", "-", "can", "`", ". "])
def test_time_is_linear_in_the_text(piece):
    assert_linear(lambda count: get_tokenizer()(f"A man{piece * count}!"))


def test_a_function_by_name():
    assert get_tokenizer("string:capwords") is string.capwords
    assert get_tokenizer("builtins:str.split") is str.split
    assert name_of(string.capwords) == "string:capwords"
    assert name_of(str.split) == "builtins:str.split"
    assert name_of(random.choices) == "random:choices"  # a method of an object, as jieba.lcut
    assert get_tokenizer("random:choices") == random.choices
    assert name_of("nltk") == "nltk"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at.all:split", "ModuleNotFoundError: No module named 'nowhere'"),
        ("string:nothing", "AttributeError: module 'string' has no attribute 'nothing'"),
        ("string:digits", "expected a function, got str"),
        (".text:split", "TypeError: the 'package' argument is required to perform a relative import for '.text'"),
        (":split", "ValueError: Empty module name"),
        ("broken_words:split", "SyntaxError: "),
    ],
)
def test_a_function_that_is_not_there(tmp_path, monkeypatch, name, message):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_words.py").write_text("def split(:\n")
    said = refusal(get_tokenizer, name)
    assert said.startswith(f"tokenizer {name}: {message}")
    assert said.endswith(message) or name == "broken_words:split"
    with pytest.raises(ValueError, match=r"^tokenizer must be one of nltk, .*, coetaur0 or module:f.*, got 'spacy'$"):
        get_tokenizer("spacy")
