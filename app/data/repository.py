"""Every question that the API asks of the data collections."""

import asyncio
import hashlib
import heapq
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from app.core.exceptions import ConflictError, UnavailableError
from app.data import integrity, regex_filter, schema
from app.data import pagination as cursor
from app.data.facets import facets, statistics
from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS, VIEW_FIELDS, Field
from app.data.filters import EVERYTHING, Filter, ParameterError, ParameterProblem, Vocabulary
from app.data.image_hash_index import ImageHashIndex
from app.data.pagination import SortOrder
from app.data.search import MAX_HITS, Mode, Search, SearchResult
from app.data.serializers import ANSWER, case_answer, case_view, encode, image_answer, image_view

Document = dict[str, Any]
_Measured = TypeVar("_Measured")

# A contains or regex condition reads every document; MongoDB stops it after this time.
MAX_TIME_MS: Final = 2_000
# Counting reads an index entry per document: on a large collection it would take longer than the page itself.
MAX_TOTAL: Final = 10_000
_MAX_TOTALS: Final = 1_000
_MAX_RESOLVED: Final = 32
_LATEST_S: Final = 1.0
_STREAM_BATCH: Final = 200
_DRAW_BATCH: Final = 1_000
_UNAUTHORIZED: Final = 13
# MongoDB's own work on a whole export, without the time that the client takes.
_STREAM_TIME_MS: Final = 60_000


class NotFoundError(Exception):
    """There is no document with this key."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of stored documents.

    Attributes:
        documents: in the asked order.
        total: how many documents pass the filter, at most ``MAX_TOTAL`` of them counted.
        total_is_exact: whether that is all of them.
        next_cursor: where the next page starts; None on the last page.
    """

    documents: list[Document]
    total: int
    total_is_exact: bool
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Collection:
    """A data collection with its public fields."""

    name: str
    noun: str
    fields: Mapping[str, Field]


ANNOTATIONS: Final = Collection(schema.ANNOTATIONS, "annotation", ANNOTATION_FIELDS)
VIEWS: Final = Collection(schema.VIEWS, "view", VIEW_FIELDS)
CASES: Final = Collection(schema.CASES, "case", CASE_FIELDS)
IMAGES: Final = Collection(schema.IMAGES, "image", IMAGE_FIELDS)


# Answers are read by themselves: they double the size of a document.
_WITHOUT_ANSWER: Final = {ANSWER: 0}


def _has_answer(collection: Collection, document: Document) -> bool:
    """Whether a document has its own answer; one of an older version, or a copy under another id, has not."""
    summary: bytes = document.get(ANSWER, {}).get("summary", b"")
    return summary.startswith(encode({collection.noun if collection is IMAGES else "u_id": document["_id"]})[:-1])


def _summary(collection: Collection, document: Document) -> bytes:
    return encode(image_view(document) if collection is IMAGES else case_view(document))


def case_of(image: Mapping[str, Any], cases: Mapping[str, Document]) -> Document:
    """The case of an image.

    Raises:
        UnavailableError: the database does not have it, as while it is seeded.
    """
    case = cases.get(image["U_id"])
    if case is None:
        raise missing_case(image["U_id"], image["_id"])
    return case


def missing_case(u_id: str, image: str) -> UnavailableError:
    """The error that an image of the dataset has no case, as while it is seeded."""
    return UnavailableError(f"Case {u_id} of image {image} is not in the database. Run `medpix seed`, or try later.")


def _narrowed(selection: Filter, condition: Document, canonical: str) -> Filter:
    query = {"$and": [selection.query, condition]} if selection.query else condition
    return Filter(query, f"{selection.canonical}&{canonical}", selection.scans)


def _draw(batch: Sequence[Document], seed: int, drawn: dict[str, tuple[bytes, str]], group_by: str) -> None:
    """Keep of each group the document whose hash with the seed is the smallest."""
    for document in batch:
        key = document["_id"]
        rank = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest(), key
        drawn[document[group_by]] = min(rank, drawn.get(document[group_by], rank))


