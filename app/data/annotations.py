"""Annotations on images. Nothing that is stored ever changes: a correction names the annotation that it replaces."""

import hashlib
import uuid
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

from app.core.exceptions import ConflictError
from app.data import schema
from app.data.client import MAX_TIME_MS
from app.data.filters import Filter

Document = dict[str, Any]


class Annotations:
    """Writes annotations and follows their history; ``Repository`` reads them as it reads every collection."""

    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._annotations = database.get_collection(schema.ANNOTATIONS, write_concern=schema.MAJORITY)

    async def add(
        self,
        image: Document,
        values: Document,
        *,
        dataset_version: str | None,
        by: str,
        amends: Document | None = None,
        key: str | None = None,
    ) -> tuple[Document, bool]:
        """Store an annotation on an image; returns it once a majority of the members have it.

        Args:
            image: the stored image that was seen.
            values: modality, location, location_category and comment, each may be None; all None with
                ``amends`` takes that one back.
            dataset_version: of the data that were seen.
            by: who wrote it.
            amends: the annotation that this one replaces.
            key: idempotency key; the same writer and key store one annotation.

        Returns:
            The annotation, and whether this call stored it rather than an earlier one with the same key.

        Raises:
            ConflictError: ``amends`` was replaced already, or the key belongs to another request.
        """
        is_retraction = amends is not None and not any(values.values())
        action = "create" if amends is None else "retract" if is_retraction else "amend"
        identifier = _identifier(by, key) if key else uuid.uuid4().hex
        content = {"image": image["_id"], **values, "action": action, "amends": amends and amends["_id"]}
        document = {
            "_id": identifier,
            "U_id": image["U_id"],
            **content,
            "by": by,
            "created_at": schema.now(),
            "image_sha256": image["file"]["sha256"],
            "dataset_version": dataset_version,
        }
        try:
            await self._annotations.insert_one(document)
        except DuplicateKeyError:
            earlier = await self._annotations.find_one({"_id": identifier}, max_time_ms=MAX_TIME_MS)
            if earlier is None:
                raise ConflictError("This annotation was changed meanwhile. Read it again.") from None
            if any(earlier[name] != value for name, value in content.items()):
                raise ConflictError("This Idempotency-Key was used for another annotation. Use a new one.") from None
            return earlier, False
        return document, True

    async def has(self, by: str, key: str) -> bool:
        """Whether a request of this writer with this idempotency key was stored."""
        query = {"_id": _identifier(by, key)}
        return await self._annotations.find_one(query, {"_id": 1}, max_time_ms=MAX_TIME_MS) is not None

    async def current(self, selection: Filter, *, about: Document | None = None) -> Filter:
        """Narrow a filter to the annotations that were neither replaced nor retracted.

        Args:
            selection: the filter.
            about: a condition on the image that all selected ones meet, so that only its annotations are read.
        """
        amending = {**(about or {}), "amends": {"$type": "string"}}
        replaced = await self._annotations.distinct("amends", amending, maxTimeMS=MAX_TIME_MS)
        return selection.narrowed({"_id": {"$nin": replaced}, "action": {"$ne": "retract"}}, "current")

    async def history(self, document: Document) -> list[Document]:
        """An annotation with all that it replaces and that replaced it, oldest first."""
        about = self._annotations.find({"image": document["image"]}, max_time_ms=MAX_TIME_MS)
        all_of_image = {each["_id"]: each for each in await about.to_list()}
        later = {each["amends"]: each for each in all_of_image.values() if each.get("amends")}
        first = document
        while first.get("amends"):
            first = all_of_image[first["amends"]]
        history = [first]
        while history[-1]["_id"] in later:
            history.append(later[history[-1]["_id"]])
        return history

    async def of_image(self, image: str) -> list[Document]:
        """The current annotations on an image, newest first; at most 100."""
        about = {"image": image}
        selection = await self.current(Filter(about, f"image={image}"), about=about)
        documents = self._annotations.find(selection.query, max_time_ms=MAX_TIME_MS)
        return await documents.sort([("created_at", -1), ("_id", 1)]).to_list(100)


def _identifier(by: str, key: str) -> str:
    return hashlib.sha256(f"{by}\0{key}".encode()).hexdigest()[:32]
