"""Where a text holds the terms of a search, and the part of it to show."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.data.fields import Field, pick
from app.data.search_terms import Term, Token, compounds, find_first, tokenize

_SPACE: Final = re.compile(r"\s+")
_CONTEXT: Final = 90
_ELLIPSIS: Final = "…"


@dataclass(frozen=True, slots=True)
class Match:
    """A field that holds some of the terms.

    Attributes:
        field: public name.
        snippet: the part of its text around the first of them, in whole words, with an ellipsis
            where text was left out.
        ranges: start and end of each word in the snippet, in characters.
    """

    field: str
    snippet: str
    ranges: tuple[tuple[int, int], ...]


class Highlighter:
    """Finds the terms of one search in texts."""

    def __init__(self, terms: Iterable[Term]) -> None:
        self._sequences: dict[str, list[tuple[str, ...]]] = {}
        for term in terms:
            for stems in term.alternatives:
                self._sequences.setdefault(stems[0], []).append(stems)
        self._firsts = frozenset(self._sequences)
        self._longest = max((len(stems) for found in self._sequences.values() for stems in found), default=0)

    def find_matches(self, document: Mapping[str, Any], fields: Sequence[Field]) -> list[Match]:
        """The fields of a stored document that hold a term, in the given order."""
        matches = []
        for field in fields:
            text = pick(document, field.path)
            ranges = self._ranges(text) if isinstance(text, str) else []
            if ranges:
                matches.append(_match(field.name, str(text), ranges))
        return matches

    def _ranges(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each word that belongs to a term, as far as the snippet around the first can reach."""
        tokens = self._near_first(text)
        marked: dict[int, Token] = {}
        for index, token in enumerate(tokens):
            for stems in self._sequences.get(token.stem, ()):
                part = tokens[index : index + len(stems)]
                if len(part) == len(stems) and all(a.stem == b for a, b in zip(part, stems, strict=True)):
                    marked.update((word.start, word) for word in part)
        ranges = {(token.start, token.end) for token in marked.values()}
        for first, last, compound in compounds(tokens, text):
            if (compound,) in self._sequences.get(compound, ()):
                ranges -= {span for span in ranges if first.start <= span[0] < last.end}
                ranges.add((first.start, last.end))
        return sorted(ranges)

    def _near_first(self, text: str) -> list[Token]:
        """The words that a snippet may show: from the first that may begin a term, and no more of a long text."""
        start = find_first(text, self._firsts)
        if start is None:
            return []
        tokens: list[Token] = []
        end, words_after = math.inf, 0
        for token in tokenize(text, start):
            if token.start >= end:  # a phrase or a compound that begins before it may go on
                if words_after >= self._longest and not token.joined:
                    break
                words_after += 1
            elif end == math.inf and (token.stem,) in self._sequences.get(token.stem, ()):
                end = token.start + 2 * _CONTEXT
            tokens.append(token)
        return tokens


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
    marked = tuple((a + shift, b + shift) for a, b in ranges if b <= end)
    return Match(name, before + text[start:end] + (_ELLIPSIS if end < len(text) else ""), marked)
