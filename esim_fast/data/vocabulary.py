"""Map words to ids."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

from ..errors import DataError
from .compression import create_file
from .records import read_lines

UNKNOWN, UNKNOWN_ID = "<unk>", 0  # as in torchtext, so that embedding matrices made for it keep their rows
PADDING, PADDING_ID = "<pad>", 1

# A word is one line of the saved UTF-8 file. Carriage returns are excluded as well, because editors and version control
# rewrite them.
UNSAVABLE = re.compile("[\n\r\ud800-\udfff]")


class Vocabulary:
    """A list of words, where a word's index is its id: ``<unk>``, ``<pad>``, then the words of the text.

    The two special words never match words of a text. A literal ``<pad>`` in a text is encoded as unknown, like any
    other word that is not listed, and never as padding.

    Args:
        words: the full list of words, with the special ones first.

    Raises:
        TypeError: ``words`` has no order of ids: it is a dict, a set or a string.
        ValueError: the special words are not first, or a word is repeated, empty or contains a line break.
    """

    words: list[str]

    def __init__(self, words: Sequence[str]) -> None:
        if isinstance(words, (str, bytes, Mapping, Set)):
            hint = "; for ids by word, pass sorted(words, key=words.get)" if isinstance(words, Mapping) else ""
            raise TypeError(f"words must be a list in the order of their ids, got {type(words).__name__}{hint}")
        self.words = list(words)
        for index, word in enumerate(self.words):
            reason = _why_invalid(index, word)
            if reason:
                raise ValueError(f"word {index}: {reason}")
        if len(self.words) < 2:
            raise ValueError(f"expected {UNKNOWN} and {PADDING} first, got {len(self.words)} words")
        self._ids = {word: index for index, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise ValueError(f"expected distinct words, got {word[:100]!r} {count} times")
        del self._ids[UNKNOWN], self._ids[PADDING]

    @classmethod
    def build(cls, counts: Mapping[str, int], *, min_count: int = 1) -> "Vocabulary":
        """Build a vocabulary from word counts, the most frequent words first, then alphabetically.

        Args:
            counts: how often each word occurs.
            min_count: the least count of a word that is listed.

        Raises:
            ValueError: a word is empty or contains a line break.
        """
        frequent = [word for word, count in counts.items() if count >= min_count and word not in (UNKNOWN, PADDING)]
        return cls([UNKNOWN, PADDING, *sorted(frequent, key=lambda word: (-counts[word], word))])

    def extended(self, words: Iterable[str]) -> "Vocabulary":
        """Return this vocabulary followed by more words, in order of first occurrence.

        Words that it already lists are skipped, and so are words that it cannot list: the special words, and words that
        are empty or contain a line break.
        """
        more = {word: None for word in words if word not in self and not _why_invalid(2, word)}
        return Vocabulary([*self.words, *(word for word in more if word not in (UNKNOWN, PADDING))])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Load a vocabulary that ``save`` wrote.

        Raises:
            DataError: the file cannot be read, or has a line that ``save`` would not write.
        """
        name = os.fspath(path)
        lines: dict[str, int] = {}
        for number, line in enumerate(read_lines(path), start=1):
            try:
                word = line.removesuffix(b"\n").decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{name}:{number}: not valid UTF-8 at byte {error.start + 1}") from error
            reason = _why_invalid(number - 1, word)
            if reason:
                raise DataError(f"{name}:{number}: {reason}")
            if word in lines:
                raise DataError(
                    f"{name}:{number}: expected distinct words, got {word[:100]!r} as on line {lines[word]}"
                )
            lines[word] = number
        if len(lines) < 2:
            raise DataError(f"{name}: expected {UNKNOWN} and {PADDING} first, got {len(lines)} lines")
        return cls(list(lines))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one word per line in the order of ids, as UTF-8 with line feeds.

        Raises:
            ValueError: the name ends in ``.zip``.
            OSError: the file cannot be written.
        """
        with create_file(path) as file:
            file.write("".join(f"{word}\n" for word in self.words).encode())

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of a sentence's words, ``UNKNOWN_ID`` for words that are not listed."""
        return [self._ids.get(token, UNKNOWN_ID) for token in tokens]

    def __contains__(self, word: object) -> bool:
        """Return whether a word of a text has an id of its own; the special words are never words of a text."""
        return word in self._ids

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return self.words == other.words if isinstance(other, Vocabulary) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words)"


def _why_invalid(index: int, word: str) -> str | None:
    """Say what is wrong with a word at this index, regardless of the other words; None if nothing is."""
    special = (UNKNOWN, PADDING)
    if index < 2 and word != special[index]:
        return f"expected {special[index]}, got {word[:100]!r}"
    if not word or UNSAVABLE.search(word):
        return f"expected a word without line breaks, got {word[:100]!r}"
    return None
