"""Search over cases and the captions of their images."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pymongo.asynchronous.database import AsyncDatabase

from app.core.exceptions import ProblemItem, UnavailableError
from app.data import schema
from app.data.client import MAX_TIME_MS
from app.data.fields import CASE_FIELDS, IMAGE_FIELDS
from app.data.filters import Filter, ParameterError
from app.data.highlight import Highlighter, Match
from app.data.meaning_index import MeaningIndex
from app.data.search_index import SearchIndex
from app.data.search_terms import ParsedQuery, Term, parse_query
from app.data.text_encoder import EncoderError
from app.data.word_index import CASE_WEIGHTS, WordIndex

Document = dict[str, Any]
Matched = Literal["all", "any"]
Mode = Literal["words", "meaning", "hybrid"]
Ranking = list[tuple[str, float]]

MAX_HITS: Final = 1_000
# A prefix stands for up to thousands of words; any number of whole words is cheap, so a history can be the query.
_MAX_PREFIXES: Final = 10
_FILTER_BATCH: Final = 2_000
_EMBEDDING_RETRY_S: Final = 15
_SETUP_RETRY_S: Final = 60
# The nearest cases by meaning; those less similar than this have little to do with the query.
_MAX_NEAR: Final = 100
_MIN_SIMILARITY: Final = 0.35
# Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): a case scores 1 / (10 + rank) in each ranking. Not
# their 60: 10 found most histories and lay terms of one half of the cases, and more than 60 on the other half too.
_RRF_RANK: Final = 10
_CASE_TEXTS: Final = (CASE_FIELDS["u_id"], *(CASE_FIELDS[name] for name in CASE_WEIGHTS))
_IMAGE_TEXTS: Final = (IMAGE_FIELDS["image"], IMAGE_FIELDS["caption"])


@dataclass(frozen=True, slots=True)
class ImageHit:
    """An image whose caption or id holds a term."""

    document: Document
    score: float
    matches: list[Match]


@dataclass(frozen=True, slots=True)
class Hit:
    """A case that was found by its own texts, by captions of its images, or by both.

    Attributes:
        document: the stored case.
        score: BM25, cosine similarity or sum of reciprocal ranks, by the mode.
        matches: fields of the case that hold terms.
        images: images whose captions hold them, best first.
    """

    document: Document
    score: float
    matches: list[Match]
    images: list[ImageHit]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One page of hits, best first.

    Attributes:
        hits: of this page.
        total: how many cases were found, at most ``MAX_HITS``.
        mode: how they were found; words in place of hybrid while the embeddings are not there.
        matched: whether the cases that were found by words hold all terms, or, since none does, any of
            them; None: none was looked for or found by words.
        did_you_mean: the query as it was probably meant.
        exact_id: the case or image whose id the query is.
        ignored: words that were left out because nearly every case holds them.
    """

    hits: list[Hit]
    total: int
    mode: Mode
    matched: Matched | None
    did_you_mean: str | None
    exact_id: str | None
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A query, as the index of the current texts reads it."""

    wanted: list[Term]
    excluded: list[Term]
    meaning: str
    did_you_mean: str | None
    exact_id: str | None


@dataclass(frozen=True, slots=True)
class _Near:
    """Cases by similarity to a query, best first, and the nearest image of each."""

    ranking: Ranking
    images: Mapping[str, tuple[str, float]]


class Search:
    """Answers search queries from the index of the last seeding.

    Attributes:
        index: the words and embeddings that are searched.
    """

    def __init__(self, database: AsyncDatabase[Document], index: SearchIndex) -> None:
        self._database = database
        self.index = index

    async def search(
        self, text: str, selection: Filter, *, mode: Mode, seed_run_id: str | None, limit: int, offset: int
    ) -> SearchResult:
        """Find cases by their texts and by the captions of their images.

        By words: cases that hold all terms, in whichever of their texts; where no case of the selection
        does, those that hold any. By meaning: the cases nearest to the query. Phrases and exclusions
        hold for both.

        Args:
            text: words, prefixes (``aort*``), "quoted phrases", -excluded ones, or an id.
            selection: filter over cases.
            mode: words, meaning, or both fused by reciprocal rank.
            seed_run_id: names the seeding that is searched.
            limit: most hits of the page.
            offset: hits before the page.

        Raises:
            ParameterError: the text names nothing to look for, or has too many prefixes.
            UnavailableError: the index is not ready, the encoder is not installed, or too many searches wait.
            DeadlineExceededError: the search took too long.
        """
        query = parse_query(text)
        _check(query)
        index = await self.index.prepare(seed_run_id)
        plan = await self.index.run(_plan, index, query, text)
        if plan.exact_id:
            mode = "words"
        near = await self._near(index, plan, selection, mode) if mode != "words" else None
        if near is None:
            mode = "words"
        ranking: Ranking = []
        matched: Matched | None = None
        if mode != "meaning":
            ranking, matched = await self._by_words(index, plan, selection)
        if near is not None:
            ranking = fuse(ranking, near.ranking) if mode == "hybrid" else near.ranking
        page = ranking[offset : offset + limit]
        hits = await self._hits(index, plan, page, near)
        return SearchResult(hits, len(ranking), mode, matched, plan.did_you_mean, plan.exact_id, query.stop_words)

    async def ids(self, text: str, *, seed_run_id: str | None) -> list[str]:
        """The ids of the cases that hold all terms of a query, best first; at most ``MAX_HITS``.

        Raises:
            ParameterError: the text names nothing to look for, or has too many prefixes.
            UnavailableError: the index is not ready, or too many searches wait.
        """
        query = parse_query(text)
        _check(query)
        index = await self.index.prepare(seed_run_id)
        plan = await self.index.run(_plan, index, query, text)
        return [key for key, _ in (await self.index.run(_rank, index, plan, True))[:MAX_HITS]]

    async def _by_words(self, index: WordIndex, plan: _Plan, selection: Filter) -> tuple[Ranking, Matched | None]:
        ranking = await self._passing(await self.index.run(_rank, index, plan, True), selection)
        if ranking:
            return ranking, "all"
        if len(plan.wanted) > 1:
            ranking = await self._passing(await self.index.run(_rank, index, plan, False), selection)
        return ranking, "any" if ranking else None

    async def _near(self, index: WordIndex, plan: _Plan, selection: Filter, mode: Mode) -> _Near | None:
        """The nearest cases by meaning; None: the embeddings are not there yet and words must do."""
        try:
            meaning_index = await self.index.meaning_index()
            if meaning_index is not None:
                near = await self.index.run(self._nearest, meaning_index, index, plan)
        except EncoderError as error:
            if mode == "hybrid":
                return None
            raise UnavailableError(f"mode=meaning cannot be used: {error}", retry_after_s=_SETUP_RETRY_S) from error
        if meaning_index is None:
            if mode == "hybrid":
                return None
            raise UnavailableError(
                "The sentence embeddings are being computed, which takes about a minute. Try again, or use mode=words.",
                retry_after_s=_EMBEDDING_RETRY_S,
            )
        return _Near((await self._passing(near.ranking, selection))[:_MAX_NEAR], near.images)

    def _nearest(self, embeddings: MeaningIndex, index: WordIndex, plan: _Plan) -> _Near:
        ranking, images = embeddings.rank(self.index.encode(plan.meaning))
        ranking = [entry for entry in ranking if entry[1] >= _MIN_SIMILARITY]
        phrases = [term for term in plan.wanted if term.is_phrase]
        if phrases:
            holding = {key for key, _ in index.rank(phrases, [], every=True)}
            ranking = [entry for entry in ranking if entry[0] in holding]
        if plan.excluded:
            excluded = {key for key, _ in index.rank(plan.excluded, [], every=False)}
            ranking = [entry for entry in ranking if entry[0] not in excluded]
        return _Near(ranking, images)

    async def _passing(self, ranking: Ranking, selection: Filter) -> Ranking:
        """The best ``MAX_HITS`` of a ranking that pass a filter."""
        if selection.is_empty:
            return ranking[:MAX_HITS]
        passed: Ranking = []
        for start in range(0, len(ranking), _FILTER_BATCH):
            batch = ranking[start : start + _FILTER_BATCH]
            query = {"$and": [{"_id": {"$in": [key for key, _ in batch]}}, selection.query]}
            documents = self._database[schema.CASES].find(query, {"_id": 1}, max_time_ms=MAX_TIME_MS)
            keys = {row["_id"] async for row in documents}
            passed += [entry for entry in batch if entry[0] in keys]
            if len(passed) >= MAX_HITS:
                break
        return passed[:MAX_HITS]

    async def _hits(self, index: WordIndex, plan: _Plan, page: Ranking, near: _Near | None) -> list[Hit]:
        if not page:
            return []
        keys = [key for key, _ in page]
        rows = await self.index.run(index.images, plan.wanted, keys)
        if near is not None:
            by_caption = {image for _, image, _ in rows}
            nearest = ((key, *near.images[key]) for key in keys if key in near.images)
            rows += [row for row in nearest if row[1] not in by_caption and row[2] >= _MIN_SIMILARITY]
        cases, images = await asyncio.gather(
            self._by_id(schema.CASES, keys), self._by_id(schema.IMAGES, [image for _, image, _ in rows])
        )
        return await self.index.run(_marked, Highlighter(plan.wanted), page, rows, cases, images)

    async def _by_id(self, collection: str, keys: list[str]) -> dict[str, Document]:
        documents = self._database[collection].find({"_id": {"$in": keys}}, max_time_ms=MAX_TIME_MS)
        return {document["_id"]: document async for document in documents}


def _check(query: ParsedQuery) -> None:
    prefixes = sum(term.is_prefix for term in (*query.wanted, *query.excluded))
    if prefixes > _MAX_PREFIXES:
        message = f"has {prefixes} prefixes such as aort*, at most {_MAX_PREFIXES} are searched; write whole words"
        raise ParameterError([ProblemItem("q", message)])
    if query.wanted:
        return
    if query.excluded:
        message = "only excludes; add a word to look for, such as: kidney -stone"
    elif query.stop_words:
        words = list(dict.fromkeys(query.stop_words))
        message = f"nearly every case holds {', '.join(words)}; add another word, or search for the phrase "
        message += f'"{" ".join(query.stop_words)}" in quotes'
    else:
        message = "holds no word; give one or more, such as: ureter stone"
    raise ParameterError([ProblemItem("q", message)])


def _plan(index: WordIndex, query: ParsedQuery, text: str) -> _Plan:
    exact_id = index.id_of(text)
    if exact_id:
        query = parse_query(exact_id)
    wanted = [index.expand(term) for term in query.wanted]
    excluded = [index.expand(term) for term in query.excluded]
    # What is excluded would draw the embedding towards itself.
    meaning = " ".join(term.text for term in query.wanted) if excluded else text.replace('"', " ")
    return _Plan(wanted, excluded, meaning, None if exact_id else _did_you_mean(index, wanted, text), exact_id)


def fuse(*rankings: Ranking) -> Ranking:
    """Reciprocal rank fusion: keys by the sum of 1 / (10 + rank) over the rankings that hold them, best first."""
    scores: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, (key, _) in enumerate(ranking, start=1):
            scores[key] += 1 / (_RRF_RANK + rank)
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))


def _did_you_mean(index: WordIndex, wanted: Sequence[Term], text: str) -> str | None:
    """The query with misspelt words replaced; without quotation marks where only those prevent a find."""
    meant = text
    for term in sorted(wanted, key=lambda term: -term.start):
        if not term.is_prefix:
            meant = meant[: term.start] + _respelt(index, term.text) + meant[term.start + len(term.text) :]
    if meant != text:
        return meant
    if any(term.is_phrase for term in wanted) and not index.rank(wanted, [], every=True):
        words = " ".join(term.text for term in wanted)
        if index.rank(parse_query(words).wanted, [], every=True):
            return words
    return None


def _respelt(index: WordIndex, text: str) -> str:
    return " ".join(index.spelling(word) or word for word in text.split(" "))


def _rank(index: WordIndex, plan: _Plan, every: bool) -> Ranking:
    return index.rank(plan.wanted, plan.excluded, every=every)


def _marked(
    highlighter: Highlighter,
    page: Ranking,
    rows: Sequence[tuple[str, str, float]],
    cases: dict[str, Document],
    images: dict[str, Document],
) -> list[Hit]:
    """Hits with the terms marked; what another seeding removed meanwhile is left out."""
    image_hits: dict[str, list[ImageHit]] = defaultdict(list)
    for case, image, score in rows:
        if image in images:
            matches = highlighter.find_matches(images[image], _IMAGE_TEXTS)
            image_hits[case].append(ImageHit(images[image], score, matches))
    return [
        Hit(cases[key], score, highlighter.find_matches(cases[key], _CASE_TEXTS), image_hits[key])
        for key, score in page
        if key in cases
    ]
