"""Downloads of whatever a filter selects: streamed, or as files that data tools read by their address."""

import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.metadata import version
from typing import Annotated, Any, Final

import anyio
import anyio.lowlevel
import pyarrow as pa
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.deps import (
    ExportFilesDep,
    ImageStoreDep,
    Narrowing,
    NarrowingDep,
    RepositoryDep,
    SortText,
    case_filter,
    case_order,
    image_filter,
    image_order,
)
from app.api.errors import Responses, documented
from app.api.file_responses import file_response, not_modified
from app.api.filter_parameters import filters
from app.api.responses import data_response
from app.api.routes.annotations import annotation_filter, annotation_order
from app.core.exceptions import InsufficientStorageError, ProblemItem, UnavailableError
from app.data.annotations import Annotations
from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS
from app.data.filters import Filter, ParameterError
from app.data.image_store import ImageStore
from app.data.pagination import SortOrder
from app.data.repository import ANNOTATIONS, CASES, IMAGES, NotFoundError, Repository
from app.export.croissant import Table, describe
from app.export.export_files import ExportFiles
from app.export.rows import columns
from app.export.streams import KINDS, MEDIA_TYPES, Export, ExportError, Format, Kind, export_parts, table_parts

router = APIRouter(tags=["export"])

_ORDERS: Final = {
    "images": image_order,
    "records": image_order,
    "cases": case_order,
    "annotations": annotation_order,
}
_FILES: Responses = {
    200: {"description": "The file", "content": {kind.partition(";")[0]: {} for kind in MEDIA_TYPES.values()}}
}
FILE_RESPONSES: Responses = {
    **_FILES,
    206: {"description": "The range that was asked for"},
    304: {"description": "Not Modified"},
    **documented(404, 412, 416, 422, 429, 503, 504, 507),
}
_FILTERS: Final = filters({**ANNOTATION_FIELDS, **CASE_FIELDS, **IMAGE_FIELDS})
# What goes into the bytes of a file beside the data and the request.
_WRITTEN_BY: Final = f"medpix-service {version('medpix-service')}, pyarrow {pa.__version__}"
RawRecords = Annotated[
    bool,
    Query(description="The dataset's own records in place of normalised values; json and jsonl alone can hold them"),
]
Bom = Annotated[
    bool, Query(description="Begin a CSV with a byte order mark, by which Excel knows that the text is UTF-8")
]
Replaced = Annotated[
    bool, Query(description="Of annotations: also those that were replaced or retracted, and the retractions")
]
_ABOUT: Final = """

Images have title and diagnosis of their case too; records have all of it. Values are normalised in every format:
null, or an empty CSV cell, stands for what was not recorded. With `raw=true` the jsonl of a split holds exactly the
records of the dataset's file.

In a CSV, text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return is preceded by an apostrophe, so that no
spreadsheet takes it for a formula; a list is joined with semicolons. The other formats hold both as they are.

The zip has a folder per split with the PNG files and a metadata.jsonl, as `load_dataset("imagefolder")` reads it.
Sizes stand before each entry, so that it can be unpacked while it arrives."""


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={**_FILES, **documented(404, 422, 429, 503, 504)},
    openapi_extra=_FILTERS,
    summary="Export",
    operation_id="export",
    description="Everything that the filters of `/images` (or of `/cases`, with `of=cases`) select, as one file in any "
    "order, sent while it is made." + _ABOUT,
)
async def export(
    request: Request,
    repository: RepositoryDep,
    image_store: ImageStoreDep,
    file_format: Annotated[Format, Query(alias="format", description="zip holds the image files")] = "json",
    of: Annotated[Kind, Query(description="records are images joined with their cases")] = "images",
    raw: RawRecords = False,
    bom: Bom = False,
    replaced: Replaced = False,
    sort: SortText = None,
    *,
    narrowed: NarrowingDep,
) -> Response:
    """Stream an export."""
    requested = make_export(of, file_format, raw=raw, bom=bom, order=await _ORDERS[of](sort))
    selection = await _selection(request, repository, of, narrowed, replaced=replaced)
    headers = await _headers(repository, requested)
    if request.scope["state"]["is_head"]:
        # Not a plain response: it would say that the content has no bytes.
        return StreamingResponse(iter(()), headers=headers, media_type=MEDIA_TYPES[file_format])
    parts = export_parts(repository, image_store, selection, requested)
    first = await anext(parts, b"")
    return _ExportResponse(first, parts, headers=headers, media_type=MEDIA_TYPES[file_format])


