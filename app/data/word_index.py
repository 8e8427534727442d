"""Inverted index of the cases and captions, in SQLite's FTS5: all-word queries, BM25, phrases, spelling.

MongoDB's ``$text`` cannot require all words across a case and its captions, does not normalise
apostrophes and hyphens, and knows neither prefixes nor near spellings. The index holds stems that
were made here, so that texts and queries are normalised by the same code. It is a private temporary
database (memory first, then disk), built from MongoDB after each seeding.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rapidfuzz.distance import OSA
from rapidfuzz.process import extract

from app.data.fields import CASE_FIELDS, IMAGE_FIELDS, pick
from app.data.search_terms import STOP_WORDS, Term, compounds, fold, stem, tokenize

Document = dict[str, Any]

# BM25 weights of the columns: what a case is about before what it mentions.
CASE_WEIGHTS: Final[Mapping[str, float]] = {
    "title": 10.0,
    "diagnosis": 10.0,
    "topic.title": 6.0,
    "topic.keywords": 4.0,
    "findings": 3.0,
    "history": 3.0,
    "differential_diagnosis": 1.5,
    "exam": 1.0,
    "discussion": 1.0,
    "topic.disease_discussion": 1.0,
    "treatment_follow_up": 0.5,
}
_CAPTION_WEIGHT: Final = 3.0
_MODALITY_WEIGHT: Final = 1.0
_ID_WEIGHT: Final = 20.0
_MODALITY_WORDS: Final = {"CT": "ct", "MR": "mr mri"}
# A private-use character is a word for FTS5 but never for ``tokenize``: no phrase reaches across it.
_BREAK: Final = " \ue000 "
_MAX_EXPANSIONS: Final = 100
_MIN_PREFIX_CHARS: Final = 3
_MIN_SPELLING_CHARS: Final = 4
# The texts hold misspelt words too. A long word of few cases counts as one where a letter was left out,
# doubled or swapped in a word of this many times more cases; another letter makes another word (parotid, carotid).
_MISSPELT_CHARS: Final = 8
_COMMONER: Final = 8

_SCHEMA: Final = """
CREATE VIRTUAL TABLE cases USING fts5(
    key UNINDEXED, {columns}, captions, modalities, ids, tokenize = "unicode61 remove_diacritics 0");
CREATE VIRTUAL TABLE captions USING fts5(
    key UNINDEXED, case_key UNINDEXED, caption, ids, tokenize = "unicode61 remove_diacritics 0");
