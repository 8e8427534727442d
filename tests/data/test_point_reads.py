"""Reads by id of one iteration of the event loop share a query, and nothing else."""

import asyncio
from typing import Any

import pytest
from pymongo import AsyncMongoClient, monitoring
from pymongo.database import Database
from pymongo.errors import ServerSelectionTimeoutError

from app.data import schema
from app.data.point_reads import PointReads
from tests.conftest import database_address

Document = dict[str, Any]


class Finds(monitoring.CommandListener):
    """Counts the queries that a client sends."""

    def __init__(self) -> None:
        self.count = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.count += event.command_name == "find"

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def test_reads_at_once_share_a_query_and_one_that_is_cancelled_ends_no_other(
    generated_database: Database[Document], mongo_server: str
) -> None:
    finds = Finds()

    async def scenario() -> None:
        uri = database_address(mongo_server, generated_database.name)
        async with AsyncMongoClient[Document](uri, event_listeners=[finds]) as client:
            reads = PointReads(client.get_default_database(), 2_000)

            def read(key: str, path: str = "split") -> "asyncio.Task[Document | None]":
                return asyncio.create_task(reads.find(schema.CASES, key, (path,)))

            jobs = [read(key) for key in ("MPX1001", "MPX1002", "MPX1001", "MPX9999")]
            await asyncio.sleep(0)
            jobs[0].cancel()
            answers = await asyncio.gather(*jobs, return_exceptions=True)
            assert isinstance(answers[0], asyncio.CancelledError)
            assert [answer and answer["_id"] for answer in answers[1:]] == ["MPX1002", "MPX1001", None]  # type: ignore[index]  # documents, as their ids show
            assert finds.count == 1
            split, title = await asyncio.gather(read("MPX1001"), read("MPX1001", "norm.title"))
            assert split is not None
            assert title is not None
            assert (set(split), set(title)) == ({"_id", "split"}, {"_id", "norm"})
            assert finds.count == 3

    asyncio.run(scenario())


def test_an_error_is_that_of_every_read() -> None:
    async def scenario() -> None:
        async with AsyncMongoClient[Document]("mongodb://127.0.0.1:1/", serverSelectionTimeoutMS=100) as client:
            reads = PointReads(client["medpix"], 2_000)
            answers = await asyncio.gather(
                *(reads.find(schema.CASES, key, ("split",)) for key in ("MPX1001", "MPX1002")), return_exceptions=True
            )
            assert [type(answer) for answer in answers] == [ServerSelectionTimeoutError] * 2

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 300])
def test_any_number_is_read(generated_database: Database[Document], mongo_server: str, count: int) -> None:
    keys = [f"MPX{1001 + number % 40}" for number in range(count)]

    async def scenario() -> list[Document | None]:
        uri = database_address(mongo_server, generated_database.name)
        async with AsyncMongoClient[Document](uri) as client:
            reads = PointReads(client.get_default_database(), 2_000)
            return await asyncio.gather(*(reads.find(schema.CASES, key, ("split",)) for key in keys))

    assert [document and document["_id"] for document in asyncio.run(scenario())] == keys
