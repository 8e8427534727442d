"""Selections that were saved under a name."""

import uuid
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

from app.core.exceptions import ConflictError
from app.data import schema
from app.data.client import MAX_TIME_MS

Document = dict[str, Any]

# Of one writer: enough for people, and a bound for programs.
_MAX_VIEWS: Final = 1_000


class SavedViews:
    """Writes and deletes views; ``Repository`` reads them as it reads every collection."""

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._views = database.get_collection(schema.VIEWS, write_concern=schema.MAJORITY)

    async def save(
        self, name: str, of: str, query: str, *, total: int, dataset_version: str | None, by: str
    ) -> Document:
        """Store a view; returns it once a majority of the members have it.

        Args:
            name: of the view.
            of: images or cases.
            query: the parameters that select them.
            total: how many there are.
            dataset_version: of the data that were selected from.
            by: who saves it.

        Raises:
            ConflictError: the writer has a view of this name, or too many views.
        """
        if await self._views.count_documents({"by": by}, limit=_MAX_VIEWS, maxTimeMS=MAX_TIME_MS) >= _MAX_VIEWS:
            raise ConflictError(f"{by} has {_MAX_VIEWS} views, which is the most. Delete one first.")
        document = {"_id": uuid.uuid4().hex, "name": name, "of": of, "query": query, "total": total}
        document |= {"dataset_version": dataset_version, "by": by, "created_at": schema.now()}
        try:
            await self._views.insert_one(document)
        except DuplicateKeyError:
            existing = await self._views.find_one({"by": by, "name": name}, {"_id": 1}, max_time_ms=MAX_TIME_MS)
            location = f": /views/{existing['_id']}" if existing else ""
            raise ConflictError(f"{by} has a view of this name{location}. Choose another name, or delete it.") from None
        return document

    async def delete(self, key: str) -> None:
        """Delete a view; it makes no difference whether it is there."""
        await self._views.delete_one({"_id": key})