CREATE VIRTUAL TABLE vocabulary USING fts5vocab(cases, 'row');
CREATE TABLE ids (folded TEXT PRIMARY KEY, id TEXT) WITHOUT ROWID;
"""


class WordIndex:
    """The index of one seeding. Not safe for two threads at a time."""

    def __init__(self) -> None:
        # An empty name is a private temporary database: SQLite spills it to disk when it grows.
        self._database = sqlite3.connect("", check_same_thread=False)
        columns = ", ".join(f"c{number}" for number in range(len(CASE_WEIGHTS)))
        self._database.executescript(_SCHEMA.format(columns=columns))
        weights = [0.0, *CASE_WEIGHTS.values(), _CAPTION_WEIGHT, _MODALITY_WEIGHT, _ID_WEIGHT]
        self._bm25 = f"bm25(cases, {', '.join(map(str, weights))})"
        self._words: dict[str, str] = {}
        self._words_by_initial: dict[str, list[str]] = defaultdict(list)

    def add(self, rows: Iterable[tuple[Document, Sequence[Document]]]) -> None:
        """Index stored cases, each with its stored images."""
        for case, images in rows:
            self._add(case, images)

    def _add(self, case: Document, images: Sequence[Document]) -> None:
        columns = [self._stems(pick(case, CASE_FIELDS[name].path)) for name in CASE_WEIGHTS]
        captions = [self._stems(pick(image, IMAGE_FIELDS["caption"].path)) for image in images]
        modalities = {pick(image, IMAGE_FIELDS["modality"].path) for image in images}
        named = " ".join(_MODALITY_WORDS.get(name, "") for name in sorted(modalities))
        ids = [_id_words(image["_id"]) for image in images]
        row = [case["_id"], *columns, _BREAK.join(captions), named, _BREAK.join([fold(case["_id"]), *ids])]
        self._database.execute(f"INSERT INTO cases VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608 - question marks alone
        self._database.executemany(
            "INSERT INTO captions VALUES (?, ?, ?, ?)",
            zip([image["_id"] for image in images], [case["_id"]] * len(images), captions, ids, strict=True),
        )
        keys = [case["_id"], *(image["_id"] for image in images)]
        spellings = [(name.casefold(), name) for name in keys]
        spellings += [(name.casefold().partition("_")[2], name) for name in keys[1:]]
        self._database.executemany("INSERT OR IGNORE INTO ids VALUES (?, ?)", spellings)

    def close(self) -> None:
        """Delete the index."""
        self._database.close()

    def __del__(self) -> None:
        self.close()

    def _stems(self, text: str | None) -> str:
        """The stems of a text, then those of its hyphenated compounds written as one word."""
        if not text:
            return ""
        tokens = list(tokenize(text))
        for token in tokens:
            word = fold(text[token.start : token.end])
            if word not in self._words:
                self._words[word] = token.stem
                self._words_by_initial[word[0]].append(word)
        joined_words = [compound for _, _, compound in compounds(tokens, text)]
        return _BREAK.join([" ".join(token.stem for token in tokens), *joined_words])

    def id_of(self, text: str) -> str | None:
        """The case or image that a text names, by its id or its file, in the dataset's spelling; None: none."""
        folded = text.strip(' "').casefold().removesuffix(".png")
        row = self._database.execute("SELECT id FROM ids WHERE folded = ?", (folded,)).fetchone()
        return str(row[0]) if row else None

    def expand(self, term: Term) -> Term:
        """A prefix, or a word that no text holds, as all words that begin with it."""
        if term.is_phrase or not (term.is_prefix or self._count(term) == 0):
            return term
        beginning = fold(term.text)
        if len(beginning) < _MIN_PREFIX_CHARS and not term.is_prefix:
            return term
        stems = {self._words[word]: None for word in self._words if word.startswith(beginning)}
        alternatives = tuple((word,) for word in list(stems)[:_MAX_EXPANSIONS])
        # Ids are no words of the texts, but begin with MPX21 all the same.
        is_prefix = bool(alternatives) or self._begins(beginning)
        return Term(alternatives or term.alternatives, term.text, term.start, is_prefix=is_prefix)

    def spelling(self, word: str) -> str | None:
        """A word of the texts that was probably meant, None if the word is well known or nothing is near."""
        folded, count = fold(word), self._documents(stem(word))
        shortest = _MISSPELT_CHARS if count else _MIN_SPELLING_CHARS
        if len(folded) < shortest or not folded.isalpha() or folded in STOP_WORDS:
            return None
        allowed = 1 if count or len(folded) < _MISSPELT_CHARS else 2
        words = self._words_by_initial.get(folded[0], ()) if count else self._words.keys()
        near = extract(folded, words, scorer=OSA.distance, score_cutoff=allowed, limit=20)
        ranked = [
            # A letter is left out or doubled more often than taken for another: disection is not direction.
            (distance, _is_substitution(folded, other), -documents, other)
            for other, distance, _ in near
            if other.isalpha() and (documents := self._documents(self._words[other])) > _COMMONER * count
            if not (count and _is_substitution(folded, other))
        ]
        return min(ranked)[-1] if ranked else None

    def rank(self, wanted: Sequence[Term], excluded: Sequence[Term], *, every: bool) -> list[tuple[str, float]]:
        """Ids and scores of the cases that hold every wanted term, or any of them, best first."""
        match = (" AND " if every else " OR ").join(_expression(term) for term in wanted)
        if excluded:
            match = f"({match}) NOT ({' OR '.join(_expression(term) for term in excluded)})"
        query = f"SELECT key, -{self._bm25} AS score FROM cases WHERE cases MATCH ? ORDER BY score DESC, key"  # noqa: S608  # numbers and names of this module
        return list(self._database.execute(query, (match,)))

    def images(self, wanted: Sequence[Term], cases: Sequence[str]) -> list[tuple[str, str, float]]:
        """Case, image and score of the images of some cases whose captions hold any term, best first."""
        match = " OR ".join(_expression(term) for term in wanted)
        places = ", ".join("?" * len(cases))
        query = (
            f"SELECT case_key, key, -bm25(captions, 0, 0, 1, {_ID_WEIGHT}) AS score FROM captions "  # noqa: S608  # the same
            f"WHERE captions MATCH ? AND case_key IN ({places}) ORDER BY score DESC, key"
        )
        return list(self._database.execute(query, (match, *cases)))

    def _count(self, term: Term) -> int:
        return sum(self._documents(stems[0]) for stems in term.alternatives)

    def _begins(self, beginning: str) -> bool:
        """Whether any indexed word begins with a text."""
        query = "SELECT term FROM vocabulary WHERE term >= ? LIMIT 1"
        row = self._database.execute(query, (beginning,)).fetchone()
        return row is not None and str(row[0]).startswith(beginning)

    def _documents(self, word: str) -> int:
        row = self._database.execute("SELECT doc FROM vocabulary WHERE term = ?", (word,)).fetchone()
        return int(row[0]) if row else 0


def _expression(term: Term) -> str:
    """A term as FTS5 takes it. Stems are letters and digits, so that quoting them is enough."""
    beginning = fold(term.text) if term.is_prefix else None
    # One prefix phrase, so that BM25 rates it by the cases that hold any of its words, not by the rarest word.
    parts = [f'"{beginning}" *'] if beginning else []
    parts += [
        f'"{" ".join(stems)}"' for stems in term.alternatives if beginning is None or not stems[0].startswith(beginning)
    ]
    return f"({' OR '.join(parts)})"


def _is_substitution(word: str, other: str) -> bool:
    return len(word) == len(other) and sorted(word) != sorted(other)


def _id_words(image: str) -> str:
    """What an image is found by: its own part of the id, and the whole."""
    *_, own = tokenize(image)
    joined = "".join(fold(part) for part in image.split("_"))
    return f"{own.stem}{_BREAK}{stem(joined)}"
