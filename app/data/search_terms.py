"""Tokenisation, normalisation and query syntax of the word search; texts and queries pass the same functions."""

import re
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import snowballstemmer

from app.data.typography import APOSTROPHES, HYPHENS, QUOTES

# Letters and digits with their combining marks; an apostrophe inside of a word belongs to it.
_WORD: Final = re.compile(
    rf"[^\W_][^\W_\u0300-\u036f]*(?:[\u0300-\u036f]+[^\W_]*)*(?:[{APOSTROPHES}][^\W_\u0300-\u036f]+)*"
)
# What joins words to one compound: T1-weighted, MPX1007_synpic46719, 3/4 is two words.
_JOINERS: Final = frozenset(HYPHENS + "_")
_COMPOUND: Final = re.compile(rf"{_WORD.pattern}(?:[{HYPHENS}_]{_WORD.pattern})*")
_POSSESSIVE: Final = re.compile(rf"[{APOSTROPHES}](s?)$")
_APOSTROPHE: Final = re.compile(rf"[{APOSTROPHES}]")
# Letters that Unicode does not decompose into a base letter and a mark.
_BASE_LETTERS: Final = str.maketrans({"ø": "o", "đ": "d", "ł": "l", "æ": "ae", "œ": "oe", "ı": "i"})
# British spellings as American ones, and the plurals that medicine has from Latin and Greek as one of both forms.
_VARIANTS: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"ae(?=[cdfgmst])", "e"),  # haematoma, caecum
        (r"\boe(?=[ds])|(?<=o)oe(?=s)|(?<=rrh)oe|(?<=\bf)oe(?=t)", "e"),  # oedema, diarrhoea, foetal
        (r"(?<=[dlmv])our", "or"),  # tumour
        (r"(?<=[bt])res?$", "er"),  # fibre
        (r"\bgrey", "gray"),
        (r"(?<=...)sis$", "ses"),  # metastasis, metastases
        (r"(?<=[iy])s(?=(?:e[ds]?|ing|ations?)$)", "z"),  # localised
        (r"(?<=...)i$", "us"),  # emboli
        (r"(?<=...)ae$", "a"),  # vertebrae
        (r"(ticul|cteri)a$", r"\1um"),  # diverticula
    )
)
_QUOTES: Final = str.maketrans(dict.fromkeys(QUOTES, '"'))
_TERM: Final = re.compile(rf'([{HYPHENS}]?)"([^"]*)(?:"|$)|(?<![^\s"])([{HYPHENS}])?([^\s"]+)')
# Function words: nearly every case holds them, so they neither find nor rank anything.
_COMMON: Final = """
    a an and are as at be been but by can could did do does for from had has have he her him his i if in into is it
    its may me my of on or our she should so such than that the their them then there these they this those to was
    we were what when where which while who whom why will with would you your
"""
STOP_WORDS: Final = frozenset(_COMMON.split())


class Token(NamedTuple):
    """A word of a text.

    Attributes:
        start: of the first character.
        end: after the last character.
        stem: what is compared.
        joined: whether a hyphen or an underscore stands between the word before and this one.
    """

    start: int
    end: int
    stem: str
    joined: bool


@dataclass(frozen=True, slots=True)
class Term:
    """One part of a query.

    Attributes:
        alternatives: sequences of stems; a text that holds any of them, in one piece, holds the term.
        text: as it was typed, without quotation marks and minus.
        start: where it stands in the query.
        is_phrase: whether it was given in quotation marks.
        is_prefix: whether it stands for every word that begins with it.
    """

    alternatives: tuple[tuple[str, ...], ...]
    text: str
    start: int
    is_phrase: bool = False
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """A search text, parsed.

    Attributes:
        wanted: terms that are looked for.
        excluded: terms that a found case must not hold.
        stop_words: words that were left out because they are too common.
    """

    wanted: tuple[Term, ...]
    excluded: tuple[Term, ...]
    stop_words: tuple[str, ...]


