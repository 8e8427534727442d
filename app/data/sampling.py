"""Random samples of a collection: the same seed gives the same sample for the same data."""

import asyncio
import hashlib
import heapq
from collections.abc import Sequence
from typing import Any, Final

from pymongo.asynchronous.collection import AsyncCollection

Document = dict[str, Any]

_BATCH: Final = 1_000


async def sample(
    collection: AsyncCollection[Document], query: Document, size: int, seed: int, *, group_by: str, max_time_ms: int
) -> list[str]:
    """The ids of a random sample.

    Args:
        collection: what is sampled.
        query: what it is taken from.
        size: of the sample.
        seed: of the random choice.
        group_by: field of which at most one document per value is taken; ``_id`` for no such limit.
        max_time_ms: limit on the query.
    """
    drawn: dict[str, tuple[bytes, str]] = {}
    async with collection.find(query, {"_id": 1, group_by: 1}, batch_size=_BATCH, max_time_ms=max_time_ms) as documents:
        while batch := await documents.to_list(_BATCH):
            await asyncio.to_thread(_draw, batch, seed, drawn, group_by)
    return [key for _, key in heapq.nsmallest(size, drawn.values())]


def _draw(batch: Sequence[Document], seed: int, drawn: dict[str, tuple[bytes, str]], group_by: str) -> None:
    """Keep of each group the document whose hash with the seed is the smallest."""
    for document in batch:
        key = document["_id"]
        rank = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest(), key
        drawn[document[group_by]] = min(rank, drawn.get(document[group_by], rank))
