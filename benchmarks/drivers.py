"""PyMongo Async against Motor: reads of single cases and of the case join, 64 at a time.

    python -m benchmarks.drivers --data ../shared/MedPix-2.0

Needs benchmarks/requirements.lock.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient

from app.core.settings import load_settings
from app.data.client import connect
from app.data.dataset import find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import CASES, DATABASE, IMAGES
from app.data.seed import seed

Read = Callable[[str], Awaitable[object]]

TASKS = 64
READS = 6400


async def rate(read: Read, keys: list[str]) -> float:
    """Reads per second with 64 readers."""

    async def reader(number: int) -> None:
        for index in range(READS // TASKS):
            await read(keys[(number * 7 + index) % len(keys)])

    started = time.perf_counter()
    await asyncio.gather(*(reader(number) for number in range(TASKS)))
    return READS / (time.perf_counter() - started)


def join_of(key: str) -> list[dict[str, Any]]:
    lookup = {"from": IMAGES, "localField": "_id", "foreignField": "U_id", "as": "images"}
    return [{"$match": {"_id": key}}, {"$lookup": lookup}]


async def compare(uri: str, keys: list[str], rounds: int) -> None:
    motor = AsyncIOMotorClient(uri, maxPoolSize=32)[DATABASE]
    async with AsyncMongoClient[dict[str, Any]](uri, maxPoolSize=32) as client:
        pymongo = client[DATABASE]

        async def pymongo_join(key: str) -> object:
            return await (await pymongo[CASES].aggregate(join_of(key))).to_list()

        reads: dict[str, tuple[Read, Read]] = {
            "find_one": (
                lambda key: pymongo[CASES].find_one({"_id": key}),
                lambda key: motor[CASES].find_one({"_id": key}),
            ),
            "case join": (pymongo_join, lambda key: motor[CASES].aggregate(join_of(key)).to_list(None)),
        }
        print(f"reads per second with {TASKS} at a time, median of {rounds} rounds")
        for name, pair in reads.items():
            for read in pair:
                await rate(read, keys)  # connections are made, caches are warm
            measured = [[await rate(read, keys) for read in pair] for _ in range(rounds)]
            ours, theirs = (statistics.median(column) for column in zip(*measured, strict=True))
            print(f"{name:10} PyMongo Async {ours:7.0f}  Motor {theirs:7.0f}  ratio {ours / theirs:.2f}")
    motor.client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with TemporaryDirectory() as home:
        server = embedded_mongod(Path(home) / "db", Path(home) / "run", find_mongod())
        with server as uri, connect(uri, load_settings(), timeout_s=0) as client:
            database = client[DATABASE]
            seed(database, find_dataset(arguments.data))
            keys = [document["_id"] for document in database[CASES].find({}, {"_id": 1})]
            asyncio.run(compare(uri, keys, arguments.rounds))


if __name__ == "__main__":
    main()
