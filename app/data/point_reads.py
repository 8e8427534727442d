"""Reads by id that share a query: those of one iteration of the event loop."""

import asyncio
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase

Document = dict[str, Any]


class PointReads:
    """Reads documents by their ids: those asked for in one iteration of the event loop in one query.

    Of a read by id PyMongo's own work is the larger part, and it is the same for one document and for many.
    """

    def __init__(self, database: AsyncDatabase[Document], max_time_ms: int) -> None:
        self._database = database
        self._max_time_ms = max_time_ms
        # The ids that the next query asks for, and the query, by collection and paths.
        self._next: dict[tuple[str, tuple[str, ...]], tuple[set[str], asyncio.Task[dict[str, Document]]]] = {}

    async def find(self, collection: str, key: str, paths: tuple[str, ...]) -> Document | None:
        """The document with an id, or None; ``paths`` are read of it.

        Raises:
            PyMongoError: the query failed; all that it was for get the error.
        """
        if (collection, paths) not in self._next:
            # The task begins in the next iteration of the loop; until then others add their ids.
            self._next[collection, paths] = set(), asyncio.create_task(self._query(collection, paths))
        keys, query = self._next[collection, paths]
        keys.add(key)
        # A request that is cancelled must not end the query of the others.
        return (await asyncio.shield(query)).get(key)

    async def _query(self, collection: str, paths: tuple[str, ...]) -> dict[str, Document]:
        keys, _ = self._next.pop((collection, paths))
        query = {"_id": {"$in": list(keys)}}
        fields = dict.fromkeys(paths, 1)
        documents = await self._database[collection].find(query, fields, max_time_ms=self._max_time_ms).to_list()
        return {document["_id"]: document for document in documents}
