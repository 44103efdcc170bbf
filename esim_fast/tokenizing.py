"""Tokenizers that a saved model can name."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from functools import cache
from inspect import ismethod
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import DataError, kind_and_reason

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer

Tokenizer: TypeAlias = Callable[[str], Iterable[str]]


@cache
def _treebank() -> NLTKWordTokenizer:
    """Return the tokenizer behind ``word_tokenize(text, preserve_line=True)``: Treebank rules, on the text as one
    sentence.

    NLTK is imported on first use: it imports SciPy and scikit-learn if installed, which takes seconds.
    """
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


# 95 % of SNLI's sentences contain only words, commas and a final period. For these, NLTK's rules amount to splitting
# off the punctuation, except for some contractions ("cannot" becomes "can", "not").
_PLAIN = re.compile(r"[A-Za-z0-9 ]*(?:, [A-Za-z0-9 ]*)*(?:\. *)?")
_CONTRACTION = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b", re.IGNORECASE)
NOT_PLAIN = "'"  # a text that makes every tokenizer import all that it needs


def _spaced(text: str) -> str | None:
    """Return a plain text with spaces between its words, ten times as fast as NLTK would split it; None if it is not
    plain.
    """
    if not _PLAIN.fullmatch(text):
        return None
    spaced = f" {text} ".replace(",", " ,").replace(".", " .")
    return None if _CONTRACTION.search(spaced) else spaced


def _nltk_cased(text: str) -> list[str]:
    spaced = _spaced(text)
    return _treebank().tokenize(text) if spaced is None else spaced.split()


# Lowercase after splitting, as torchtext's Field(tokenize=word_tokenize, lower=True) does: the Treebank rules depend on
# case ("DON'T" becomes "do", "n't", but "Don'T" stays whole).
def _nltk(text: str) -> list[str]:
    spaced = _spaced(text)
    return [word.lower() for word in _treebank().tokenize(text)] if spaced is None else spaced.lower().split()


# coetaur0/ESIM's preprocessing keeps the case and adds a begin and an end token.
def _coetaur0(text: str) -> list[str]:
    return ["_BOS_", *_nltk_cased(text), "_EOS_"]


def _nltk_punkt(text: str) -> list[str]:
    from nltk.tokenize import word_tokenize  # slow to import, see _treebank

    return [word.lower() for word in word_tokenize(text)]


def _whitespace(text: str) -> list[str]:
    return text.lower().split()


# For Chinese and similar scripts: each character is a word, but a Latin word or a number stays whole.
_CHARACTER = re.compile(r"[a-z0-9]+|\S")


def _characters(text: str) -> list[str]:
    return _CHARACTER.findall(text.lower())


TOKENIZERS: dict[str, Tokenizer] = {
    "nltk": _nltk,
    "nltk-cased": _nltk_cased,
    "nltk-punkt": _nltk_punkt,
    "whitespace": _whitespace,
    "characters": _characters,
    "coetaur0": _coetaur0,
}


def get_tokenizer(name: str = "nltk") -> Tokenizer:
    """Return the tokenizer of this name, a function from a sentence to its words, which contain no whitespace.

    - ``"nltk"`` splits like NLTK's ``word_tokenize(text, preserve_line=True)`` and lowercases. It needs no download.
    - ``"nltk-cased"`` is the same without lowercasing.
    - ``"nltk-punkt"`` is ``word_tokenize(text)``, lowercased. It first splits sentences with NLTK's Punkt data, so
      the period of a sentence inside the text also becomes a word.
    - ``"whitespace"`` is for text that is already tokenized; it lowercases.
    - ``"characters"`` is for Chinese: every character is a word, but runs of Latin letters and digits stay together; it
      lowercases.
    - ``"coetaur0"`` is ``"nltk-cased"`` with ``_BOS_`` before and ``_EOS_`` after the sentence, as that project's
      models expect.
    - ``"module:function"`` is your own function.

    Raises:
        ValueError: no tokenizer has this name.
        DataError: the Punkt data is not installed, or the module has no such function.
    """
    module, colon, function = name.partition(":")
    if colon:
        return _import(name, module, function)
    if name not in TOKENIZERS:
        raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)} or module:function, got {name!r}")
    if name == "nltk-punkt":
        import nltk  # slow to import

        try:
            nltk.data.find("tokenizers/punkt_tab/english/")
        except LookupError as error:
            raise DataError(
                "tokenizer nltk-punkt: NLTK's data punkt_tab is missing; run `python -m nltk.downloader punkt_tab`"
            ) from error
    return TOKENIZERS[name]


def split(sentence: str, tokenize: Tokenizer, name: str) -> list[str]:
    """Return what a tokenizer returns for a sentence as a list. Its elements are checked by ``check_words``.

    Raises:
        DataError: a custom tokenizer raises an exception, or returns something other than an ordered collection.
    """
    try:
        found: Any = tokenize(sentence)
        if isinstance(found, list):
            return found
        if isinstance(found, Iterable) and not isinstance(found, (str, bytes, Mapping, Set)):
            return list(found)  # a generator may raise as well
    except Exception as error:
        raise DataError(f"tokenizer {name}: {kind_and_reason(error)}") from error
    raise DataError(f"tokenizer {name}: expected a list of words, got {type(found).__name__} for {sentence[:40]!r}")


def check_words(words: Iterable[Any], sentence: str, name: str) -> None:
    """Check that a tokenizer returned nonempty strings.

    Raises:
        DataError: a word is empty or not a string.
    """
    for word in words:
        if not isinstance(word, str) or not word:
            got = "an empty string" if isinstance(word, str) else type(word).__name__
            raise DataError(f"tokenizer {name}: expected words as nonempty strings, got {got} for {sentence[:40]!r}")


def name_of(tokenizer: str | Tokenizer) -> str:
    """Return the name to save for a tokenizer; for a function, ``module:function`` of its definition."""
    if isinstance(tokenizer, str):
        return tokenizer
    kind = tokenizer if hasattr(tokenizer, "__qualname__") else type(tokenizer)
    # A module may export a method of an object, as jieba exports lcut. The class's method could not be called later.
    if ismethod(kind) and getattr(sys.modules.get(kind.__module__), kind.__name__, None) == kind:
        return f"{kind.__module__}:{kind.__name__}"
    return f"{getattr(kind, '__module__', 'builtins')}:{kind.__qualname__}"


def _import(name: str, module: str, function: str) -> Tokenizer:
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module may raise anything
        raise DataError(f"tokenizer {name}: {kind_and_reason(error)}") from error
    if not callable(found):
        raise DataError(f"tokenizer {name}: expected a function, got {type(found).__name__}")
    return found