class _Stemmer(threading.local):
    """A Snowball stemmer of each thread: it keeps the word it works on, so that threads would mix theirs up."""

    def __init__(self) -> None:
        self.stem = snowballstemmer.stemmer("english").stemWord


_stemmer: Final = _Stemmer()


@lru_cache(maxsize=100_000)
def fold(word: str) -> str:
    """A word without letter case, accents, Unicode variants, apostrophes and a possessive ``'s``."""
    bare = _APOSTROPHE.sub("", _POSSESSIVE.sub("", word))
    decomposed = unicodedata.normalize("NFKD", bare.casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).translate(_BASE_LETTERS)


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """The stem by which a word is compared: one for all its spellings, by the English Snowball rules."""
    spelling = fold(word)
    for pattern, replacement in _VARIANTS:
        spelling = pattern.sub(replacement, spelling)
    return str(_stemmer.stem(spelling))


def tokenize(text: str, start: int = 0) -> Iterator[Token]:
    """The words of a text, in order, from a position where a word begins."""
    before = -2
    for match in _WORD.finditer(text, start):
        start, end = match.span()
        joined = start == before + 1 and text[before] in _JOINERS
        yield Token(start, end, stem(match.group()), joined)
        before = end


@lru_cache(maxsize=50_000)
def _stems_of(compound: str) -> frozenset[str]:
    """The stems of a word, or of the words of a compound and of the compound written as one word."""
    tokens = list(tokenize(compound))
    return frozenset((*(token.stem for token in tokens), *(joined for _, _, joined in compounds(tokens, compound))))


def find_first(text: str, stems: frozenset[str]) -> int | None:
    """Where the first word or compound with any of some stems begins; quicker than to tokenise what is before it."""
    for match in _COMPOUND.finditer(text):
        if not _stems_of(match.group()).isdisjoint(stems):
            return match.start()
    return None


def compounds(tokens: list[Token], text: str) -> Iterator[tuple[Token, Token, str]]:
    """First and last word of each hyphenated compound, and its stem if it were written as one word."""
    index = 0
    while index < len(tokens):
        last = index
        while last + 1 < len(tokens) and tokens[last + 1].joined:
            last += 1
        if last > index:
            compound = "".join(fold(text[token.start : token.end]) for token in tokens[index : last + 1])
            yield tokens[index], tokens[last], stem(compound)
        index = last + 1


def parse_query(text: str) -> ParsedQuery:
    """Parse a search text: words, prefixes (``aort*``), "quoted phrases", and -excluded ones of each."""
    wanted: list[Term] = []
    excluded: list[Term] = []
    stop_words: list[str] = []
    for match in _TERM.finditer(text.translate(_QUOTES)):
        quoted_minus, phrase, minus, word = match.groups()
        target = excluded if quoted_minus or minus else wanted
        if phrase is not None:
            stems = tuple(token.stem for token in tokenize(phrase))
            if stems:
                start = match.start(2) + len(phrase) - len(phrase.lstrip())
                target.append(Term((stems,), phrase.strip(), start, is_phrase=True))
            continue
        for term in _words(word, match.start(4)):
            if fold(term.text) in STOP_WORDS and not term.is_prefix:
                stop_words.append(term.text)
            else:
                target.append(term)
    return ParsedQuery(tuple(wanted), tuple(excluded), tuple(stop_words))


def _words(text: str, offset: int) -> Iterator[Term]:
    """The terms of a piece without white space; a hyphenated compound is one term with two spellings."""
    tokens = list(tokenize(text))
    joined_words = {first.start: (last, compound) for first, last, compound in compounds(tokens, text)}
    end = -1
    for token in tokens:
        if token.start < end:
            continue
        last, compound = joined_words.get(token.start, (token, ""))
        end = last.end
        stems = tuple(part.stem for part in tokens if token.start <= part.start < end)
        alternatives = (stems, (compound,)) if compound else (stems,)
        is_prefix = not compound and text[end : end + 1] == "*"
        yield Term(alternatives, text[token.start : end], offset + token.start, is_prefix=is_prefix)
