"""Search over cases and the captions of their images."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pymongo.asynchronous.database import AsyncDatabase

from app.core.exceptions import UnavailableError, UnprocessableError
from app.data import schema
from app.data.fields import CASE_FIELDS, IMAGE_FIELDS
from app.data.filters import Filter, ParameterError, ParameterProblem
from app.data.highlight import Highlighter, Match
from app.data.meaning_index import MeaningIndex, Passages, load_or_compute
from app.data.search_terms import ParsedQuery, Term, parse_query
from app.data.text_encoder import EncoderError, TextEncoder
from app.data.word_index import CASE_WEIGHTS, WordIndex

Document = dict[str, Any]
Matched = Literal["all", "any"]
Mode = Literal["words", "meaning", "hybrid"]
Ranking = list[tuple[str, float]]
_Result = TypeVar("_Result")

MAX_HITS: Final = 1_000
_MAX_TIME_MS: Final = 2_000
_FILTER_BATCH: Final = 2_000
_BUILD_BATCH: Final = 50
# How long a request waits for the index of a new seeding, and how many requests may wait for the one thread.
_MAX_BUILD_WAIT_S: Final = 30.0
_MAX_WAITING: Final = 64
# Stored embeddings are read in less; computing them takes longer than a request should wait.
_MAX_EMBEDDING_WAIT_S: Final = 2.0
_EMBEDDING_RETRY_S: Final = 15
# The nearest cases by meaning; those less similar than this have little to do with the query.
_MAX_NEAR: Final = 100
_MIN_SIMILARITY: Final = 0.35
# Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): a case scores 1 / (10 + rank) in each ranking. Not
# their 60: 10 found most histories and lay terms of one half of the cases, and more than 60 on the other half too.
_RRF_RANK: Final = 10
_CASE_TEXTS: Final = (CASE_FIELDS["u_id"], *(CASE_FIELDS[name] for name in CASE_WEIGHTS))
_IMAGE_TEXTS: Final = (IMAGE_FIELDS["image"], IMAGE_FIELDS["caption"])
_INDEXED: Final = {
    schema.CASES: {"_id": 1, **{CASE_FIELDS[name].path: 1 for name in CASE_WEIGHTS}},
    schema.IMAGES: {"U_id": 1, IMAGE_FIELDS["caption"].path: 1, IMAGE_FIELDS["modality"].path: 1},
}


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
    """Answers search queries from an index that is built anew after each seeding.

    One thread owns the index, so the event loop is never blocked; a bounded number of requests waits for it.
    The embeddings are computed in another one, once a search by meaning was asked for.
    """

    def __init__(self, database: AsyncDatabase[Document], folder: Path) -> None:
        """Nothing is read or started before the first search.

        Args:
            database: the seeded database.
            folder: where embeddings are stored.
        """
        self._database = database
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._waiting = 0
        self._index: WordIndex | None = None
        self._seed_run_id: str | None = None
        self._building: asyncio.Task[None] | None = None
        self._passages = Passages()
        self._embedding: asyncio.Future[MeaningIndex] | None = None
        self._background = ThreadPoolExecutor(1, thread_name_prefix="embeddings")
        self._stop = threading.Event()
        self._encoder: TextEncoder | None = None

    async def close(self) -> None:
        """Stop building, end the threads, delete the index."""
        self._stop.set()
        if self._building:
            self._building.cancel()
            await asyncio.gather(self._building, return_exceptions=True)
        if self._embedding:
            await asyncio.gather(self._embedding, return_exceptions=True)
        for executor in (self._background, self._thread):
            executor.shutdown(wait=True)
        if self._index:
            self._index.close()

    async def prepare(self, seed_run_id: str | None) -> WordIndex:
        """The index of a seeding; builds it if the present one is of another.

        Raises:
            UnavailableError: nothing was seeded yet, or the index is not ready in time.
        """
        if seed_run_id is None:
            raise UnavailableError("No dataset has been loaded yet. Run `medpix seed`, or wait until it is done.")
        while self._index is None or self._seed_run_id != seed_run_id:
            if self._building is None or self._building.done():
                self._building = asyncio.create_task(self._build(seed_run_id))
            done, _ = await asyncio.wait([self._building], timeout=_MAX_BUILD_WAIT_S)
            if not done:
                raise UnavailableError("The search index is being built. Try again shortly.")
            self._building.result()
        return self._index

    async def _build(self, seed_run_id: str) -> None:
        index = await self._run(WordIndex)
        passages = Passages()
        try:
            images = self._database[schema.IMAGES].find({}, _INDEXED[schema.IMAGES]).sort([("U_id", 1), ("_id", 1)])
            cases = self._database[schema.CASES].find({}, _INDEXED[schema.CASES], batch_size=_BUILD_BATCH).sort("_id")
            async with images, cases:
                following = await anext(images, None)
                while batch := await cases.to_list(_BUILD_BATCH):
                    rows: list[tuple[Document, list[Document]]] = [(case, []) for case in batch]
                    for case, own in rows:
                        while following is not None and following["U_id"] <= case["_id"]:
                            if following["U_id"] == case["_id"]:
                                own.append(following)
                            following = await anext(images, None)
                    await self._run(_add, index, passages, rows)
        except BaseException:
            self._thread.submit(index.close)
            raise
        # The index before is deleted when the last request that reads it is done.
        self._index, self._seed_run_id = index, seed_run_id
        self._passages, self._embedding = passages, None

    async def _run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call a function in the search thread.

        Raises:
            UnavailableError: too many requests wait for it.
        """
        if self._waiting >= _MAX_WAITING:
            raise UnavailableError("Too many searches are waiting. Try again shortly.")
        self._waiting += 1
        try:
            return await self._run(function, *arguments)
        finally:
            self._waiting -= 1

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
            ParameterError: the text names nothing to look for.
            UnprocessableError: the encoder is not installed.
            UnavailableError: the index is not ready, or too many searches wait.
        """
        query = parse_query(text)
        _check(query)
        index = await self.prepare(seed_run_id)
        plan = await self.run(_plan, index, query, text)
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
            ParameterError: the text names nothing to look for.
            UnavailableError: the index is not ready, or too many searches wait.
        """
        query = parse_query(text)
        _check(query)
        index = await self.prepare(seed_run_id)
        plan = await self.run(_plan, index, query, text)
        return [key for key, _ in (await self.run(_rank, index, plan, True))[:MAX_HITS]]

    async def _by_words(self, index: WordIndex, plan: _Plan, selection: Filter) -> tuple[Ranking, Matched | None]:
        ranking = await self._passing(await self.run(_rank, index, plan, True), selection)
        if ranking:
            return ranking, "all"
        if len(plan.wanted) > 1:
            ranking = await self._passing(await self.run(_rank, index, plan, False), selection)
        return ranking, "any" if ranking else None

    async def _near(self, index: WordIndex, plan: _Plan, selection: Filter, mode: Mode) -> _Near | None:
        """The nearest cases by meaning; None: the embeddings are not there yet and words must do."""
        if self._embedding is None:
            call = asyncio.get_running_loop().run_in_executor
            self._embedding = call(self._background, load_or_compute, self._passages, self._folder, self._stop)
        done, _ = await asyncio.wait([self._embedding], timeout=_MAX_EMBEDDING_WAIT_S)
        if not done:
            if mode == "hybrid":
                return None
            raise UnavailableError(
                "The sentence embeddings are being computed, which takes about a minute. Try again, or use mode=words.",
                retry_after_s=_EMBEDDING_RETRY_S,
            )
        try:
            near = await self.run(self._nearest, self._embedding.result(), index, plan)
        except EncoderError as error:
            if mode == "hybrid":
                return None
            raise UnprocessableError(f"mode=meaning cannot be used: {error}") from error
        return _Near((await self._passing(near.ranking, selection))[:_MAX_NEAR], near.images)

    def _nearest(self, embeddings: MeaningIndex, index: WordIndex, plan: _Plan) -> _Near:
        if self._encoder is None:
            self._encoder = TextEncoder()
        ranking, images = embeddings.rank(self._encoder.encode([plan.meaning])[0])
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
            documents = self._database[schema.CASES].find(query, {"_id": 1}, max_time_ms=_MAX_TIME_MS)
            keys = {row["_id"] async for row in documents}
            passed += [entry for entry in batch if entry[0] in keys]
            if len(passed) >= MAX_HITS:
                break
        return passed[:MAX_HITS]

    async def _hits(self, index: WordIndex, plan: _Plan, page: Ranking, near: _Near | None) -> list[Hit]:
        if not page:
            return []
        keys = [key for key, _ in page]
        rows = await self.run(index.images, plan.wanted, keys)
        if near is not None:
            by_caption = {image for _, image, _ in rows}
            nearest = ((key, *near.images[key]) for key in keys if key in near.images)
            rows += [row for row in nearest if row[1] not in by_caption and row[2] >= _MIN_SIMILARITY]
        cases, images = await asyncio.gather(
            self._by_id(schema.CASES, keys), self._by_id(schema.IMAGES, [image for _, image, _ in rows])
        )
        return await self.run(_marked, Highlighter(plan.wanted), page, rows, cases, images)

    async def _by_id(self, collection: str, keys: list[str]) -> dict[str, Document]:
        documents = self._database[collection].find({"_id": {"$in": keys}}, max_time_ms=_MAX_TIME_MS)
        return {document["_id"]: document async for document in documents}


