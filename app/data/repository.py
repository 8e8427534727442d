"""Every question that the API asks of the data collections."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from app.core.exceptions import ProblemItem, UnavailableError
from app.data import integrity, pagination, regex_filter, schema
from app.data.client import MAX_TIME_MS, UNAUTHORIZED
from app.data.facets import facets, statistics
from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS, VIEW_FIELDS, Field
from app.data.filters import EVERYTHING, Filter, ParameterError, Vocabulary
from app.data.image_hash_index import ImageHashIndex
from app.data.pagination import SortOrder
from app.data.point_reads import PointReads
from app.data.sampling import sample
from app.data.search import MAX_HITS, Mode, Search, SearchResult
from app.data.search_index import SearchIndex
from app.data.seed_runs import SeedRuns
from app.data.serializers import ANSWER, case_answer, case_view, encode, image_answer, image_view

Document = dict[str, Any]

# Counting reads an index entry per document: on a large collection it would take longer than the page itself.
MAX_TOTAL: Final = 10_000
_MAX_TOTALS: Final = 1_000
_MAX_RESOLVED: Final = 32
_STREAM_BATCH: Final = 200
# MongoDB's own work on a whole export, without the time that the client takes.
_STREAM_TIME_MS: Final = 60_000


class NotFoundError(Exception):
    """There is no document with this key."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of stored documents.

    Attributes:
        documents: in the asked order.
        total: how many documents pass the filter, at most ``MAX_TOTAL`` of them counted.
        total_is_exact: whether that is all of them.
        next_cursor: where the next page starts; None on the last page.
    """

    documents: list[Document]
    total: int
    total_is_exact: bool
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Collection:
    """A data collection with its public fields."""

    name: str
    noun: str
    fields: Mapping[str, Field]


ANNOTATIONS: Final = Collection(schema.ANNOTATIONS, "annotation", ANNOTATION_FIELDS)
VIEWS: Final = Collection(schema.VIEWS, "view", VIEW_FIELDS)
CASES: Final = Collection(schema.CASES, "case", CASE_FIELDS)
IMAGES: Final = Collection(schema.IMAGES, "image", IMAGE_FIELDS)


# Stored responses double the size of a document: queries for its other fields leave them out.
_WITHOUT_ANSWER: Final = {ANSWER: 0}


def _has_answer(collection: Collection, document: Document) -> bool:
    """Whether a document has its own answer; one of an older version, or a copy under another id, has not."""
    summary: bytes = document.get(ANSWER, {}).get("summary", b"")
    return summary.startswith(encode({collection.noun if collection is IMAGES else "u_id": document["_id"]})[:-1])


def _summary(collection: Collection, document: Document) -> bytes:
    return encode(image_view(document) if collection is IMAGES else case_view(document))


class Repository:
    """Reads cases and images.

    Attributes:
        seed_runs: which seeding wrote them.
        fault_check: what was removed since.
    """

    def __init__(self, database: AsyncDatabase[Document], cache: Path) -> None:
        """Nothing is read yet.

        Args:
            database: the seeded database.
            cache: folder for what can be computed again, such as the embeddings of the search.
        """
        self._database = database
        self.seed_runs = SeedRuns(database)
        self.fault_check = integrity.FaultCheck(database, MAX_TOTAL)
        self._totals: dict[tuple[str, str, str], int] = {}
        self._hash_index = ImageHashIndex(database, MAX_TIME_MS)
        self._resolved: dict[tuple[str, str, str], Document] = {}
        self._point_reads = PointReads(database, MAX_TIME_MS)
        self._search = Search(database, SearchIndex(database, cache / "search"))

    async def revision(self, collection: Collection) -> str:
        """Names the content of a collection: while it is the same, every selection of it is the same.

        Raises:
            UnavailableError: nothing was seeded yet, or a seeding has not been completed and the content may change.
        """
        if collection is ANNOTATIONS:  # none ever changes or goes
            target = self._database[ANNOTATIONS.name]
            return f"{await target.count_documents({}, maxTimeMS=MAX_TIME_MS)} annotations"
        run = await self.seed_runs.latest()
        if run is None or not self.seed_runs.settled:
            raise UnavailableError(
                "The dataset is being loaded, or its loading broke off. Try again shortly, or run `medpix seed`."
            )
        return str(run.get("records_sha256") or run["_id"])

    async def get(self, collection: Collection, key: str) -> Document:
        """The document with a key.

        Raises:
            NotFoundError: there is none.
        """
        document = await self._database[collection.name].find_one(
            {"_id": key}, _WITHOUT_ANSWER, max_time_ms=MAX_TIME_MS
        )
        if document is None:
            raise NotFoundError(f"There is no {collection.noun} {key}.")
        return document

    async def answer(self, collection: Collection, key: str, *members: str) -> Document:
        """Members of the answer that seeding stored with a case or an image.

        Raises:
            NotFoundError: there is no such document.
        """
        paths = tuple(f"{ANSWER}.{member}" for member in (*members, "summary"))
        document = await self._point_reads.find(collection.name, key, paths)
        if document is None:
            raise NotFoundError(f"There is no {collection.noun} {key}.")
        if _has_answer(collection, document):
            answer: Document = document[ANSWER]
            return answer
        return await self._made_answer(collection, await self.get(collection, key))

    async def answers(self, collection: Collection, keys: Sequence[str], member: str) -> dict[str, bytes]:
        """A member of the stored answers of some cases or images, by id; those that are not there are left out."""
        fields = {f"{ANSWER}.{member}": 1, f"{ANSWER}.summary": 1}
        documents = self._database[collection.name].find({"_id": {"$in": list(keys)}}, fields, max_time_ms=MAX_TIME_MS)
        return {
            document["_id"]: document[ANSWER][member]
            if _has_answer(collection, document)
            else (await self.answer(collection, document["_id"], member))[member]
            async for document in documents
        }

    async def _made_answer(self, collection: Collection, document: Document) -> Document:
        if collection is IMAGES:
            return image_answer(document)
        images = self._database[schema.IMAGES].find({"U_id": document["_id"]}, _WITHOUT_ANSWER, max_time_ms=MAX_TIME_MS)
        return case_answer(document, [image_answer(image)["summary"] async for image in images.sort("_id")])

    async def get_many(
        self, collection: Collection, keys: Sequence[str], paths: Sequence[str] | None = None
    ) -> list[Document]:
        """The documents with some keys, in any order; those that are not there are left out.

        Args:
            collection: where they are.
            keys: their ids.
            paths: what is read of each beside its id; None: all but the stored answer.
        """
        query = {"_id": {"$in": list(keys)}}
        fields: Document = _WITHOUT_ANSWER if paths is None else dict.fromkeys(paths, 1)
        return await self._database[collection.name].find(query, fields, max_time_ms=MAX_TIME_MS).to_list()

    async def keys(self, collection: Collection, selection: Filter) -> set[str]:
        """The ids of all documents that pass a filter."""
        selection = await self.resolve(collection, selection)
        documents = self._database[collection.name].find(selection.query, {"_id": 1}, max_time_ms=MAX_TIME_MS)
        return {document["_id"] async for document in documents}

    async def image_with_content(self, sha256: str) -> Document | None:
        """The image whose file has a content hash: its id, case and split; None if it is not of the dataset."""
        try:
            seeded = await self.seed_runs.latest_id()
        except PyMongoError:
            if self._hash_index.seed_run_id is None:
                raise
            seeded = self._hash_index.seed_run_id  # what was there before is there still
        return await self._hash_index.find(sha256, seeded)

    async def load_image_hashes(self) -> None:
        """Read what ``image_with_content`` needs, so that the first upload does not wait for it."""
        await self.image_with_content("")

    async def cases(self, keys: Sequence[str], paths: Sequence[str] | None = None) -> dict[str, Document]:
        """The cases with these ids, by id; ``paths`` as in ``get_many``."""
        return {document["_id"]: document for document in await self.get_many(CASES, keys, paths)}

    async def resolve(self, collection: Collection, selection: Filter) -> Filter:
        """A filter whose regular expressions were replaced by the ids of the documents that match them.

        Raises:
            UnprocessableError: too many documents pass the other conditions.
            DeadlineExceededError: reading and matching them took too long.
        """
        if not regex_filter.has_regex(selection.query):
            return selection
        # Cases and images change with a seeding alone.
        seeded = await self.seed_runs.latest_id() if collection in (CASES, IMAGES) else None
        key = (seeded or "", collection.name, selection.canonical)
        query = self._resolved.get(key)
        if query is None:
            query = await regex_filter.resolve(self._database[collection.name], selection.query)
            if seeded is not None and self.seed_runs.settled:
                self._resolved[key] = query
                if len(self._resolved) > _MAX_RESOLVED:
                    del self._resolved[next(iter(self._resolved))]
        return replace(selection, query=query)

    async def stream(
        self,
        collection: Collection,
        selection: Filter,
        order: SortOrder | None = None,
        *,
        batch_size: int = _STREAM_BATCH,
    ) -> AsyncGenerator[Document]:
        """Every document that passes a filter, by id or in another order; a batch at a time is held in memory."""
        selection = await self.resolve(collection, selection)
        target = self._database[collection.name]
        documents = target.find(selection.query, _WITHOUT_ANSWER, batch_size=batch_size, max_time_ms=_STREAM_TIME_MS)
        # A large selection in an order without an index is sorted on the server's disk.
        documents = documents.sort(order.mongo).allow_disk_use(True) if order else documents.sort("_id")
        async with documents:
            async for document in documents:
                yield document

    async def page(
        self,
        collection: Collection,
        selection: Filter,
        order: SortOrder,
        *,
        limit: int,
        after: str | None,
        summaries: bool = False,
    ) -> Page:
        """One page of the documents that pass a filter; with ``summaries``, of each only its stored answer.

        Raises:
            ParameterError: the cursor does not fit the filter and the order.
        """
        selection = await self.resolve(collection, selection)
        conditions = [selection.query] if selection.query else []
        if after is not None:
            conditions.append(pagination.decode_cursor(after, order, selection.canonical))
        query = {"$and": conditions} if conditions else {}
        target = self._database[collection.name]
        # A cursor needs the keys of the order.
        keys: Document = {key.path: 1 for key in order.keys}
        fields: Document = {f"{ANSWER}.summary": 1, **keys} if summaries else _WITHOUT_ANSWER
        matching = target.find(query, fields, max_time_ms=MAX_TIME_MS).sort(order.mongo).limit(limit + 1)
        documents, total = await asyncio.gather(matching.to_list(), self._count(collection, selection))
        more = len(documents) > limit
        documents = documents[:limit]
        following = pagination.encode_cursor(documents[-1], order, selection.canonical) if more else None
        if summaries:
            missing = [each["_id"] for each in documents if not _has_answer(collection, each)]
            made = {each["_id"]: each for each in await self.get_many(collection, missing)} if missing else {}
            documents = [
                {"summary": _summary(collection, made[key]) if key in made else each[ANSWER]["summary"]}
                for each in documents
                for key in [each["_id"]]
            ]
        return Page(documents, total, total < MAX_TOTAL, following)

    async def count(self, collection: Collection, selection: Filter) -> int:
        """How many documents pass a filter, counted to ``MAX_TOTAL``."""
        return await self._count(collection, await self.resolve(collection, selection))

    async def _count(self, collection: Collection, selection: Filter) -> int:
        """How many documents pass a filter, counted to ``MAX_TOTAL``.

        The count that MongoDB keeps (`estimated_document_count`) is wrong after the server was killed.
        """
        target = self._database[collection.name]
        run_id = await self.seed_runs.latest_id()
        key = (run_id or "", collection.name, selection.canonical)
        # Cases and images change with a seeding alone: walking through pages counts once.
        is_fixed = run_id is not None and self.seed_runs.settled and collection in (CASES, IMAGES)
        if is_fixed and key in self._totals:
            return self._totals[key]
        total = await target.count_documents(selection.query, maxTimeMS=MAX_TIME_MS, limit=MAX_TOTAL)
        if is_fixed:
            self._totals[key] = total
            if len(self._totals) > _MAX_TOTALS:
                del self._totals[next(iter(self._totals))]
        return total

    async def vocabulary(self, collection: Collection) -> Vocabulary:
        """All values of the keyword and list fields that have few of them, as the last seeding found them."""
        run = await self.seed_runs.latest()
        values = (run or {}).get("values", {}).get(collection.name, [])
        return {each["field"]: each["values"] for each in values}

    async def found_by_text(self, collection: Collection, selection: Filter, text: str) -> Filter:
        """Narrow a filter to the cases that hold every term of a search, or to their images.

        Raises:
            ParameterError: the search finds more cases than it ranks, so the selection would not be whole.
        """
        keys = await self._search.ids(text, seed_run_id=await self.seed_runs.latest_id())
        if len(keys) >= MAX_HITS:
            message = f"finds {MAX_HITS} cases or more; use more words"
            raise ParameterError([ProblemItem("q", message)])
        path = "_id" if collection is CASES else "U_id"
        return selection.narrowed({path: {"$in": keys}}, f"q={text!r}")

    async def sampled(
        self, collection: Collection, selection: Filter, size: int, seed: int, *, per_case: bool
    ) -> Filter:
        """Narrow a filter to a random sample; the same seed gives the same one for the same data.

        Args:
            collection: what is sampled.
            selection: what it is taken from.
            size: of the sample.
            seed: of the random choice.
            per_case: at most one document of each case.
        """
        selection = await self.resolve(collection, selection)
        group_by = "U_id" if per_case else "_id"
        chosen = await sample(
            self._database[collection.name], selection.query, size, seed, group_by=group_by, max_time_ms=MAX_TIME_MS
        )
        return selection.narrowed({"_id": {"$in": chosen}}, f"sample={size},{seed},{per_case}")

    async def search(self, text: str, selection: Filter, *, mode: Mode, limit: int, offset: int) -> SearchResult:
        """Cases by their texts and the captions of their images, best first."""
        selection = await self.resolve(CASES, selection)
        seed_run_id = await self.seed_runs.latest_id()
        return await self._search.search(
            text, selection, mode=mode, seed_run_id=seed_run_id, limit=limit, offset=offset
        )

    async def prepare_search(self) -> None:
        """Build the index of the search, so that the first query does not wait for it."""
        seed_run_id = await self.seed_runs.latest_id()
        if seed_run_id is not None:
            await self._search.index.prepare(seed_run_id)

    async def close(self) -> None:
        """End the thread of the search; the database stays open."""
        await self._search.index.close()

    async def facets(self, selection: Filter) -> Document:
        """Counts of the images under a filter, per value of a few fields."""
        selection = await self.resolve(IMAGES, selection)
        run = await self.seed_runs.latest()
        # While a seeding runs, the images may already be others than those that were counted.
        counted = str(run["_id"]) if run is not None and self.seed_runs.settled and run.get("facets_counted") else None
        try:
            return await facets(self._database, selection, counted)
        except OperationFailure as error:
            if counted is None or error.code != UNAUTHORIZED:
                raise
            # The roles of the containers were made by a version that had no counts.
            return await facets(self._database, selection)

    async def statistics(self, collection: Collection, selection: Filter) -> Document:
        """Nulls and distributions of every field of a collection under a filter."""
        selection = await self.resolve(collection, selection)
        return await statistics(self._database, collection.name, collection.fields, selection)

    async def counts(self) -> dict[str, int]:
        """How many cases and images there are, each counted to ``MAX_TOTAL``."""
        cases, images = await asyncio.gather(self._count(CASES, EVERYTHING), self._count(IMAGES, EVERYTHING))
        return {"cases": cases, "images": images}
