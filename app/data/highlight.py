"""Which words of a text a search met: the same stems that MongoDB's text index compares."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

import snowballstemmer

from app.data.fields import Field, pick

_WORD: Final = re.compile(r"\w+")
_TERM: Final = re.compile(r'(-?)"([^"]*)"|(\S+)')
_SPACE: Final = re.compile(r"\s+")
_CONTEXT: Final = 90
_ELLIPSIS: Final = "…"


@dataclass(frozen=True, slots=True)
class Terms:
    """A search text, taken apart.

    Attributes:
        words: that are looked for, outside of phrases.
        phrases: that were given in quotation marks.
        excluded: words and quoted phrases with a minus sign.
    """

    words: tuple[str, ...]
    phrases: tuple[str, ...]
    excluded: tuple[str, ...]

    @property
    def wanted(self) -> str:
        """What is looked for, as MongoDB's ``$search`` takes it."""
        return " ".join([*self.words, *(f'"{phrase}"' for phrase in self.phrases)])

    def stems(self) -> frozenset[str]:
        """Stems of all words that are looked for, those of phrases too."""
        return frozenset(stem(word) for text in (*self.words, *self.phrases) for word in _WORD.findall(text))


@dataclass(frozen=True, slots=True)
class Match:
    """A field that holds some of the words.

    Attributes:
        field: public name.
        snippet: the part of its text around the first of them, in whole words, with an ellipsis
            where text was left out.
        ranges: start and end of each word in the snippet, in characters.
    """

    field: str
    snippet: str
    ranges: tuple[tuple[int, int], ...]


@cache
def _stemmer() -> Any:
    return snowballstemmer.stemmer("english")


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """The stem of a word, as the English text index has it."""
    return str(_stemmer().stemWord(word.casefold()))


def parse_terms(text: str) -> Terms:
    """Take a search text apart, as MongoDB's ``$search`` does."""
    words: list[str] = []
    phrases: list[str] = []
    excluded: list[str] = []
    for minus, phrase, word in _TERM.findall(text):
        if word.startswith("-") and len(word) > 1:
            excluded.append(word[1:])
        elif minus and phrase.strip():
            excluded.append(f'"{phrase.strip()}"')
        elif phrase.strip():
            phrases.append(phrase.strip())
        else:
            words += _WORD.findall(word)
    return Terms(tuple(words), tuple(phrases), tuple(excluded))


def find_matches(document: Mapping[str, Any], fields: Sequence[Field], terms: Terms) -> list[Match]:
    """The fields of a stored document that hold looked-for words, in the given order."""
    found = []
    stems = terms.stems()
    for field in fields:
        text = pick(document, field.path)
        ranges = _find_words(text, stems) if isinstance(text, str) else []
        if ranges:
            found.append(_match(field.name, str(text), ranges))
    return found


def _find_words(text: str, stems: frozenset[str]) -> list[tuple[int, int]]:
    """Start and end of each looked-for word of a text."""
    return [word.span() for word in _WORD.finditer(text) if stem(word.group()) in stems]


def _match(name: str, text: str, ranges: Sequence[tuple[int, int]]) -> Match:
    first, first_end = ranges[0]
    start = max(0, first - _CONTEXT // 2)
    if start:  # begin with a whole word
        start = next((space.end() for space in _SPACE.finditer(text, start, first)), start)
    end = start + 2 * _CONTEXT
    if end >= len(text):
        end = len(text)
    else:  # end with one
        end = max((space.start() for space in _SPACE.finditer(text, first_end, end + 1)), default=end)
    before = _ELLIPSIS if start else ""
    shift = len(before) - start
    shown = tuple((a + shift, b + shift) for a, b in ranges if b <= end)
    return Match(name, before + text[start:end] + (_ELLIPSIS if end < len(text) else ""), shown)