def _check(query: ParsedQuery) -> None:
    if query.wanted:
        return
    if query.excluded:
        message = "only excludes; add a word to look for, such as: kidney -stone"
    elif query.stop_words:
        words = ", ".join(query.stop_words)
        message = f'nearly every case holds {words}; add another word, or search for the phrase "{words}" in quotes'
    else:
        message = "holds no word; give one or more, such as: ureter stone"
    raise ParameterError([ParameterProblem("q", message)])


def _plan(index: WordIndex, query: ParsedQuery, text: str) -> _Plan:
    wanted = [index.expand(term) for term in query.wanted]
    excluded = [index.expand(term) for term in query.excluded]
    # What is excluded would draw the embedding towards itself.
    meaning = " ".join(term.text for term in query.wanted) if excluded else text.replace('"', " ")
    return _Plan(wanted, excluded, meaning, _did_you_mean(index, wanted, text), index.id_of(text))


def fuse(*rankings: Ranking) -> Ranking:
    """Reciprocal rank fusion: keys by the sum of 1 / (10 + rank) over the rankings that hold them, best first."""
    scores: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, (key, _) in enumerate(ranking, start=1):
            scores[key] += 1 / (_RRF_RANK + rank)
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))


def _add(index: WordIndex, passages: Passages, rows: list[tuple[Document, list[Document]]]) -> None:
    index.add(rows)
    for case, images in rows:
        passages.add(case, images)


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
