"""Saved views: a selection of images or cases under a name, with a stable address."""

from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.api.auth import KEY_HEADERS, WriterDep
from app.api.deps import (
    Cursor,
    DocumentId,
    ExportFilesDep,
    ImageStoreDep,
    Limit,
    RepositoryDep,
    SavedViewsDep,
    SortText,
    parse_selection,
    query_pairs,
)
from app.api.errors import documented
from app.api.filter_parameters import filters
from app.api.responses import data_response, page_response
from app.api.routes.export import FILE_RESPONSES, Bom, RawRecords, kept_file, make_export
from app.api.schemas.records import PageModel
from app.core.exceptions import ForbiddenError, ProblemItem, UnprocessableError
from app.data.fields import VIEW_FIELDS, public_view
from app.data.filters import Filter, ParameterError, parse_filter
from app.data.pagination import SortOrder, parse_sort
from app.data.record import MAX_VIEW_QUERY_CHARS, SavedView
from app.data.repository import CASES, IMAGES, VIEWS, Repository
from app.export.streams import Format
from app.web.pages import prefix_of

router = APIRouter(tags=["views"])

_FORMATS = {"images": ("csv", "parquet", "jsonl", "json", "zip"), "cases": ("csv", "parquet", "jsonl", "json")}


class ViewIn(BaseModel):
    """A selection to save."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)] = Field(
        examples=["CT of the head, 60 and older"]
    )
    of: Literal["images", "cases"] = "images"
    query: Annotated[str, StringConstraints(max_length=MAX_VIEW_QUERY_CHARS)] = Field(
        default="",
        description="The query string of `/images` or `/cases`: filters, `q`, `sample`, `seed`, `sample_by`, `sort`",
        examples=["modality=CT&location_category=Head&age__gte=60"],
    )


class ViewOut(SavedView):
    """A saved view with its addresses."""

    links: dict[str, str] = Field(
        description="`self`; `items`: the list of what it selects; and a file for data tools per format",
        examples=[
            {"items": "/images?modality=CT", "parquet": "/views/0f8fad5bd9cb469fa16570867728950e/images.parquet"}
        ],
    )


class OpenedView(ViewOut):
    """A saved view as it is today."""

    current_total: int | None = Field(description="How many it selects now; null where its query has become unusable")
    current_dataset_version: str | None = Field(description="Version of the data now")
    dataset_changed: bool = Field(description="Whether the data are of another version than when it was saved")
    note: str | None = Field(description="What changed since it was saved, in a sentence")


class ViewPage(PageModel):
    """One page of views."""

    items: list[ViewOut]


async def _filter(request: Request) -> Filter:
    return parse_filter(query_pairs(request), VIEW_FIELDS, {})


async def _order(sort: SortText = None) -> SortOrder:
    return parse_sort(sort or "-created_at", VIEW_FIELDS)


def _view(document: dict[str, Any]) -> dict[str, Any]:
    view = public_view(document, VIEW_FIELDS)
    address, of = f"/views/{view['id']}", view["of"]
    files = {file_format: f"{address}/{of}.{file_format}" for file_format in _FORMATS[of]}
    items = f"/{of}?{view['query']}" if view["query"] else f"/{of}"
    return {**view, "links": {"self": address, "items": items, **files}}


@router.post(
    "/views",
    status_code=201,
    response_model=ViewOut,
    responses=documented(400, 401, 403, 409, 413, 415, 422, 429, 503, 504),
    dependencies=KEY_HEADERS,
    summary="Save a view",
    operation_id="save_view",
)
async def save_view(
    request: Request, body: ViewIn, repository: RepositoryDep, saved_views: SavedViewsDep, by: WriterDep
) -> Response:
    """Save a selection under a name. The answer has its stable address and those of its files."""
    # In one spelling, as it goes into addresses.
    query = urlencode(parse_qsl(body.query.removeprefix("?"), keep_blank_values=True))
    if len(query) > MAX_VIEW_QUERY_CHARS:
        message = f"has {len(query)} characters as an address spells it, at most {MAX_VIEW_QUERY_CHARS}; use less text"
        raise ParameterError([ProblemItem("query", message)])
    collection = IMAGES if body.of == "images" else CASES
    try:
        selected = await parse_selection(body.query.removeprefix("?"), repository, collection)
    except ParameterError as error:
        problems = (ProblemItem(f"query.{each.parameter}".rstrip("."), each.message) for each in error.problems)
        raise ParameterError(problems) from error
    stored = await saved_views.save(
        body.name,
        body.of,
        query,
        total=await repository.count(collection, selected.selection),
        dataset_version=await repository.seed_runs.dataset_version(),
        by=by,
    )
    address = f"{prefix_of(request)}/views/{stored['_id']}"
    answer = await data_response(request, repository, _view(stored), headers={"Location": address})
    answer.status_code = 201
    return answer


@router.get(
    "/views",
    response_model=ViewPage,
    responses=documented(422, 429, 503, 504),
    openapi_extra=filters(VIEW_FIELDS),
    summary="List views",
    operation_id="list_views",
)
async def list_views(
    request: Request,
    repository: RepositoryDep,
    selection: Annotated[Filter, Depends(_filter)],
    order: Annotated[SortOrder, Depends(_order)],
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """Saved views that pass a filter, page by page, the newest first: `by=reader`, `name__contains=head`."""
    page = await repository.page(VIEWS, selection, order, limit=limit, after=cursor)
    return await page_response(request, repository, page, [_view(document) for document in page.documents], limit)


@router.get(
    "/views/{view}",
    response_model=OpenedView,
    responses=documented(404, 422, 429, 503, 504),
    summary="Open a view",
    operation_id="get_view",
)
async def open_view(request: Request, view: DocumentId, repository: RepositoryDep) -> Response:
    """A saved view, and whether the data changed since it was saved; `links.items` lists what it selects."""
    document = await repository.get(VIEWS, view)
    return await data_response(request, repository, {**_view(document), **await _today(document, repository)})


async def _today(document: dict[str, Any], repository: Repository) -> dict[str, Any]:
    version = await repository.seed_runs.dataset_version()
    total: int | None = None
    note = None
    collection = IMAGES if document["of"] == "images" else CASES
    changed = version != document["dataset_version"]
    try:
        selected = await parse_selection(document["query"], repository, collection)
        total = await repository.count(collection, selected.selection)
        if changed:
            was, of = document["total"], document["of"]
            note = (
                f"The dataset changed since this view was saved: it selected {was} {of} then and selects {total} now."
            )
    except ParameterError as error:
        note = f"The query of this view cannot be used any more: {error}"
    return {"current_total": total, "current_dataset_version": version, "dataset_changed": changed, "note": note}


@router.delete(
    "/views/{view}",
    status_code=204,
    response_class=Response,
    responses=documented(401, 403, 404, 422, 429, 503, 504),
    dependencies=KEY_HEADERS,
    summary="Delete a view",
    operation_id="delete_view",
)
async def delete_view(
    view: DocumentId, repository: RepositoryDep, saved_views: SavedViewsDep, by: WriterDep
) -> Response:
    """Delete a view; only its writer can."""
    if (await repository.get(VIEWS, view))["by"] != by:
        raise ForbiddenError("Another key saved this view. Only its writer can delete it.")
    await saved_views.delete(view)
    return Response(status_code=204)


@router.get(
    "/views/{view}/{of}.{file_format}",
    response_class=StreamingResponse,
    responses=FILE_RESPONSES,
    summary="Export a view as a file",
    operation_id="export_view",
)
async def export_view(
    request: Request,
    view: DocumentId,
    repository: RepositoryDep,
    image_store: ImageStoreDep,
    export_files: ExportFilesDep,
    of: Annotated[Literal["images", "cases", "records"], Path(description="a view of images also gives records")],
    file_format: Annotated[Format, Path(description="zip holds the image files")],
    raw: RawRecords = False,
    bom: Bom = False,
) -> Response:
    """What a view selects today, as `/export` gives it, at an address for data tools that has no query string.

    `X-View-Dataset-Version` is the version of the data when the view was saved, `X-Dataset-Version` that of today.
    """
    document = await repository.get(VIEWS, view)
    if of != document["of"] and (of, document["of"]) != ("records", "images"):
        choices = "images or records" if document["of"] == "images" else "cases"
        raise UnprocessableError(f"This view selects {document['of']}: ask for {choices} in place of {of}.")
    selected = await parse_selection(document["query"], repository, IMAGES if document["of"] == "images" else CASES)
    requested = make_export(of, file_format, raw=raw, bom=bom, order=selected.order)
    answer = await kept_file(request, repository, image_store, export_files, requested, selected.selection)
    answer.headers["X-View-Dataset-Version"] = document["dataset_version"] or ""
    return answer