@router.get(
    "/export/{of}.{file_format}",
    response_class=StreamingResponse,
    responses=FILE_RESPONSES,
    openapi_extra=_FILTERS,
    summary="Export as a file",
    operation_id="export_file",
    description="The same as `/export`, at an address that data tools read by themselves, such as "
    '`pl.scan_parquet("http://localhost:8000/export/images.parquet")`: with Content-Length, ETag and ranges. '
    "A file is made when it is first asked for, and kept for the next time." + _ABOUT,
)
async def export_file(
    request: Request,
    repository: RepositoryDep,
    image_store: ImageStoreDep,
    export_files: ExportFilesDep,
    of: Annotated[Kind, Path(description="records are images joined with their cases")],
    file_format: Annotated[Format, Path(description="zip holds the image files")],
    raw: RawRecords = False,
    bom: Bom = False,
    replaced: Replaced = False,
    sort: SortText = None,
    *,
    narrowed: NarrowingDep,
) -> Response:
    """Answer an export as a file that is kept."""
    requested = make_export(of, file_format, raw=raw, bom=bom, order=await _ORDERS[of](sort))
    selection = await _selection(request, repository, of, narrowed, replaced=replaced)
    return await kept_file(request, repository, image_store, export_files, requested, selection)


async def kept_file(
    request: Request,
    repository: Repository,
    image_store: ImageStore,
    export_files: ExportFiles,
    requested: Export,
    selection: Filter,
) -> Response:
    """An export as a file that is kept.

    Args:
        request: supplies If-None-Match, If-Range and Range.
        repository: the data.
        image_store: the image files, for a zip.
        export_files: keeps the file.
        requested: what is exported, and in which format.
        selection: filter over it.

    Raises:
        InsufficientStorageError: the disk or the cache is too small.
        UnavailableError: the data are being loaded, or changed meanwhile.
        PreconditionFailedError: If-Match names other content.
        RangeNotSatisfiableError: the range lies outside the file.
    """
    collection, _ = KINDS[requested.of]
    revision = await repository.revision(collection)
    selection = await repository.resolve(collection, selection)
    name = _file_name(revision, requested, selection)
    headers = {"ETag": f'"{name[:32]}"', **await _headers(repository, requested)}
    unchanged = not_modified(request, headers)
    if unchanged:
        return unchanged

    async def parts() -> AsyncGenerator[bytes]:
        async with aclosing(export_parts(repository, image_store, selection, requested)) as stream:
            async for part in stream:
                yield part
        if await repository.revision(collection) != revision:
            raise UnavailableError("The data changed while the file was made. Try again.")

    try:
        path = await export_files.path(name, parts)
    except InsufficientStorageError as error:
        streamed = f"/export?of={requested.of}&format={requested.file_format}"
        raise InsufficientStorageError(f"{error.detail} {streamed}, with the same filters, needs no disk.") from error
    return await file_response(request, path, MEDIA_TYPES[requested.file_format], headers)


def make_export(of: Kind, file_format: Format, *, raw: bool, bom: bool, order: SortOrder) -> Export:
    """What a request asks to export.

    Raises:
        ParameterError: the format cannot hold it.
    """
    try:
        return Export(of, file_format, raw, bom, order)
    except ExportError as error:
        raise ParameterError([ProblemItem(error.parameter, str(error))]) from error


