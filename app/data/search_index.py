"""The index of the search: built again after each seeding, with the embeddings that belong to it."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from pymongo.asynchronous.database import AsyncDatabase

from app.core.exceptions import DeadlineExceededError, UnavailableError
from app.data import schema
from app.data.fields import CASE_FIELDS, IMAGE_FIELDS
from app.data.meaning_index import MeaningIndex, Passages, load_or_compute
from app.data.text_encoder import Embeddings, TextEncoder
from app.data.word_index import CASE_WEIGHTS, WordIndex

Document = dict[str, Any]
_Result = TypeVar("_Result")

_BUILD_BATCH: Final = 50
# How long a request waits for the index of a new seeding, and how many requests may wait for the one thread.
_MAX_BUILD_WAIT_S: Final = 30.0
_MAX_WAITING: Final = 64
# One step of a search, with its wait for the thread.
_MAX_RUN_S: Final = 10.0
# Stored embeddings are read in less; computing them takes longer than a request should wait.
_MAX_EMBEDDING_WAIT_S: Final = 2.0
_INDEXED: Final = {
    schema.CASES: {"_id": 1, **{CASE_FIELDS[name].path: 1 for name in CASE_WEIGHTS}},
    schema.IMAGES: {"U_id": 1, IMAGE_FIELDS["caption"].path: 1, IMAGE_FIELDS["modality"].path: 1},
}


class SearchIndex:
    """The index of the words, and of the embeddings once a search by meaning was asked for.

    One thread owns the index, so the event loop is never blocked; a bounded number of requests waits for it.
    The embeddings are computed in another one.
    """

    def __init__(self, database: AsyncDatabase[Document], folder: Path) -> None:
        """Nothing is read or started before the first search.

        Args:
            database: the seeded database.
            folder: where embeddings are stored.
        """
        self._database = database
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._waiting = 0
        self._index: WordIndex | None = None
        self._seed_run_id: str | None = None
        self._building: asyncio.Task[None] | None = None
        self._passages = Passages()
        self._embedding: asyncio.Future[MeaningIndex] | None = None
        self._background = ThreadPoolExecutor(1, thread_name_prefix="embeddings")
        self._stop = threading.Event()
        self._encoder: TextEncoder | None = None

    async def close(self) -> None:
        """Stop building, end the threads, delete the index."""
        self._stop.set()
        if self._building:
            self._building.cancel()
            await asyncio.gather(self._building, return_exceptions=True)
        if self._embedding:
            await asyncio.gather(self._embedding, return_exceptions=True)
        for executor in (self._background, self._thread):
            executor.shutdown(wait=True)
        if self._index:
            self._index.close()

    async def prepare(self, seed_run_id: str | None) -> WordIndex:
        """The index of a seeding; builds it if the present one is of another.

        Raises:
            UnavailableError: nothing was seeded yet, or the index is not ready in time.
        """
        if seed_run_id is None:
            raise UnavailableError("No dataset has been loaded yet. Run `medpix seed`, or wait until it is done.")
        while self._index is None or self._seed_run_id != seed_run_id:
            if self._building is None or self._building.done():
                self._building = asyncio.create_task(self._build(seed_run_id))
            done, _ = await asyncio.wait([self._building], timeout=_MAX_BUILD_WAIT_S)
            if not done:
                raise UnavailableError("The search index is being built. Try again shortly.")
            self._building.result()
        return self._index

    async def _build(self, seed_run_id: str) -> None:
        index = await self._run(WordIndex)
        passages = Passages()
        try:
            images = self._database[schema.IMAGES].find({}, _INDEXED[schema.IMAGES]).sort([("U_id", 1), ("_id", 1)])
            cases = self._database[schema.CASES].find({}, _INDEXED[schema.CASES], batch_size=_BUILD_BATCH).sort("_id")
            async with images, cases:
                following = await anext(images, None)
                while batch := await cases.to_list(_BUILD_BATCH):
                    rows: list[tuple[Document, list[Document]]] = [(case, []) for case in batch]
                    for case, own in rows:
                        while following is not None and following["U_id"] <= case["_id"]:
                            if following["U_id"] == case["_id"]:
                                own.append(following)
                            following = await anext(images, None)
                    await self._run(_add, index, passages, rows)
        except BaseException:
            self._thread.submit(index.close)
            raise
        # The index before is deleted when the last request that reads it is done.
        self._index, self._seed_run_id = index, seed_run_id
        self._passages, self._embedding = passages, None

    async def _run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call a function in the search thread.

        Raises:
            UnavailableError: too many requests wait for it.
            DeadlineExceededError: the thread was not done with it in time.
        """
        if self._waiting >= _MAX_WAITING:
            raise UnavailableError("Too many searches are waiting. Try again shortly.")
        self._waiting += 1
        try:
            async with asyncio.timeout(_MAX_RUN_S):
                return await self._run(function, *arguments)
        except TimeoutError as error:
            raise DeadlineExceededError("The search took too long. Use fewer words, or try again shortly.") from error
        finally:
            self._waiting -= 1

    async def meaning_index(self) -> MeaningIndex | None:
        """The embeddings of the index; None while they are computed.

        Raises:
            EncoderError: the encoder is not installed.
        """
        if self._embedding is None:
            call = asyncio.get_running_loop().run_in_executor
            self._embedding = call(self._background, load_or_compute, self._passages, self._folder, self._stop)
        embedding = self._embedding  # a seeding may replace it while this waits
        done, _ = await asyncio.wait([embedding], timeout=_MAX_EMBEDDING_WAIT_S)
        if done and embedding.exception() is not None and self._embedding is embedding:
            self._embedding = None  # the next search tries again
        return embedding.result() if done else None

    def encode(self, text: str) -> Embeddings:
        """The embedding of a query, of shape (384,); for the search thread.

        Raises:
            EncoderError: the encoder is not installed.
        """
        if self._encoder is None:
            self._encoder = TextEncoder()
        embedding: Embeddings = self._encoder.encode([text])[0]
        return embedding


def _add(index: WordIndex, passages: Passages, rows: list[tuple[Document, list[Document]]]) -> None:
    index.add(rows)
    for case, images in rows:
        passages.add(case, images)
