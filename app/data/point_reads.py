"""Reads by id that share a query: those of one iteration of the event loop."""

import asyncio
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

Document = dict[str, Any]


class PointReads:
    """Reads documents by their ids: those asked for in one iteration of the event loop in one query.

    Of a read by id PyMongo's own work is the larger part, and it is the same for one document and for many.
    """

    def __init__(self, database: AsyncDatabase[Document], max_time_ms: int) -> None:
        self._database = database
        self._max_time_ms = max_time_ms
        self._waiting: dict[tuple[str, tuple[str, ...]], dict[str, list[asyncio.Future[Document | None]]]] = {}
        self._queries: set[asyncio.Task[None]] = set()

    async def find(self, collection: str, key: str, paths: tuple[str, ...]) -> Document | None:
        """The document with an id, or None; ``paths`` are read of it.

        Raises:
            PyMongoError: the query failed; all that it was for get the error.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Document | None] = loop.create_future()
        waiting = self._waiting.get((collection, paths))
        if waiting is None:
            waiting = self._waiting[collection, paths] = {}
            loop.call_soon(self._start, collection, paths)
        # A future for each request: one that is cancelled ends no other.
        waiting.setdefault(key, []).append(future)
        return await future

    def _start(self, collection: str, paths: tuple[str, ...]) -> None:
        query = asyncio.create_task(self._query(collection, paths, self._waiting.pop((collection, paths))))
        self._queries.add(query)
        query.add_done_callback(self._queries.discard)

    async def _query(
        self, collection: str, paths: tuple[str, ...], waiting: dict[str, list[asyncio.Future[Document | None]]]
    ) -> None:
        query = {"_id": {"$in": list(waiting)}}
        fields = dict.fromkeys(paths, 1)
        try:
            documents = await self._database[collection].find(query, fields, max_time_ms=self._max_time_ms).to_list()
        except PyMongoError as error:
            for future in (future for futures in waiting.values() for future in futures if not future.done()):
                future.set_exception(error)
            return
        found = {document["_id"]: document for document in documents}
        for key, futures in waiting.items():
            for future in futures:
                if not future.done():
                    future.set_result(found.get(key))