async def _selection(
    request: Request, repository: Repository, of: Kind, narrowed: Narrowing, *, replaced: bool
) -> Filter:
    if of == "annotations":
        if narrowed.q is not None:
            raise ParameterError([ProblemItem("q", "searches cases and images, not annotations")])
        selection = await annotation_filter(request)
        if not replaced:
            annotations: Annotations = request.app.state.annotations
            selection = await annotations.current(selection)
        return await narrowed.apply(repository, ANNOTATIONS, selection)
    if replaced:
        raise ParameterError([ProblemItem("replaced", "belongs to annotations")])
    if of == "cases":
        return await narrowed.apply(repository, CASES, await case_filter(request, repository))
    return await narrowed.apply(repository, IMAGES, await image_filter(request, repository))


async def _headers(repository: Repository, requested: Export) -> dict[str, str]:
    disposition = f'attachment; filename="medpix-{requested.of}.{requested.file_format}"'
    headers = {"Content-Disposition": disposition, "Cache-Control": "no-cache"}
    version_now = await repository.seed_runs.dataset_version()
    return {**headers, "X-Dataset-Version": version_now} if version_now else headers


def _file_name(revision: str, requested: Export, selection: Filter) -> str:
    """The name of a file, which stands for its content: the same bytes have the same name."""
    order = requested.order.canonical if requested.order else ""
    content = [_WRITTEN_BY, revision, requested.of, requested.raw, requested.bom, order, selection.query]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{digest}.{requested.file_format}"


class _ExportResponse(StreamingResponse):
    """Sends parts, and closes them, and with them the cursor in the database, when the client leaves.

    Args:
        first: made already, so that what fails at once is answered with its own status.
        parts: the others.
    """

    def __init__(self, first: bytes, parts: AsyncGenerator[bytes], *, headers: dict[str, str], media_type: str) -> None:
        super().__init__(_after(first, parts), headers=headers, media_type=media_type)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not the body's iterator: it does not close the parts where the client left before it began.
            with anyio.CancelScope(shield=True):
                await self._parts.aclose()


async def _after(first: bytes, parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    part = first
    while part:
        yield part
        # uvicorn takes what is sent to a client that left without waiting, so nothing else would end the loop.
        await anyio.lowlevel.checkpoint_if_cancelled()
        # A query that is cancelled half way would leave its cursor open: the client leaves between two parts.
        with anyio.CancelScope(shield=True):
            part = await anext(parts, b"")


@router.get(
    "/export/croissant",
    response_model=dict[str, Any],
    responses=documented(404, 422, 429, 503, 504),
    summary="Croissant metadata",
)
async def read_croissant(request: Request, repository: RepositoryDep) -> Response:
    """What the exported tables hold, with their hashes, as MLCommons' Croissant describes datasets."""
    seed_run = await repository.seed_runs.read_latest()
    if seed_run is None:
        raise NotFoundError("The database holds no dataset yet. Run `medpix seed`.")
    home = str(request.base_url)
    tables = [await _table_of(repository, of, home) for of in ("images", "cases")]
    published = seed_run["finished_at"].date().isoformat()
    content = describe(tables, home=home, dataset_version=seed_run["dataset_version"], published=published)
    return await data_response(request, repository, content)


async def _table_of(repository: Repository, of: str, home: str) -> Table:
    """A table with the hash of its bytes, which are made once per seeding."""
    size, sha256 = await repository.seed_runs.once_per_seeding(f"croissant {of}", lambda: _measured(repository, of))
    return Table(of, columns(of), f"{home}export/{of}.jsonl", sha256, size)


async def _measured(repository: Repository, of: str) -> tuple[int, str]:
    """Size and SHA-256 of a table: it is written without being sent."""
    digest, size = hashlib.sha256(), 0
    async for part in table_parts(repository, of):
        digest.update(part)
        size += len(part)
    return size, digest.hexdigest()
