"""The bytes of an export, made as the documents come out of the database."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from app.core.exceptions import UnavailableError
from app.data.fields import CASE_ALIASES, IMAGE_ALIASES
from app.data.filters import EVERYTHING, Filter
from app.data.image_store import ImageStore
from app.data.integrity import case_of
from app.data.pagination import SortOrder
from app.data.repository import ANNOTATIONS, CASES, IMAGES, Collection, NotFoundError, Repository
from app.export.archive import ImageArchive
from app.export.rows import IMAGE_CASE_COLUMNS, columns, flat_row, source_record
from app.export.tables import Csv, Json, JsonLines, Parquet, Writer

Row = dict[str, Any]
# A stored document, and the stored case of an image where its row needs it.
Joined = tuple[dict[str, Any], dict[str, Any] | None]
_Result = TypeVar("_Result")

Kind = Literal["images", "cases", "records", "annotations"]
Format = Literal["json", "jsonl", "csv", "parquet", "zip"]

# The collection of each kind of export, and the other names that filters over it may use.
KINDS: Final[Mapping[str, tuple[Collection, Mapping[str, str]]]] = {
    "images": (IMAGES, IMAGE_ALIASES),
    "cases": (CASES, CASE_ALIASES),
    "records": (IMAGES, IMAGE_ALIASES),
    "annotations": (ANNOTATIONS, {}),
}
MEDIA_TYPES: Final[Mapping[str, str]] = {
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8; header=present",
    "parquet": "application/vnd.apache.parquet",
    "zip": "application/zip",
}
# Parts of this size are sent: a row alone is too small to be worth a system call.
_PART_BYTES: Final = 64 * 1024
_BATCH: Final = 100
# An archive holds the files of a batch in memory until they are sent.
_ARCHIVE_BATCH: Final = 10
_CASE_FIELDS: Final = tuple(columns("cases")[name].path for name in IMAGE_CASE_COLUMNS)
# Rows are made and written here, never on the event loop; exports leave the other threads to other requests.
_THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="export")


class ExportError(ValueError):
    """What was asked for cannot be had together; ``parameter`` names what to change."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Export:
    """What a file of an export holds.

    Attributes:
        of: one of ``KINDS``; records are images joined with their cases.
        file_format: one of ``MEDIA_TYPES``.
        raw: the dataset's own records in place of normalised values; JSON and JSON Lines alone can hold them.
        bom: whether a CSV begins with the byte order mark by which Excel knows UTF-8.
        order: of the rows; None: by id.

    Raises:
        ExportError: the format cannot hold what was asked for.
    """

    of: str
    file_format: str
    raw: bool = False
    bom: bool = False
    order: SortOrder | None = None

    def __post_init__(self) -> None:
        if self.raw and (self.file_format not in ("json", "jsonl") or self.of == "annotations"):
            raise ExportError("raw", "only json and jsonl of images, cases and records can be raw")
        if self.bom and self.file_format != "csv":
            raise ExportError("bom", "only csv has a byte order mark")
        if self.file_format == "zip" and self.of not in ("images", "records"):
            raise ExportError("of", "a zip holds images; use of=images or of=records")

    @property
    def has_cases(self) -> bool:
        """Whether a row needs the case of its image."""
        return self.of == "records" or (self.of == "images" and not self.raw)


def export_parts(
    repository: Repository, image_store: ImageStore, selection: Filter, export: Export
) -> AsyncGenerator[bytes]:
    """The file of a selection, in parts.

    Args:
        repository: the data.
        image_store: the image files, for a zip.
        selection: filter over what is exported.
        export: what of it, and in which format.
    """
    if export.file_format == "zip":
        return _in_parts(_archive(repository, image_store, selection, export))
    return _in_parts(_table(_writer(export), repository, selection, export))


def table_parts(repository: Repository, of: str) -> AsyncGenerator[bytes]:
    """The normalised JSON Lines table of everything."""
    return _in_parts(_table(JsonLines(), repository, EVERYTHING, Export(of, "jsonl")))


def _writer(export: Export) -> Writer:
    makers: Mapping[str, Callable[[], Writer]] = {
        "json": Json,
        "jsonl": JsonLines,
        "csv": lambda: Csv(columns(export.of), bom=export.bom),
        "parquet": lambda: Parquet(columns(export.of)),
    }
    return makers[export.file_format]()


async def _batches(
    repository: Repository, selection: Filter, export: Export, size: int
) -> AsyncGenerator[list[Joined]]:
    """The selected documents, many at a time; cases of images are looked up for all of a batch."""
    batch: list[dict[str, Any]] = []
    collection, _ = KINDS[export.of]
    async with aclosing(repository.stream(collection, selection, export.order, batch_size=size)) as stream:
        async for document in stream:
            batch.append(document)
            if len(batch) == size:
                yield await _joined(repository, batch, export)
                batch = []
    if batch:
        yield await _joined(repository, batch, export)


async def _joined(repository: Repository, documents: list[dict[str, Any]], export: Export) -> list[Joined]:
    if not export.has_cases:
        return [(document, None) for document in documents]
    fields = None if export.of == "records" else _CASE_FIELDS
    cases = await repository.cases(list({image["U_id"] for image in documents}), fields)
    return [(image, case_of(image, cases)) for image in documents]


async def _table(writer: Writer, repository: Repository, selection: Filter, export: Export) -> AsyncGenerator[bytes]:
    yield await _in_thread(writer.begin)
    async with aclosing(_batches(repository, selection, export, _BATCH)) as batches:
        async for batch in batches:
            yield await _in_thread(_written, writer, batch, export)
    yield await _in_thread(writer.end)


def _written(writer: Writer, batch: list[Joined], export: Export) -> bytes:
    return b"".join(writer.add(_row(document, case, export)) for document, case in batch)


def _row(document: dict[str, Any], case: dict[str, Any] | None, export: Export) -> Row:
    if not export.raw:
        return flat_row(document, case, export.of)
    if case is None:
        return source_record(document)
    return {**source_record(document), "Case": case["Case"], "Topic": case["Topic"]}


async def _archive(
    repository: Repository, image_store: ImageStore, selection: Filter, export: Export
) -> AsyncGenerator[bytes]:
    archive = ImageArchive()
    numbers = {name for name, field in columns(export.of).items() if field.kind == "integer"}
    try:
        async with aclosing(_batches(repository, selection, export, _ARCHIVE_BATCH)) as batches:
            async for batch in batches:
                yield await _in_thread(_archived, archive, batch, export, numbers, image_store)
        directory = archive.end()
        while part := await _in_thread(next, directory, b""):
            yield part
    finally:
        archive.close()


def _archived(
    archive: ImageArchive, batch: list[Joined], export: Export, numbers: set[str], image_store: ImageStore
) -> bytes:
    parts = []
    for document, case in batch:
        try:
            parts.append(archive.add(_row(document, case, export), numbers, image_store.path(document["file"])))
        except NotFoundError as error:
            raise UnavailableError(str(error)) from error
    return b"".join(parts)


async def _in_thread(function: Callable[..., _Result], *arguments: Any) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function, *arguments)


async def _in_parts(parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    waiting: list[bytes] = []
    size = 0
    async with aclosing(parts):
        async for part in parts:
            waiting.append(part)
            size += len(part)
            if size >= _PART_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
