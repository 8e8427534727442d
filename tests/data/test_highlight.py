"""The part of a text that a search shows."""

from typing import Final

from app.data.fields import IMAGE_FIELDS
from app.data.highlight import Highlighter, Match
from app.data.search_terms import parse_query

_CAPTION: Final = IMAGE_FIELDS["caption"]


def _match(text: str, search: str) -> Match:
    document: dict[str, object] = {}
    *outer, last = _CAPTION.path.split(".")
    inner = document
    for name in outer:
        inner[name] = inner = {}
    inner[last] = text
    [match] = Highlighter(parse_query(search).wanted).find_matches(document, [_CAPTION])
    return match


def _marked(match: Match) -> list[str]:
    return [match.snippet[start:end] for start, end in match.ranges]


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
