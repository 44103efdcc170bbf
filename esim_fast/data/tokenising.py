"""Sentences to lower-cased words, by tokenisers that a saved model can name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from .reading import DataError, Pair

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer

Tokeniser: TypeAlias = Callable[[str], list[str]]
TokenPair: TypeAlias = tuple[list[str], list[str]]


@cache
def _treebank() -> NLTKWordTokenizer:
    """What word_tokenize(text, preserve_line=True) uses: Treebank's conventions, on the text as one sentence.

    NLTK is imported when first needed: it brings in SciPy and scikit-learn where they are installed, a second that
    nobody should wait for who only wants the network.
    """
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


# Nineteen in twenty of SNLI's sentences are words with commas between and a full stop at the end.  For these, all of
# NLTK's rules but the contractions ("cannot" gives "can", "not") come to splitting off the punctuation.
_PLAIN = re.compile(r"[A-Za-z0-9 ]*(?:, [A-Za-z0-9 ]*)*\.? *")


def _split_words(text: str) -> list[str]:
    """NLTK's answer, ten times as fast on plain text."""
    if _PLAIN.fullmatch(text):
        spaced = f" {text} ".replace(",", " ,").replace(".", " .")
        if not any(rule.search(spaced) for rule in _treebank().CONTRACTIONS2):
            return spaced.split()
    return _treebank().tokenize(text)


# Words are lowered after the text is split, as torchtext's Field(tokenize=word_tokenize, lower=True) does: the
# Treebank rules look at case ("DON'T" gives "do", "n't" but "Don'T" stays whole), so the other order differs.
def _nltk(text: str) -> list[str]:
    return [word.lower() for word in _split_words(text)]


def _nltk_punkt(text: str) -> list[str]:
    from nltk.tokenize import word_tokenize

    return [word.lower() for word in word_tokenize(text)]


TOKENISERS: dict[str, Tokeniser] = {"nltk": _nltk, "nltk-punkt": _nltk_punkt}


def get_tokeniser(name: str = "nltk") -> Tokeniser:
    """The tokeniser of that name: a function from a sentence to its lower-cased words, none of which holds whitespace.

    ``"nltk"`` splits words as NLTK's ``word_tokenize(text, preserve_line=True)`` and needs no download.
    ``"nltk-punkt"`` is ``word_tokenize(text)``, which first splits sentences with NLTK's Punkt data and so also sets
    off the full stop that ends a sentence in the middle of the text.

    Raises:
        ValueError: no tokeniser has this name.
        DataError: the Punkt data is not installed.
    """
    if name not in TOKENISERS:
        raise ValueError(f"expected a tokeniser among {', '.join(TOKENISERS)}, got {name!r}")
    if name == "nltk-punkt":
        import nltk

        try:
            nltk.data.find("tokenizers/punkt_tab/english/")
        except LookupError as error:
            raise DataError(
                "tokeniser nltk-punkt: expected NLTK's data punkt_tab; get it with: python -m nltk.downloader punkt_tab"
            ) from error
    return TOKENISERS[name]


def tokenise_pairs(pairs: Sequence[Pair], tokeniser: Tokeniser) -> list[TokenPair]:
    """The words of every premise and hypothesis, in the pairs' order.

    Training needs them twice, to build the vocabulary and to encode, so they are a step of their own.
    Equal sentences share one list (SNLI has three hypotheses to a premise), which therefore must not be changed.
    """
    words: dict[str, list[str]] = {}
    for pair in pairs:
        for sentence in (pair.premise, pair.hypothesis):
            if sentence not in words:
                words[sentence] = tokeniser(sentence)
    return [(words[pair.premise], words[pair.hypothesis]) for pair in pairs]
