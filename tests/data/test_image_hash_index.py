import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from app.data import image_hash_index as contents
from app.data import schema
from app.data.image_hash_index import ImageHashIndex

Document = dict[str, Any]


class Queries(CommandListener):
    """Counts what the database is asked."""

    def __init__(self) -> None:
        self.count = 0

    def started(self, event: CommandStartedEvent) -> None:
        self.count += event.command_name == "find"

    def succeeded(self, event: Any) -> None:
        pass

    failed = succeeded


def _image(name: str, sha256: str) -> Document:
    return {"_id": name, "U_id": name[:7], "split": "dev", "file": {"sha256": sha256}}


def _run(
    server: str,
    client: MongoClient[Document],
    images: list[Document],
    ask: Callable[[ImageHashIndex, Queries], Awaitable[None]],
) -> None:
    client.drop_database("test_contents")
    client["test_contents"][schema.IMAGES].insert_many(images)
    queries = Queries()

    async def scenario() -> None:
        async with AsyncMongoClient[Document](server, event_listeners=[queries]) as own:
            await ask(ImageHashIndex(own["test_contents"], 2000), queries)

    asyncio.run(scenario())
    client.drop_database("test_contents")


def test_one_query_serves_all_until_the_next_seeding(mongo_server: str, mongo_client: MongoClient[Document]) -> None:
    async def ask(hash_index: ImageHashIndex, queries: Queries) -> None:
        expected = {"image": "MPX1001_synpic1", "u_id": "MPX1001", "split": "dev"}
        for _ in range(3):
            assert await hash_index.find("a", "first") == expected
            assert await hash_index.find("none", "first") is None
        assert queries.count == 1
        mongo_client["test_contents"][schema.IMAGES].insert_one(_image("MPX1002_synpic2", "b"))
        assert await hash_index.find("b", "first") is None
        assert (await hash_index.find("b", "second") or {})["u_id"] == "MPX1002"
        assert queries.count == 2

    _run(mongo_server, mongo_client, [_image("MPX1001_synpic1", "a")], ask)


def test_a_large_dataset_is_not_kept(
    mongo_server: str, mongo_client: MongoClient[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_MOST", 2)

    async def ask(hash_index: ImageHashIndex, queries: Queries) -> None:
        for _ in range(2):
            assert (await hash_index.find("1", "first") or {})["image"] == "MPX1001_synpic1"
            assert await hash_index.find("none", "first") is None
        assert queries.count == 5

    _run(mongo_server, mongo_client, [_image(f"MPX100{n}_synpic{n}", str(n)) for n in range(3)], ask)


def test_before_the_first_seeding_the_database_is_asked(mongo_server: str, mongo_client: MongoClient[Document]) -> None:
    async def ask(hash_index: ImageHashIndex, queries: Queries) -> None:
        assert (await hash_index.find("a", None) or {})["u_id"] == "MPX1001"
        assert queries.count == 1

    _run(mongo_server, mongo_client, [_image("MPX1001_synpic1", "a")], ask)


def test_who_asks_while_the_hashes_are_read_is_answered(mongo_server: str, mongo_client: MongoClient[Document]) -> None:
    async def ask(hash_index: ImageHashIndex, queries: Queries) -> None:
        images = await asyncio.gather(*(hash_index.find("a", "first") for _ in range(5)))
        assert [image and image["u_id"] for image in images] == ["MPX1001"] * 5
        asked = queries.count
        await hash_index.find("a", "first")
        assert queries.count == asked

    _run(mongo_server, mongo_client, [_image("MPX1001_synpic1", "a")], ask)
