"""Sentences to words, by tokenizers that a saved model can name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Set
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import DataError, kind_and_reason

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer

Tokenizer: TypeAlias = Callable[[str], Iterable[str]]


@cache
def _treebank() -> NLTKWordTokenizer:
    """What word_tokenize(text, preserve_line=True) uses: Treebank's conventions, on the text as one sentence.

    NLTK is imported when first needed: it brings in SciPy and scikit-learn where they are installed, seconds that
    nobody should wait for who only wants the network, or has plain sentences.
    """
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


# Nineteen in twenty of SNLI's sentences are words with commas between and a full stop at the end.  For these, all of
# NLTK's rules but some of the contractions ("cannot" gives "can", "not") come to splitting off the punctuation.
_PLAIN = re.compile(r"[A-Za-z0-9 ]*(?:, [A-Za-z0-9 ]*)*(?:\. *)?")
_CONTRACTION = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b", re.IGNORECASE)
NOT_PLAIN = "'"  # a text for which a tokenizer imports all that it ever needs


def _spaced(text: str) -> str | None:
    """A plain text with blanks between its words, for an answer ten times as fast as NLTK's; None for any other."""
    if not _PLAIN.fullmatch(text):
        return None
    spaced = f" {text} ".replace(",", " ,").replace(".", " .")
    return None if _CONTRACTION.search(spaced) else spaced


def _nltk_cased(text: str) -> list[str]:
    spaced = _spaced(text)
    return _treebank().tokenize(text) if spaced is None else spaced.split()


# Words are lowered after the text is split, as torchtext's Field(tokenize=word_tokenize, lower=True) does: the
# Treebank rules look at case ("DON'T" gives "do", "n't" but "Don'T" stays whole), so the other order differs.
def _nltk(text: str) -> list[str]:
    spaced = _spaced(text)
    return [word.lower() for word in _treebank().tokenize(text)] if spaced is None else spaced.lower().split()


# As coetaur0/ESIM's files are prepared: the case is kept, and every sentence stands between two words of its own.
def _coetaur0(text: str) -> list[str]:
    return ["_BOS_", *_nltk_cased(text), "_EOS_"]


def _nltk_punkt(text: str) -> list[str]:
    from nltk.tokenize import word_tokenize  # slow to import, see _treebank

    return [word.lower() for word in word_tokenize(text)]


def _whitespace(text: str) -> list[str]:
    return text.lower().split()


# For Chinese and its like, where characters are the units, but a Latin word among them or a number is one unit still.
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
    """The tokenizer of that name: a function from a sentence to its words, none of which holds whitespace.

    ``"nltk"`` splits as NLTK's ``word_tokenize(text, preserve_line=True)``, lowers the words, and needs no download.
    ``"nltk-cased"`` keeps their case.  ``"nltk-punkt"`` is ``word_tokenize(text)``, lowered, which first splits
    sentences with NLTK's Punkt data and so also sets off the full stop that ends a sentence in the middle of the text.
    ``"whitespace"`` is for text that is tokenized already, ``"characters"`` for Chinese: every character is a word, but
    Latin letters and digits in a row stay together; both lower the text.  ``"coetaur0"`` is ``"nltk-cased"`` between
    ``_BOS_`` and ``_EOS_``, as that project's models want it.  ``"module:function"`` is any function of yours.

    Raises:
        ValueError: no tokenizer has this name.
        DataError: the Punkt data is not installed, or the module has no such function.
    """
    module, colon, function = name.partition(":")
    if colon:
        return _import(name, module, function)
    if name not in TOKENIZERS:
        raise ValueError(f"expected a tokenizer among {', '.join(TOKENIZERS)} or module:function, got {name!r}")
    if name == "nltk-punkt":
        import nltk  # slow to import

        try:
            nltk.data.find("tokenizers/punkt_tab/english/")
        except LookupError as error:
            raise DataError(
                "tokenizer nltk-punkt: expected NLTK's data punkt_tab; get it with: python -m nltk.downloader punkt_tab"
            ) from error
    return TOKENIZERS[name]


def split(sentence: str, tokenize: Tokenizer, name: str) -> list[str]:
    """What a tokenizer returns for a sentence, as a list; whether these are words is for :func:`check_words`.

    Raises:
        DataError: a tokenizer of the user's raises something, or returns what has no words in their order.
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
    """Looks at the words of a sentence.

    Raises:
        DataError: one of them is no string, or empty.
    """
    for word in words:
        if not isinstance(word, str) or not word:
            kind, got = ("", "an empty one") if isinstance(word, str) else (" that are strings", type(word).__name__)
            raise DataError(f"tokenizer {name}: expected words{kind}, got {got} for {sentence[:40]!r}")


def name_of(tokenizer: str | Tokenizer) -> str:
    """The name to keep with what a tokenizer was used for: of a function of yours, where it was defined."""
    if isinstance(tokenizer, str):
        return tokenizer
    kind = tokenizer if hasattr(tokenizer, "__qualname__") else type(tokenizer)
    return f"{getattr(kind, '__module__', 'builtins')}:{kind.__qualname__}"


def _import(name: str, module: str, function: str) -> Tokenizer:
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:  # the module is the user's and may raise anything
        raise DataError(f"tokenizer {name}: {kind_and_reason(error)}") from error
    if not callable(found):
        raise DataError(f"tokenizer {name}: expected a function, got {type(found).__name__}")
    return found
