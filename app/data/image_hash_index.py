"""Looks up images by SHA-256."""

from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase

from app.data import schema

Document = dict[str, Any]

# About 10 MB of memory; MedPix 2.0 has 2,050.
_MOST: Final = 20_000
_FIELDS: Final = {"U_id": 1, "split": 1, "file.sha256": 1}


class ImageHashIndex:
    """Looks up images of the dataset by the SHA-256 of their file.

    Every prediction asks for one, and asking the database takes longer than all else that the event loop does
    for it. So a dataset of ordinary size is kept in memory until the next seeding; of a larger one the
    database is asked.

    Args:
        database: the seeded database.
        max_time_ms: limit on each query.

    Attributes:
        seed_run_id: names the seeding run whose images are known; None before the first.
    """

    def __init__(self, database: AsyncDatabase[Document], max_time_ms: int) -> None:
        self._images = database[schema.IMAGES]
        self._max_time_ms = max_time_ms
        self.seed_run_id: str | None = None
        self._known: dict[str, Document] | None = None
        self._reading = False

    async def find(self, sha256: str, seed_run_id: str | None) -> Document | None:
        """The id, case and split of the image with a content hash; None if it is not of the dataset.

        Args:
            sha256: of the file.
            seed_run_id: names the last complete seeding run.
        """
        if seed_run_id is not None and seed_run_id != self.seed_run_id and not self._reading:
            await self._read(seed_run_id)
        if self._known is not None and seed_run_id == self.seed_run_id:
            return self._known.get(sha256)
        document = await self._images.find_one({"file.sha256": sha256}, _FIELDS, max_time_ms=self._max_time_ms)
        return document and _described(document)

    async def _read(self, seed_run_id: str) -> None:
        """Read all hashes; whoever asks meanwhile asks the database."""
        self._reading = True
        try:
            documents = await self._images.find({}, _FIELDS, max_time_ms=self._max_time_ms).limit(_MOST + 1).to_list()
        finally:
            self._reading = False
        self._known = None
        if len(documents) <= _MOST:
            self._known = {document["file"]["sha256"]: _described(document) for document in reversed(documents)}
        self.seed_run_id = seed_run_id


def _described(document: Document) -> Document:
    return {"image": document["_id"], "u_id": document["U_id"], "split": document["split"]}
