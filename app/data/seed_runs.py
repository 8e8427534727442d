"""The seeding runs: which one wrote the data that are read, and what is derived from all of them once per run."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

from pymongo.asynchronous.database import AsyncDatabase

from app.data import schema
from app.data.client import MAX_TIME_MS

Document = dict[str, Any]
_Measured = TypeVar("_Measured")

_LATEST_S: Final = 1.0


class SeedRuns:
    """Reads the seeding runs of a database.

    Attributes:
        settled: whether no seeding runs or was killed when ``latest`` read the runs: while one does, what is read may
            change under the same run.
    """

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._runs = database[schema.SEED_RUNS]
        self._latest: Document | None = None
        self._latest_expires = 0.0
        self.settled = False
        self._measured: dict[str, tuple[str | None, Any]] = {}
        self._measuring = asyncio.Lock()

    async def latest(self) -> Document | None:
        """The last complete seeding run; at most a second old."""
        now = time.monotonic()
        if now >= self._latest_expires:
            newest = await self._runs.find_one({}, sort=schema.LATEST_RUN_FIRST, max_time_ms=MAX_TIME_MS)
            self.settled = newest is not None and newest["state"] == "complete"
            self._latest = newest if self.settled else await self.read_latest()
            self._latest_expires = now + _LATEST_S
        return self._latest

    async def read_latest(self) -> Document | None:
        """The last complete seeding run as the database has it now, None if there has been none."""
        return await self._runs.find_one({"state": "complete"}, sort=schema.LATEST_RUN_FIRST, max_time_ms=MAX_TIME_MS)

    async def dataset_version(self) -> str | None:
        """The version of the seeded dataset, None before the first seeding."""
        run = await self.latest()
        return run["dataset_version"] if run else None

    async def latest_id(self) -> str | None:
        """Names the last complete seeding run: while it is the same, the cases and images are."""
        run = await self.latest()
        return str(run["_id"]) if run else None

    async def once_per_seeding(self, name: str, measure: Callable[[], Awaitable[_Measured]]) -> _Measured:
        """What is derived from all documents: measured again only after a seeding.

        Args:
            name: of what is measured; there are few of them.
            measure: makes it.
        """
        async with self._measuring:
            before = await self.latest_id()
            run_id, value = self._measured.get(name, (None, None))
            if run_id is None or run_id != before:
                value = await measure()
                # A value that was measured while a seeding ran is answered once and not kept.
                await self.latest()
                if self.settled and await self.latest_id() == before:
                    self._measured[name] = before, value
            return cast("_Measured", value)
