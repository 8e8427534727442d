"""The part of a text that a search shows."""

import json
from typing import Final

import httpx
import pytest

from app.data.fields import IMAGE_FIELDS
from app.data.highlight import Highlighter, Match
from app.data.search_terms import parse_query, tokenize

_CAPTION: Final = IMAGE_FIELDS["caption"]


def _document(text: str) -> dict[str, object]:
    document: dict[str, object] = {}
    *outer, last = _CAPTION.path.split(".")
    inner = document
    for name in outer:
        inner[name] = inner = {}
    inner[last] = text
    return document


def _match(text: str, search: str) -> Match:
    [match] = Highlighter(parse_query(search).wanted).find_matches(_document(text), [_CAPTION])
    return match


def _marked(match: Match) -> list[str]:
    return [match.snippet[start:end] for start, end in match.ranges]


# The Snowball rules change the ends of some words, and a few of them nearly whole.
_CHANGED = (
    "dying lying tying skies cries sensibilities abilities relational conditional rationalisation hopefulness"
    " callousness hopping hoping news early ugly only idly gently singly allergies biopsies biopsied calculi"
    " vertebrae diagnoses T1-weighted follow-up O'Brien"
)


@pytest.mark.parametrize("word", _CHANGED.split())
def test_every_form_of_a_word_is_marked(word: str) -> None:
    assert " ".join(_marked(_match(f"Seen: {word}.", word))) in {word, word.replace("-", " ")}


@pytest.mark.medpix
def test_every_word_of_the_dataset_is_marked(medpix_api: httpx.Client) -> None:
    words: set[str] = set()
    for line in medpix_api.get("/export", params={"format": "jsonl"}).text.splitlines():
        texts = [value for value in json.loads(line).values() if isinstance(value, str) and value.isascii()]
        words.update(text[token.start : token.end] for text in texts for token in tokenize(text))
    assert len(words) > 5_000
    missed = [
        word
        for word in words
        if (terms := parse_query(word).wanted) and not Highlighter(terms).find_matches(_document(word), [_CAPTION])
    ]
    assert missed == []


def test_a_short_text_is_shown_whole() -> None:
    match = _match("A stone in the left kidney.", "kidneys stone")
    assert match.snippet == "A stone in the left kidney."
    assert _marked(match) == ["stone", "kidney"]


def test_a_long_text_is_cut_between_words_and_says_so() -> None:
    words = [f"word{number}" for number in range(60)]
    text = " ".join([*words, "kidney\r\nstone", *words])
    match = _match(text, "kidney word59")
    assert match.snippet.startswith("…")
    assert match.snippet.endswith("…")
    middle = match.snippet[1:-1]
    assert f" {middle} " in text
    assert len(middle) <= 180
    assert _marked(match) == ["word59", "kidney"]


def test_a_word_that_is_longer_than_the_part_is_still_marked() -> None:
    match = _match("a" * 400 + " kidney " + "b" * 400, "kidney")
    assert match.snippet == "…kidney…"
    assert _marked(match) == ["kidney"]


@pytest.mark.parametrize("filler", range(90, 140, 2))
@pytest.mark.parametrize(
    ("term", "words"),
    [("stone", ["stone"]), ('"stone of bladder"', ["stone", "of", "bladder"]), ("follow-up", ["follow-up"])],
)
def test_what_is_at_the_end_of_the_part_is_marked(term: str, words: list[str], filler: int) -> None:
    """The words after the part are not read, and do not decide what is marked inside of it."""
    around = "unrelated " * 30
    text = f"{around}kidney {'x' * filler} {term} {around}".replace('"', "")
    match = _match(text, f"kidney {term}")
    assert _marked(match) == ["kidney", *(word for word in words if word in match.snippet)]
