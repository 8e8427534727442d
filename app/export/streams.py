"""The bytes of an export, made as the documents come out of the database."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from app.data.filters import EVERYTHING, Filter
from app.data.image_store import ImageStore
from app.data.pagination import SortOrder
from app.data.repository import ANNOTATIONS, CASES, IMAGES, Repository, case_of
from app.export.archive import ImageArchive
from app.export.rows import columns, flat_row, source_record
from app.export.tables import Csv, Json, JsonLines, Parquet, Writer

Row = dict[str, Any]

FORMATS: Final = ("json", "jsonl", "csv", "parquet", "zip")
# Parts of this size are sent: a row alone is too small to be worth a system call.
_PART_BYTES: Final = 64 * 1024
_JOIN_BATCH: Final = 200
_WRITE_BATCH: Final = 100
_COLLECTIONS: Final = {"cases": CASES, "annotations": ANNOTATIONS}


class ExportError(ValueError):
    """What was asked for cannot be had together; ``parameter`` names what to change."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


def export_parts(
    repository: Repository,
    image_store: ImageStore,
    selection: Filter,
    *,
    of: str,
    file_format: str,
    raw: bool | None,
    order: SortOrder | None = None,
) -> AsyncGenerator[bytes]:
    """The file of a selection, in parts.

    Args:
        repository: the data.
        image_store: the image files, for a zip.
        selection: filter over what is exported.
        of: images, cases, records or annotations; records are images joined with their cases.
        file_format: one of ``FORMATS``.
        raw: the dataset's own records; None: where the format can hold them.
        order: of the rows; None: by id.

    Raises:
        ExportError: the format cannot hold what was asked for.
    """
    as_source = of != "annotations" and file_format in ("json", "jsonl") if raw is None else raw
    if as_source and (file_format not in ("json", "jsonl") or of == "annotations"):
        raise ExportError("raw", "only json and jsonl of images, cases and records can be raw")
    if file_format == "zip" and of not in ("images", "records"):
        raise ExportError("of", "a zip holds images; use of=images or of=records")
    if file_format == "zip":
        return _in_parts(_archive(repository, image_store, selection, of, order))
    rows = _rows(repository, selection, of, order, as_source=as_source)
    return _in_parts(_table(_writer(file_format, of), rows))


def table_parts(repository: Repository, of: str) -> AsyncGenerator[bytes]:
    """The normalised JSON Lines table of everything."""
    return _in_parts(_table(JsonLines(), _rows(repository, EVERYTHING, of, None, as_source=False)))


def _writer(file_format: str, of: str) -> Writer:
    makers: dict[str, Callable[[], Writer]] = {
        "json": Json,
        "jsonl": JsonLines,
        "csv": lambda: Csv(columns(of)),
        "parquet": lambda: Parquet(columns(of)),
    }
    return makers[file_format]()


async def _rows(
    repository: Repository, selection: Filter, of: str, order: SortOrder | None, *, as_source: bool
) -> AsyncGenerator[Row]:
    async with aclosing(_documents(repository, selection, of, order)) as documents:
        async for document, case in documents:
            if not as_source:
                yield flat_row(document, case, of)
            elif case is None:
                yield source_record(document)
            else:
                yield {**source_record(document), "Case": case["Case"], "Topic": case["Topic"]}


async def _documents(
    repository: Repository, selection: Filter, of: str, order: SortOrder | None
) -> AsyncGenerator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The selected documents; for joined records each with its case, looked up for many at a time."""
    async with aclosing(repository.stream(_COLLECTIONS.get(of, IMAGES), selection, order)) as stream:
        if of != "records":
            async for document in stream:
                yield document, None
            return
        batch: list[dict[str, Any]] = []
        async for document in stream:
            batch.append(document)
            if len(batch) == _JOIN_BATCH:
                for joined in await _joined(repository, batch):
                    yield joined
                batch = []
        for joined in await _joined(repository, batch):
            yield joined


async def _joined(repository: Repository, images: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    cases = await repository.cases([image["U_id"] for image in images])
    return [(image, case_of(image, cases)) for image in images]


async def _table(writer: Writer, rows: AsyncGenerator[Row]) -> AsyncGenerator[bytes]:
    # Rows are written in a thread, many at a time: one call per row would cost more than the row.
    yield writer.begin()
    batch: list[Row] = []
    async with aclosing(rows):
        async for row in rows:
            batch.append(row)
            if len(batch) == _WRITE_BATCH:
                yield await asyncio.to_thread(_written, writer, batch)
                batch = []
    yield await asyncio.to_thread(_written, writer, batch)
    yield await asyncio.to_thread(writer.end)


def _written(writer: Writer, rows: list[Row]) -> bytes:
    return b"".join(map(writer.add, rows))


async def _archive(
    repository: Repository, image_store: ImageStore, selection: Filter, of: str, order: SortOrder | None
) -> AsyncGenerator[bytes]:
    archive = ImageArchive()
    numbers = {name for name, field in columns(of).items() if field.kind == "integer"}
    async with aclosing(_documents(repository, selection, of, order)) as documents:
        async for document, case in documents:
            row = flat_row(document, case, of)
            yield await asyncio.to_thread(_added, archive, row, numbers, image_store, document)
    for part in archive.end():
        yield part


def _added(
    archive: ImageArchive, row: Row, numbers: set[str], image_store: ImageStore, document: dict[str, Any]
) -> bytes:
    return archive.add(row, numbers, image_store.path(document["file"]))


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
