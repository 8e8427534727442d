"""Full-text search over cases and captions, through the text indexes of both collections."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase

from app.data import schema
from app.data.fields import CASE_FIELDS, IMAGE_FIELDS
from app.data.filters import Filter
from app.data.highlight import Match, find_matches, parse_terms

Document = dict[str, Any]

MAX_HITS: Final = 1_000
_MAX_TIME_MS: Final = 2_000
_SCORE: Final = {"$meta": "textScore"}
# In the order of their weights in the text index.
_SEARCHED: Final = (
    *("title", "diagnosis", "topic.title", "topic.keywords", "findings", "history"),
    *("differential_diagnosis", "discussion", "topic.disease_discussion"),
)
_CASE_TEXTS: Final = tuple(CASE_FIELDS[name] for name in _SEARCHED)
_CAPTION: Final = (IMAGE_FIELDS["caption"],)


@dataclass(frozen=True, slots=True)
class ImageHit:
    """An image whose caption was met."""

    document: Document
    score: float
    matches: list[Match]


@dataclass(frozen=True, slots=True)
class Hit:
    """A case that was found by its own text, by captions of its images, or by both.

    Attributes:
        document: the stored case.
        score: MongoDB's text score of the case, plus the best of its captions.
        matches: fields of the case that hold the words.
        images: images whose captions hold them, best first.
    """

    document: Document
    score: float
    matches: list[Match]
    images: list[ImageHit]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One page of hits, best first; ``total`` counts at most ``MAX_HITS`` cases."""

    hits: list[Hit]
    total: int


async def search(
    database: AsyncDatabase[Document], text: str, selection: Filter, *, limit: int, offset: int
) -> SearchResult:
    """Search cases by their texts and by the captions of their images.

    Args:
        database: the seeded database.
        text: words, "quoted phrases", and -excluded ones.
        selection: filter over cases.
        limit: most hits of the page.
        offset: hits before the page.
    """
    terms = parse_terms(text)
    if not terms.wanted:
        return SearchResult([], 0)
    scores, captions, excluded = await asyncio.gather(
        _scores(database, schema.CASES, terms.wanted),
        _scores(database, schema.IMAGES, terms.wanted),
        _holding(database, terms.excluded),
    )
    own = {row["_id"]: row["score"] for row in scores}
    images: dict[str, list[Document]] = defaultdict(list)
    for row in captions:
        images[row["U_id"]].append(row)
    totals = {
        key: own.get(key, 0.0) + (images[key][0]["score"] if key in images else 0.0)
        for key in own.keys() | images.keys()
        if key not in excluded
    }
    passed = await _passing(database, list(totals), selection)
    ranked = sorted(passed, key=lambda key: (-totals[key], key))[:MAX_HITS]
    shown = ranked[offset : offset + limit]
    documents = await _by_id(database, schema.CASES, shown)
    pictures = await _by_id(database, schema.IMAGES, [row["_id"] for key in shown for row in images.get(key, [])])
    hits = []
    for key in shown:
        found = [
            ImageHit(pictures[row["_id"]], row["score"], find_matches(pictures[row["_id"]], _CAPTION, terms))
            for row in images.get(key, [])
        ]
        hits.append(Hit(documents[key], totals[key], find_matches(documents[key], _CASE_TEXTS, terms), found))
    return SearchResult(hits, len(ranked))


async def _scores(database: AsyncDatabase[Document], collection: str, text: str) -> list[Document]:
    stages: list[Document] = [
        {"$match": {"$text": {"$search": text}}},
        {"$project": {"U_id": 1, "score": _SCORE}},
        {"$sort": {"score": -1, "_id": 1}},
        {"$limit": MAX_HITS},
    ]
    found = await database[collection].aggregate(stages, maxTimeMS=_MAX_TIME_MS)
    return await found.to_list()


async def _holding(database: AsyncDatabase[Document], excluded: tuple[str, ...]) -> set[str]:
    """Cases that hold an excluded word, in their own texts or in a caption."""
    keys: set[str] = set()
    for word in excluded:
        query = {"$text": {"$search": word}}
        for collection in (schema.CASES, schema.IMAGES):
            keys.update(await database[collection].distinct("U_id", query, maxTimeMS=_MAX_TIME_MS))
    return keys


async def _passing(database: AsyncDatabase[Document], keys: list[str], selection: Filter) -> list[str]:
    if selection.is_empty or not keys:
        return keys
    query = {"$and": [{"_id": {"$in": keys}}, selection.query]}
    return [row["_id"] async for row in database[schema.CASES].find(query, {"_id": 1}, max_time_ms=_MAX_TIME_MS)]


async def _by_id(database: AsyncDatabase[Document], collection: str, keys: list[str]) -> dict[str, Document]:
    found = database[collection].find({"_id": {"$in": keys}}, max_time_ms=_MAX_TIME_MS)
    return {document["_id"]: document async for document in found}