class Repository:
    """Reads cases and images."""

    def __init__(self, database: AsyncDatabase[Document], cache: Path) -> None:
        """Nothing is read yet.

        Args:
            database: the seeded database.
            cache: folder for what can be computed again, such as the embeddings of the search.
        """
        self._database = database
        self._latest: Document | None = None
        self._latest_expires = 0.0
        # Whether no seeding runs or was killed: while one does, what is read may change under the same run.
        self._settled = False
        self._measured: dict[str, tuple[str | None, Any]] = {}
        self._measuring = asyncio.Lock()
        self._totals: dict[tuple[str, str, str], int] = {}
        self._hash_index = ImageHashIndex(database, MAX_TIME_MS)
        self._resolved: dict[tuple[str, str, str], Document] = {}
        self._search = Search(database, cache / "search")

    async def _latest_run(self) -> Document | None:
        """The last complete seeding run; at most a second old."""
        now = time.monotonic()
        if now >= self._latest_expires:
            newest = await self._database[schema.SEED_RUNS].find_one(
                {}, sort=schema.LATEST_RUN_FIRST, max_time_ms=MAX_TIME_MS
            )
            self._settled = newest is not None and newest["state"] == "complete"
            self._latest = newest if self._settled else await self.latest_seed()
            self._latest_expires = now + _LATEST_S
        return self._latest

    async def dataset_version(self) -> str | None:
        """The version of the seeded dataset, None before the first seeding."""
        run = await self._latest_run()
        return run["dataset_version"] if run else None

    async def seed_run_id(self) -> str | None:
        """Names the last complete seeding run: while it is the same, the cases and images are."""
        run = await self._latest_run()
        return str(run["_id"]) if run else None

    async def revision(self, collection: Collection) -> str:
        """Names the content of a collection: while it is the same, every selection of it is the same.

        Raises:
            UnavailableError: nothing was seeded yet, or a seeding has not been completed and the content may change.
        """
        if collection is ANNOTATIONS:  # none ever changes or goes
            target = self._database[ANNOTATIONS.name]
            return f"{await target.count_documents({}, maxTimeMS=MAX_TIME_MS)} annotations"
        run = await self._latest_run()
        if run is None or not self._settled:
            raise UnavailableError(
                "The dataset is being loaded, or its loading broke off. Try again shortly, or run `medpix seed`."
            )
        return str(run.get("records_sha256") or run["_id"])

    async def get(self, collection: Collection, key: str) -> Document:
        """The document with a key.

        Raises:
            NotFoundError: there is none.
        """
        document = await self._database[collection.name].find_one(
            {"_id": key}, _WITHOUT_ANSWER, max_time_ms=MAX_TIME_MS
        )
        if document is None:
            raise NotFoundError(f"There is no {collection.noun} {key}.")
        return document

    async def answer(self, collection: Collection, key: str, *members: str) -> Document:
        """Members of the answer that seeding stored with a case or an image.

        Raises:
            NotFoundError: there is no such document.
        """
        fields = {f"{ANSWER}.{member}": 1 for member in (*members, "summary")}
        document = await self._database[collection.name].find_one({"_id": key}, fields, max_time_ms=MAX_TIME_MS)
        if document is None:
            raise NotFoundError(f"There is no {collection.noun} {key}.")
        if _has_answer(collection, document):
            return document[ANSWER]  # type: ignore[no-any-return]
        return await self._made_answer(collection, await self.get(collection, key))

    async def answers(self, collection: Collection, keys: Sequence[str], member: str) -> dict[str, bytes]:
        """A member of the stored answers of some cases or images, by id; those that are not there are left out."""
        fields = {f"{ANSWER}.{member}": 1, f"{ANSWER}.summary": 1}
        documents = self._database[collection.name].find({"_id": {"$in": list(keys)}}, fields, max_time_ms=MAX_TIME_MS)
        return {
            document["_id"]: document[ANSWER][member]
            if _has_answer(collection, document)
            else (await self.answer(collection, document["_id"], member))[member]
            async for document in documents
        }

    async def _made_answer(self, collection: Collection, document: Document) -> Document:
        if collection is IMAGES:
            return image_answer(document)
        images = self._database[schema.IMAGES].find({"U_id": document["_id"]}, _WITHOUT_ANSWER, max_time_ms=MAX_TIME_MS)
        return case_answer(document, [image_answer(image)["summary"] async for image in images.sort("_id")])

    async def get_many(
        self, collection: Collection, keys: Sequence[str], paths: Sequence[str] | None = None
    ) -> list[Document]:
        """The documents with some keys, in any order; those that are not there are left out.

        Args:
            collection: where they are.
            keys: their ids.
            paths: what is read of each beside its id; None: all but the stored answer.
        """
        query = {"_id": {"$in": list(keys)}}
        fields: Document = _WITHOUT_ANSWER if paths is None else dict.fromkeys(paths, 1)
        return await self._database[collection.name].find(query, fields, max_time_ms=MAX_TIME_MS).to_list()

    async def keys(self, collection: Collection, selection: Filter) -> set[str]:
        """The ids of all documents that pass a filter."""
        selection = await self.resolve(collection, selection)
        documents = self._database[collection.name].find(selection.query, {"_id": 1}, max_time_ms=MAX_TIME_MS)
        return {document["_id"] async for document in documents}

    async def image_with_content(self, sha256: str) -> Document | None:
        """The image whose file has a content hash: its id, case and split; None if it is not of the dataset."""
        try:
            seeded = await self.seed_run_id()
        except PyMongoError:
            if self._hash_index.seed_run_id is None:
                raise
            seeded = self._hash_index.seed_run_id  # what was there before is there still
        return await self._hash_index.find(sha256, seeded)

    async def load_image_hashes(self) -> None:
        """Read what ``image_with_content`` needs, so that the first upload does not wait for it."""
        await self.image_with_content("")

    async def cases(self, keys: Sequence[str], paths: Sequence[str] | None = None) -> dict[str, Document]:
        """The cases with these ids, by id; ``paths`` as in ``get_many``."""
        return {document["_id"]: document for document in await self.get_many(CASES, keys, paths)}

    async def resolve(self, collection: Collection, selection: Filter) -> Filter:
        """A filter whose regular expressions were replaced by the ids of the documents that match them.

        Raises:
            UnprocessableError: too many documents pass the other conditions.
            DeadlineExceededError: reading and matching them took too long.
        """
        if not regex_filter.has_regex(selection.query):
            return selection
        seeded = await self.seed_run_id() if collection is not ANNOTATIONS else None
        key = (seeded or "", collection.name, selection.canonical)
        query = self._resolved.get(key)
        if query is None:
            query = await regex_filter.resolve(self._database[collection.name], selection.query)
            if seeded is not None:
                self._resolved[key] = query
                if len(self._resolved) > _MAX_RESOLVED:
                    del self._resolved[next(iter(self._resolved))]
        return replace(selection, query=query)

    async def stream(
        self,
        collection: Collection,
        selection: Filter,
        order: SortOrder | None = None,
        *,
        batch_size: int = _STREAM_BATCH,
    ) -> AsyncGenerator[Document]:
        """Every document that passes a filter, by id or in another order; a batch at a time is held in memory."""
        selection = await self.resolve(collection, selection)
        target = self._database[collection.name]
        documents = target.find(selection.query, _WITHOUT_ANSWER, batch_size=batch_size, max_time_ms=_STREAM_TIME_MS)
        # A large selection in an order without an index is sorted on the server's disk.
        documents = documents.sort(order.mongo).allow_disk_use(True) if order else documents.sort("_id")
        async with documents:
            async for document in documents:
                yield document

    async def page(
        self,
        collection: Collection,
        selection: Filter,
        order: SortOrder,
        *,
        limit: int,
        after: str | None,
        summaries: bool = False,
    ) -> Page:
        """One page of the documents that pass a filter; with ``summaries``, of each only its stored answer.

        Raises:
            ParameterError: the cursor does not fit the filter and the order.
        """
        selection = await self.resolve(collection, selection)
        conditions = [selection.query] if selection.query else []
        if after is not None:
            conditions.append(cursor.decode_cursor(after, order, selection.canonical))
        query = {"$and": conditions} if conditions else {}
        target = self._database[collection.name]
        # A cursor needs the keys of the order.
        keys: Document = {key.path: 1 for key in order.keys}
        fields: Document = {f"{ANSWER}.summary": 1, **keys} if summaries else _WITHOUT_ANSWER
        matching = target.find(query, fields, max_time_ms=MAX_TIME_MS).sort(order.mongo).limit(limit + 1)
        documents, total = await asyncio.gather(matching.to_list(), self._count(collection, selection))
        more = len(documents) > limit
        documents = documents[:limit]
        following = cursor.encode_cursor(documents[-1], order, selection.canonical) if more else None
        if summaries:
            missing = [each["_id"] for each in documents if not _has_answer(collection, each)]
            made = {each["_id"]: each for each in await self.get_many(collection, missing)} if missing else {}
            documents = [
                {"summary": _summary(collection, made[key]) if key in made else each[ANSWER]["summary"]}
                for each in documents
                for key in [each["_id"]]
            ]
        return Page(documents, total, total < MAX_TOTAL, following)

    async def count(self, collection: Collection, selection: Filter) -> int:
        """How many documents pass a filter, counted to ``MAX_TOTAL``."""
        return await self._count(collection, await self.resolve(collection, selection))

    async def _count(self, collection: Collection, selection: Filter) -> int:
        """How many documents pass a filter, counted to ``MAX_TOTAL``.

        The count that MongoDB keeps (`estimated_document_count`) is wrong after the server was killed.
        """
        target = self._database[collection.name]
        run_id = await self.seed_run_id()
        key = (run_id or "", collection.name, selection.canonical)
        # Cases and images change with a seeding alone: walking through pages counts once.
        is_fixed = run_id is not None and self._settled and collection in (CASES, IMAGES)
        if is_fixed and key in self._totals:
            return self._totals[key]
        total = await target.count_documents(selection.query, maxTimeMS=MAX_TIME_MS, limit=MAX_TOTAL)
        if is_fixed:
            self._totals[key] = total
            if len(self._totals) > _MAX_TOTALS:
                del self._totals[next(iter(self._totals))]
        return total

    async def once_per_seeding(self, name: str, measure: Callable[[], Awaitable[_Measured]]) -> _Measured:
        """What is derived from all documents: measured again only after a seeding.

        Args:
            name: of what is measured; there are few of them.
            measure: makes it.
        """
        async with self._measuring:
            before = await self.seed_run_id()
            run_id, value = self._measured.get(name, (None, None))
            if run_id is None or run_id != before:
                value = await measure()
                # A value that was measured while a seeding ran is answered once and not kept.
                await self._latest_run()
                if self._settled and await self.seed_run_id() == before:
                    self._measured[name] = before, value
            return cast("_Measured", value)

    async def vocabulary(self, collection: Collection) -> Vocabulary:
        """All values of the keyword and list fields that have few of them, as the last seeding found them."""
        run = await self._latest_run()
        values = (run or {}).get("values", {}).get(collection.name, [])
        return {each["field"]: each["values"] for each in values}

    async def found_by_text(self, collection: Collection, selection: Filter, text: str) -> Filter:
        """Narrow a filter to the cases that hold every term of a search, or to their images.

        Raises:
            ParameterError: the search finds more cases than it ranks, so the selection would not be whole.
        """
        keys = await self._search.ids(text, seed_run_id=await self.seed_run_id())
        if len(keys) >= MAX_HITS:
            message = f"finds {MAX_HITS} cases or more; use more words"
            raise ParameterError([ParameterProblem("q", message)])
        path = "_id" if collection is CASES else "U_id"
        return _narrowed(selection, {path: {"$in": keys}}, f"q={text!r}")

    async def sampled(
        self, collection: Collection, selection: Filter, size: int, seed: int, *, per_case: bool
    ) -> Filter:
        """Narrow a filter to a random sample; the same seed gives the same one for the same data.

        Args:
            collection: what is sampled.
            selection: what it is taken from.
            size: of the sample.
            seed: of the random choice.
            per_case: at most one document of each case.
        """
        selection = await self.resolve(collection, selection)
        target = self._database[collection.name]
        fields = {"_id": 1} if collection is ANNOTATIONS else {"_id": 1, "U_id": 1}
        drawn: dict[str, tuple[bytes, str]] = {}
        async with target.find(selection.query, fields, batch_size=_DRAW_BATCH, max_time_ms=MAX_TIME_MS) as documents:
            while batch := await documents.to_list(_DRAW_BATCH):
                await asyncio.to_thread(_draw, batch, seed, drawn, "U_id" if per_case else "_id")
        chosen = [key for _, key in heapq.nsmallest(size, drawn.values())]
        return _narrowed(selection, {"_id": {"$in": chosen}}, f"sample={size},{seed},{per_case}")

    async def annotate(
        self, image: Document, values: Document, by: str, *, amends: Document | None = None, key: str | None = None
    ) -> tuple[Document, bool]:
        """Store an annotation on an image; returns it once a majority of the members have it.

        Nothing that is stored ever changes: a correction is an annotation that names the one it replaces.

        Args:
            image: the stored image that was seen.
            values: modality, location, location_category and comment, each may be None; all None with
                ``amends`` takes that one back.
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
        identifier = hashlib.sha256(f"{by}\0{key}".encode()).hexdigest()[:32] if key else uuid.uuid4().hex
        content = {"image": image["_id"], **values, "action": action, "amends": amends and amends["_id"]}
        document = {
            "_id": identifier,
            "U_id": image["U_id"],
            **content,
            "by": by,
            "created_at": schema.now(),
            "image_sha256": image["file"]["sha256"],
            "dataset_version": await self.dataset_version(),
        }
        target = self._database.get_collection(schema.ANNOTATIONS, write_concern=schema.MAJORITY)
        try:
            await target.insert_one(document)
        except DuplicateKeyError:
            earlier = await target.find_one({"_id": identifier}, max_time_ms=MAX_TIME_MS)
            if earlier is None:
                raise ConflictError("This annotation was changed meanwhile. Read it again.") from None
            if any(earlier[name] != value for name, value in content.items()):
                raise ConflictError("This Idempotency-Key was used for another annotation. Use a new one.") from None
            return earlier, False
        return document, True

    async def current_annotations(self, selection: Filter) -> Filter:
        """Narrow a filter to the annotations that were neither replaced nor taken back."""
        replaced = await self._database[schema.ANNOTATIONS].distinct(
            "amends", {"amends": {"$type": "string"}}, maxTimeMS=MAX_TIME_MS
        )
        return _narrowed(selection, {"_id": {"$nin": replaced}, "action": {"$ne": "retract"}}, "current")

    async def annotation_history(self, document: Document) -> list[Document]:
        """An annotation with all that it replaces and that replaced it, oldest first."""
        about = self._database[schema.ANNOTATIONS].find({"image": document["image"]}, max_time_ms=MAX_TIME_MS)
        all_of_image = {each["_id"]: each for each in await about.to_list()}
        later = {each["amends"]: each for each in all_of_image.values() if each.get("amends")}
        first = document
        while first.get("amends"):
            first = all_of_image[first["amends"]]
        history = [first]
        while history[-1]["_id"] in later:
            history.append(later[history[-1]["_id"]])
        return history

    async def annotations_of(self, image: str) -> list[Document]:
        """The current annotations on an image, newest first; at most 100."""
        selection = await self.current_annotations(Filter({"image": image}, f"image={image}", scans=False))
        documents = self._database[schema.ANNOTATIONS].find(selection.query, max_time_ms=MAX_TIME_MS)
        return await documents.sort([("created_at", -1), ("_id", 1)]).to_list(100)

    async def search(self, text: str, selection: Filter, *, mode: Mode, limit: int, offset: int) -> SearchResult:
        """Cases by their texts and the captions of their images, best first."""
        selection = await self.resolve(CASES, selection)
        seed_run_id = await self.seed_run_id()
        return await self._search.search(
            text, selection, mode=mode, seed_run_id=seed_run_id, limit=limit, offset=offset
        )

    async def prepare_search(self) -> None:
        """Build the index of the search, so that the first query does not wait for it."""
        seed_run_id = await self.seed_run_id()
        if seed_run_id is not None:
            await self._search.prepare(seed_run_id)

    async def close(self) -> None:
        """End the thread of the search; the database stays open."""
        await self._search.close()

    async def facets(self, selection: Filter) -> Document:
        """Counts of the images under a filter, per value of a few fields."""
        selection = await self.resolve(IMAGES, selection)
        run = await self._latest_run()
        # While a seeding runs, the images may already be others than those that were counted.
        counted = str(run["_id"]) if run is not None and self._settled and run.get("facets_counted") else None
        try:
            return await facets(self._database, selection, counted)
        except OperationFailure as error:
            if counted is None or error.code != _UNAUTHORIZED:
                raise
            # The roles of the containers were made by a version that had no counts.
            return await facets(self._database, selection)

    async def statistics(self, collection: Collection, selection: Filter) -> Document:
        """Nulls and distributions of every field of a collection under a filter."""
        selection = await self.resolve(collection, selection)
        return await statistics(self._database, collection.name, collection.fields, selection)

    async def latest_seed(self) -> Document | None:
        """The last complete seeding run, None if there has been none."""
        return await self._database[schema.SEED_RUNS].find_one(
            {"state": "complete"}, sort=schema.LATEST_RUN_FIRST, max_time_ms=MAX_TIME_MS
        )

    async def faults(self) -> tuple[list[str], list[str]]:
        """What was removed since the last complete seeding: documents, and indexes; a sentence for each."""
        run = await self.latest_seed()
        if run is None:
            return [], []
        documents = await integrity.missing_documents(self._database, run, MAX_TOTAL)
        return documents, await integrity.missing_indexes(self._database)

    async def counts(self) -> dict[str, int]:
        """How many cases and images there are, each counted to ``MAX_TOTAL``."""
        cases, images = await asyncio.gather(self._count(CASES, EVERYTHING), self._count(IMAGES, EVERYTHING))
        return {"cases": cases, "images": images}
