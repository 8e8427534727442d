"""Characters that people type for one another: what is typed in a query rarely is what a text was set with."""

import unicodedata
from typing import Final

# The grave and the acute accent stand on keyboards where an apostrophe is looked for.
APOSTROPHES: Final = "'’ʼ‘‛＇′`´"
QUOTES: Final = '"“”„‟«»″＂'
HYPHENS: Final = "-‐‑‒–−"
_DASHES: Final = "—―"


def composed(text: str) -> str:
    """A text in Unicode's composed form, as the dataset is."""
    return unicodedata.normalize("NFC", text)


def literal_pattern(text: str) -> str:
    """A regular expression of MongoDB that matches a text in any typography.

    Apostrophes, quotation marks, hyphens and dashes match each other, and white space matches a line break.
    """
    return "".join(_PATTERNS.get(character) or _escaped(character) for character in " ".join(_split(text)))


def _split(text: str) -> list[str]:
    """The parts between white space, empty ones where a text begins or ends with it."""
    inner = text.split()
    if not inner:
        return ["", ""] if text else [""]
    return [""] * text[0].isspace() + inner + [""] * text[-1].isspace()


def _escaped(character: str) -> str:
    return f"\\{character}" if character.isascii() and not character.isalnum() else character


def _any_of(characters: str) -> dict[str, str]:
    one = "[" + "".join(map(_escaped, characters)) + "]"
    return dict.fromkeys(characters, one)


_PATTERNS: Final = {
    **_any_of(APOSTROPHES),
    **_any_of(QUOTES),
    **_any_of(HYPHENS + _DASHES),
    " ": "[\\s\u00a0]+",
}
