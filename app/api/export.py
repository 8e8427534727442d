"""Downloads of whatever a filter selects, streamed."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.api.annotations import annotation_filter
from app.api.answers import data_response
from app.api.deps import PicturesDep, RepositoryDep, case_filter, image_filter
from app.data.filters import Filter, ParameterError, ParameterProblem
from app.data.pictures import PictureStore
from app.data.repository import ANNOTATIONS, CASES, IMAGES, NotFoundError, Repository
from app.errors import Responses, documented
from app.export.archive import ImageArchive
from app.export.croissant import Table, describe
from app.export.rows import columns, flat_row, source_record
from app.export.tables import Csv, Json, JsonLines, Parquet, Writer

router = APIRouter(tags=["export"])

Kind = Literal["images", "cases", "records", "annotations"]
Format = Literal["json", "jsonl", "csv", "parquet", "zip"]
Row = dict[str, Any]

MEDIA_TYPES: Final = {
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8; header=present",
    "parquet": "application/vnd.apache.parquet",
    "zip": "application/zip",
}
# Parts of this size are sent: a row alone is too small to be worth a system call.
_PART_BYTES: Final = 64 * 1024
_JOIN_BATCH: Final = 200
_COLLECTIONS: Final = {"cases": CASES, "annotations": ANNOTATIONS}
_FILTERS: Final = {
    "images": image_filter,
    "records": image_filter,
    "cases": case_filter,
    "annotations": annotation_filter,
}
_FILES: Responses = {
    200: {"description": "The file", "content": {kind.partition(";")[0]: {} for kind in MEDIA_TYPES.values()}}
}


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={**_FILES, **documented(404, 422, 503, 504)},
    summary="Export",
)
async def export(
    request: Request,
    repository: RepositoryDep,
    pictures: PicturesDep,
    file_format: Annotated[Format, Query(alias="format", description="zip holds the image files")] = "json",
    of: Annotated[Kind, Query(description="records are images joined with their cases")] = "images",
    raw: Annotated[
        bool | None,
        Query(description="The dataset's own records; default: true for json and jsonl, which alone can hold them"),
    ] = None,
) -> Response:
    """Everything that the filters of `/images` (or of `/cases`, with `of=cases`) select, as one file.

    The jsonl of a split holds exactly the records of the dataset's file. The zip has a folder per
    split with a metadata.jsonl, as `load_dataset("imagefolder")` reads it.
    """
    as_source = of != "annotations" and file_format in ("json", "jsonl") if raw is None else raw
    if as_source and (file_format not in ("json", "jsonl") or of == "annotations"):
        raise ParameterError([ParameterProblem("raw", "only json and jsonl of images, cases and records can be raw")])
    if file_format == "zip" and of not in ("images", "records"):
        raise ParameterError([ParameterProblem("of", "a zip holds images; use of=images or of=records")])
    selection = await _FILTERS[of](request)
    if file_format == "zip":
        parts = _archive(repository, pictures, selection, of)
    else:
        parts = _table(_writer(file_format, of), _rows(repository, selection, of, as_source=as_source))
    body = await _started(_in_parts(parts))
    headers = {"Content-Disposition": f'attachment; filename="medpix-{of}.{file_format}"', "Cache-Control": "no-cache"}
    version = await repository.dataset_version()
    if version:
        headers["X-Dataset-Version"] = version
    return StreamingResponse(body, headers=headers, media_type=MEDIA_TYPES[file_format])


def _writer(file_format: str, of: str) -> Writer:
    makers: dict[str, Callable[[], Writer]] = {
        "json": Json,
        "jsonl": JsonLines,
        "csv": lambda: Csv(columns(of)),
        "parquet": lambda: Parquet(columns(of)),
    }
    return makers[file_format]()


async def _rows(repository: Repository, selection: Filter, of: str, *, as_source: bool) -> AsyncIterator[Row]:
    async for document, case in _documents(repository, selection, of):
        if not as_source:
            yield flat_row(document, case, of)
        elif case is None:
            yield source_record(document)
        else:
            yield {**source_record(document), "Case": case["Case"], "Topic": case["Topic"]}


async def _documents(
    repository: Repository, selection: Filter, of: str
) -> AsyncIterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The selected documents; for joined records each with its case, looked up for many at a time."""
    stream = repository.stream(_COLLECTIONS.get(of, IMAGES), selection)
    if of != "records":
        async for document in stream:
            yield document, None
        return
    batch: list[dict[str, Any]] = []
    async for document in stream:
        batch.append(document)
        if len(batch) == _JOIN_BATCH:
            cases = await repository.cases([image["U_id"] for image in batch])
            for image in batch:
                yield image, cases[image["U_id"]]
            batch = []
    cases = await repository.cases([image["U_id"] for image in batch])
    for image in batch:
        yield image, cases[image["U_id"]]


async def _table(writer: Writer, rows: AsyncIterator[Row]) -> AsyncIterator[bytes]:
    yield writer.begin()
    async for row in rows:
        yield writer.add(row)
    yield writer.end()


async def _archive(repository: Repository, pictures: PictureStore, selection: Filter, of: str) -> AsyncIterator[bytes]:
    archive = ImageArchive()
    numbers = {name for name, field in columns(of).items() if field.kind == "integer"}
    async for document, case in _documents(repository, selection, of):
        row = flat_row(document, case, of)
        yield await asyncio.to_thread(archive.add, row, numbers, pictures.path(document["file"]))
    for part in archive.end():
        yield part


async def _started(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, the first part made already: what fails at once is answered with its own status."""
    first = await anext(parts, b"")

    async def resumed() -> AsyncIterator[bytes]:
        yield first
        async for part in parts:
            yield part

    return resumed()


async def _in_parts(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    async for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= _PART_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


@router.get(
    "/export/croissant",
    response_model=dict[str, Any],
    responses=documented(404, 503, 504),
    summary="Croissant metadata",
)
async def read_croissant(request: Request, repository: RepositoryDep) -> Response:
    """What the exported tables hold, with their hashes, as MLCommons' Croissant describes datasets."""
    seed_run = await repository.latest_seed()
    if seed_run is None:
        raise NotFoundError("The database holds no dataset yet. Run `medpix seed`.")
    home = str(request.base_url)
    tables = [await _table_of(repository, of, home) for of in ("images", "cases")]
    published = seed_run["finished_at"].date().isoformat()
    content = describe(tables, home=home, dataset_version=seed_run["dataset_version"], published=published)
    return await data_response(request, repository, content)


async def _table_of(repository: Repository, of: str, home: str) -> Table:
    """A table with the hash of its bytes: it is written once without being sent."""
    digest, size = hashlib.sha256(), 0
    everything = Filter({}, "", scans=False)
    async for part in _table(JsonLines(), _rows(repository, everything, of, as_source=False)):
        digest.update(part)
        size += len(part)
    return Table(of, columns(of), f"{home}export?of={of}&format=jsonl&raw=false", digest.hexdigest(), size)
