"""Downloads of whatever a filter selects, streamed."""

import hashlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Final, Literal

import anyio
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.deps import (
    ImageStoreDep,
    NarrowingDep,
    RepositoryDep,
    SortText,
    case_filter,
    case_order,
    image_filter,
    image_order,
)
from app.api.errors import Responses, documented
from app.api.filter_parameters import filters
from app.api.responses import data_response
from app.api.routes.annotations import annotation_filter, annotation_order
from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS
from app.data.filters import ParameterError, ParameterProblem
from app.data.repository import ANNOTATIONS, CASES, IMAGES, NotFoundError, Repository
from app.export.croissant import Table, describe
from app.export.rows import columns
from app.export.streams import ExportError, export_parts, table_parts

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
_ORDERS: Final = {
    "images": image_order,
    "records": image_order,
    "cases": case_order,
    "annotations": annotation_order,
}
_FILES: Responses = {
    200: {"description": "The file", "content": {kind.partition(";")[0]: {} for kind in MEDIA_TYPES.values()}}
}


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={**_FILES, **documented(404, 422, 503, 504)},
    openapi_extra=filters({**ANNOTATION_FIELDS, **CASE_FIELDS, **IMAGE_FIELDS}),
    summary="Export",
    operation_id="export",
)
async def export(
    request: Request,
    repository: RepositoryDep,
    image_store: ImageStoreDep,
    file_format: Annotated[Format, Query(alias="format", description="zip holds the image files")] = "json",
    of: Annotated[Kind, Query(description="records are images joined with their cases")] = "images",
    raw: Annotated[
        bool | None,
        Query(description="The dataset's own records; default: true for json and jsonl, which alone can hold them"),
    ] = None,
    sort: SortText = None,
    *,
    narrowed: NarrowingDep,
) -> Response:
    """Everything that the filters of `/images` (or of `/cases`, with `of=cases`) select, as one file in any order.

    The jsonl of a split holds exactly the records of the dataset's file. The zip has a folder per
    split with a metadata.jsonl, as `load_dataset("imagefolder")` reads it.
    """
    order = await _ORDERS[of](sort)
    if of == "annotations":
        if narrowed.q is not None:
            raise ParameterError([ParameterProblem("q", "searches cases and images, not annotations")])
        selection = await annotation_filter(request)
        selection = await narrowed.apply(repository, ANNOTATIONS, selection)
    elif of == "cases":
        selection = await narrowed.apply(repository, CASES, await case_filter(request, repository))
    else:
        selection = await narrowed.apply(repository, IMAGES, await image_filter(request, repository))
    try:
        parts = export_parts(repository, image_store, selection, of=of, file_format=file_format, raw=raw, order=order)
    except ExportError as error:
        raise ParameterError([ParameterProblem(error.parameter, str(error))]) from error
    first = await anext(parts, b"")
    headers = {"Content-Disposition": f'attachment; filename="medpix-{of}.{file_format}"', "Cache-Control": "no-cache"}
    version = await repository.dataset_version()
    if version:
        headers["X-Dataset-Version"] = version
    return _ExportResponse(first, parts, headers=headers, media_type=MEDIA_TYPES[file_format])


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
        # A query that is cancelled half way would leave its cursor open: the client leaves between two parts.
        with anyio.CancelScope(shield=True):
            part = await anext(parts, b"")


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
    """A table with the hash of its bytes, which are made once per seeding."""
    size, sha256 = await repository.once_per_seeding(f"croissant {of}", lambda: _measured(repository, of))
    return Table(of, columns(of), f"{home}export?of={of}&format=jsonl&raw=false", sha256, size)


async def _measured(repository: Repository, of: str) -> tuple[int, str]:
    """Size and SHA-256 of a table: it is written without being sent."""
    digest, size = hashlib.sha256(), 0
    async for part in table_parts(repository, of):
        digest.update(part)
        size += len(part)
    return size, digest.hexdigest()
