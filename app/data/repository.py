"""Every question that the API asks of the data collections."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pymongo import WriteConcern
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from app.data import pagination as cursor
from app.data import regex_filter, schema
from app.data.facets import MAX_VALUES, facets, statistics
from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS, Field
from app.data.filters import Filter
from app.data.image_hash_index import Contents
from app.data.pagination import SortOrder
from app.data.search import Mode, Search, SearchResult

Document = dict[str, Any]

# A contains or regex condition reads every document; MongoDB stops it after this time.
MAX_TIME_MS: Final = 2_000
# Counting reads an index entry per document: on a large collection it would take longer than the page itself.
MAX_TOTAL: Final = 10_000
_MAX_TOTALS: Final = 1_000
_MAX_RESOLVED: Final = 32
_LATEST_S: Final = 1.0
# What was acknowledged survives the loss of any one member.
_MAJORITY: Final = WriteConcern("majority", wtimeout=5_000)
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
CASES: Final = Collection(schema.CASES, "case", CASE_FIELDS)
IMAGES: Final = Collection(schema.IMAGES, "image", IMAGE_FIELDS)


def case_pipeline(u_id: str) -> list[Document]:
    """The aggregation that joins a case with its images."""
    images = {
        "from": schema.IMAGES,
        "localField": "_id",
        "foreignField": "U_id",
        "pipeline": [{"$sort": {"_id": 1}}],
        "as": "images",
    }
    return [{"$match": {"_id": u_id}}, {"$lookup": images}]


class Repository:
    """Reads cases and images."""

    def __init__(self, database: AsyncDatabase[Document], cache: Path) -> None:
        """Nothing is read yet.

        Args:
            database: the seeded database.
            cache: folder for what can be computed again, such as the embeddings of the search.
        """
        self._database = database
        self._latest: Document | None = None
        self._latest_expires = 0.0
        self._contents = Contents(database, MAX_TIME_MS)
        self._totals: dict[tuple[str | None, str, str], int] = {}
        self._resolved: dict[tuple[str, str, str], Document] = {}
        self._search = Search(database, cache / "search")

    async def _latest_run(self) -> Document | None:
        """The last complete seeding run; at most a second old."""
        now = time.monotonic()
        if now >= self._latest_expires:
            self._latest = await self.latest_seed()
            self._latest_expires = now + _LATEST_S
        return self._latest

    async def dataset_version(self) -> str | None:
        """The version of the seeded dataset, None before the first seeding."""
        run = await self._latest_run()
        return run["dataset_version"] if run else None

    async def seeded(self) -> str | None:
        """Names the last complete seeding run: while it is the same, the cases and images are."""
        run = await self._latest_run()
        return str(run["_id"]) if run else None

    async def get(self, collection: Collection, key: str) -> Document:
        """The document with a key.

        Raises:
            NotFoundError: there is none.
        """
        document = await self._database[collection.name].find_one({"_id": key}, max_time_ms=MAX_TIME_MS)
        if document is None:
            raise NotFoundError(f"There is no {collection.noun} {key}.")
        return document

    async def get_many(self, collection: Collection, keys: Sequence[str]) -> list[Document]:
        """The documents with some keys, in any order; those that are not there are left out."""
        found = self._database[collection.name].find({"_id": {"$in": list(keys)}}, max_time_ms=MAX_TIME_MS)
        return await found.to_list()

    async def case_with_images(self, u_id: str) -> tuple[Document, list[Document]]:
        """A case and its images ordered by id, read in one round trip.

        Raises:
            NotFoundError: there is no such case.
        """
        cases = self._database[schema.CASES]
        found = await (await cases.aggregate(case_pipeline(u_id), maxTimeMS=MAX_TIME_MS)).to_list()
        if not found:
            raise NotFoundError(f"There is no {CASES.noun} {u_id}.")
        images: list[Document] = found[0].pop("images")
        return found[0], images

    async def image_with_content(self, sha256: str) -> Document | None:
        """The image whose file has a content hash: its id, case and split; None if it is not of the dataset."""
        try:
            seeded = await self.seeded()
        except PyMongoError:
            if self._contents.seeded is None:
                raise
            seeded = self._contents.seeded  # what was there before is there still
        return await self._contents.find(sha256, seeded)

    async def remember_contents(self) -> None:
        """Read what ``image_with_content`` needs, so that the first upload does not wait for it."""
        await self.image_with_content("")

    async def cases(self, keys: Sequence[str]) -> dict[str, Document]:
        """The cases with these ids, by id."""
        return {document["_id"]: document for document in await self.get_many(CASES, keys)}

    async def resolve(self, collection: Collection, selection: Filter) -> Filter:
        """A filter whose regular expressions were replaced by the ids of the documents that match them.

        Raises:
            UnprocessableError: too many documents pass the other conditions.
            DeadlineExceededError: reading and matching them took too long.
        """
        if not regex_filter.has_regex(selection.query):
            return selection
        seeded = await self.seeded() if collection is not ANNOTATIONS else None
        key = (seeded or "", collection.name, selection.canonical)
        query = self._resolved.get(key)
        if query is None:
            query = await regex_filter.resolve(self._database[collection.name], selection.query)
            if seeded is not None:
                self._resolved[key] = query
                if len(self._resolved) > _MAX_RESOLVED:
                    del self._resolved[next(iter(self._resolved))]
        return replace(selection, query=query)

    async def stream(
        self, collection: Collection, selection: Filter, order: SortOrder | None = None
    ) -> AsyncIterator[Document]:
        """Every document that passes a filter, by id or in another order; a batch at a time is held in memory."""
        selection = await self.resolve(collection, selection)
        target = self._database[collection.name]
        found = target.find(selection.query, batch_size=_STREAM_BATCH, max_time_ms=_STREAM_TIME_MS)
        # A large selection in an order without an index is sorted on the server's disk.
        found = found.sort(order.mongo).allow_disk_use(True) if order else found.sort("_id")
        async with found:
            async for document in found:
                yield document

    async def page(
        self, collection: Collection, selection: Filter, order: SortOrder, *, limit: int, after: str | None
    ) -> Page:
        """One page of the documents that pass a filter.

        Raises:
            ParameterError: the cursor does not fit the filter and the order.
        """
        selection = await self.resolve(collection, selection)
        conditions = [selection.query] if selection.query else []
        if after is not None:
            conditions.append(cursor.decode_cursor(after, order, selection.canonical))
        query = {"$and": conditions} if conditions else {}
        target = self._database[collection.name]
        found = target.find(query, max_time_ms=MAX_TIME_MS).sort(order.mongo).limit(limit + 1)
        documents, total = await asyncio.gather(found.to_list(), self._count(collection, selection))
        more = len(documents) > limit
        documents = documents[:limit]
        following = cursor.encode_cursor(documents[-1], order, selection.canonical) if more else None
        is_exact = total < MAX_TOTAL or selection.is_empty
        return Page(documents, total, is_exact, following)

    async def _count(self, collection: Collection, selection: Filter) -> int:
        target = self._database[collection.name]
        if selection.is_empty:
            return await target.estimated_document_count(maxTimeMS=MAX_TIME_MS)
        # Cases and images change with a seeding alone: walking through pages counts once.
        seeded = await self.seeded() if collection is not ANNOTATIONS else None
        key = (seeded, collection.name, selection.canonical)
        total = self._totals.get(key)
        if total is None:
            total = await target.count_documents(selection.query, maxTimeMS=MAX_TIME_MS, limit=MAX_TOTAL)
            if seeded is not None:
                self._remember(key, total)
        return total

    def _remember(self, key: tuple[str | None, str, str], total: int) -> None:
        self._totals[key] = total
        if len(self._totals) > _MAX_TOTALS:
            del self._totals[next(iter(self._totals))]

    async def annotate(self, image: Document, values: Document, by: str) -> Document:
        """Store an annotation on an image; returns it once a majority of the members have it.

        Args:
            image: the stored image that was seen.
            values: modality, location, location_category and comment, each may be None.
            by: who wrote it.
        """
        document = {
            "_id": uuid.uuid4().hex,
            "image": image["_id"],
            "U_id": image["U_id"],
            **values,
            "by": by,
            # As text: it sorts as it should, and filters and cursors take it as they take any other.
            "created_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "image_sha256": image["file"]["sha256"],
            "dataset_version": await self.dataset_version(),
        }
        target = self._database.get_collection(schema.ANNOTATIONS, write_concern=_MAJORITY)
        await target.insert_one(document)
        return document

    async def search(self, text: str, selection: Filter, *, mode: Mode, limit: int, offset: int) -> SearchResult:
        """Cases by their texts and the captions of their images, best first."""
        selection = await self.resolve(CASES, selection)
        seed_run_id = await self.seeded()
        return await self._search.search(
            text, selection, mode=mode, seed_run_id=seed_run_id, limit=limit, offset=offset
        )

    async def prepare_search(self) -> None:
        """Build the index of the search, so that the first query does not wait for it."""
        seed_run_id = await self.seeded()
        if seed_run_id is not None:
            await self._search.prepare(seed_run_id)

    async def close(self) -> None:
        """End the thread of the search; the database stays open."""
        await self._search.close()

    async def facets(self, selection: Filter) -> Document:
        """Counts of the images under a filter, per value of a few fields."""
        return await facets(self._database, await self.resolve(IMAGES, selection))

    async def statistics(self, collection: Collection, selection: Filter) -> Document:
        """Nulls and distributions of every field of a collection under a filter."""
        selection = await self.resolve(collection, selection)
        return await statistics(self._database, collection.name, collection.fields, selection)

    async def known_values(self, collection: Collection) -> dict[str, list[Any]]:
        """The values that occur in each keyword or list field with at most 100 of them."""
        described = await self.statistics(collection, Filter({}, "", scans=False))
        return {
            name: [value["value"] for value in row["values"]]
            for name, row in described["fields"].items()
            if "values" in row and row["distinct"] <= MAX_VALUES
        }

    async def latest_seed(self) -> Document | None:
        """The last complete seeding run, None if there has been none."""
        return await self._database[schema.SEED_RUNS].find_one(
            {"state": "complete"}, sort=[("started_at", -1)], max_time_ms=MAX_TIME_MS
        )

    async def counts(self) -> dict[str, int]:
        """How many cases and images there are."""
        cases, images = await asyncio.gather(
            self._database[schema.CASES].estimated_document_count(),
            self._database[schema.IMAGES].estimated_document_count(),
        )
        return {"cases": cases, "images": images}
