"""Every question that the API asks of the data collections."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase

from app.data import cursor, schema
from app.data.cursor import SortOrder
from app.data.fields import CASE_FIELDS, IMAGE_FIELDS, Field
from app.data.filters import Filter

Document = dict[str, Any]

# A contains or regex condition reads every document; MongoDB stops it after this time.
MAX_TIME_MS: Final = 2_000


class NotFoundError(Exception):
    """There is no document with this key."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of stored documents.

    Attributes:
        documents: in the asked order.
        total: how many documents pass the filter.
        next_cursor: where the next page starts; None on the last page.
    """

    documents: list[Document]
    total: int
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Collection:
    """A data collection with its public fields."""

    name: str
    noun: str
    fields: Mapping[str, Field]


CASES: Final = Collection(schema.CASES, "case", CASE_FIELDS)
IMAGES: Final = Collection(schema.IMAGES, "image", IMAGE_FIELDS)


class Repository:
    """Reads cases and images."""

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._database = database

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

    async def images_of_case(self, u_id: str) -> list[Document]:
        """The images of a case, ordered by id."""
        found = self._database[schema.IMAGES].find({"U_id": u_id}, max_time_ms=MAX_TIME_MS).sort("_id")
        return await found.to_list()

    async def image_with_content(self, sha256: str) -> Document | None:
        """The image whose file has a content hash: its id, case and split; None if it is not of the dataset."""
        found = await self._database[schema.IMAGES].find_one(
            {"file.sha256": sha256}, {"U_id": 1, "split": 1}, max_time_ms=MAX_TIME_MS
        )
        return found and {"image": found["_id"], "u_id": found["U_id"], "split": found["split"]}

    async def page(
        self, collection: Collection, selection: Filter, order: SortOrder, *, limit: int, after: str | None
    ) -> Page:
        """One page of the documents that pass a filter.

        Raises:
            ParameterError: the cursor does not fit the filter and the order.
        """
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
        return Page(documents, total, following)

    async def _count(self, collection: Collection, selection: Filter) -> int:
        target = self._database[collection.name]
        if selection.is_empty:
            return await target.estimated_document_count(maxTimeMS=MAX_TIME_MS)
        return await target.count_documents(selection.query, maxTimeMS=MAX_TIME_MS)

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
