"""Images: their records, their files and thumbnails."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from app.api.deps import (
    AnnotationsDep,
    Cursor,
    ImageIdDep,
    ImageOrderDep,
    ImageSelectionDep,
    ImageStoreDep,
    Limit,
    OnlyDigits,
    Raw,
    RepositoryDep,
)
from app.api.errors import BINARY, Responses, documented
from app.api.file_responses import image_response
from app.api.filter_parameters import filters
from app.api.projection import ImageProjectionDep, Projection
from app.api.responses import data_response, page_response
from app.api.schemas.records import ImageDetail, ImagePage, StoredRecord
from app.data.fields import IMAGE_FIELDS
from app.data.image_store import THUMBNAIL_WIDTHS
from app.data.integrity import case_of, missing_case
from app.data.repository import CASES, IMAGES, NotFoundError
from app.data.serializers import annotation_view, case_view, encode, image_view, with_member

router = APIRouter(tags=["images"])

Expand = Annotated[Literal["case"] | None, Query(description="`case` answers each image with its case")]

_PNG: Responses = {
    200: {"content": {"image/png": BINARY}, "description": "The file"},
    304: {"description": "Not Modified"},
}
_JPEG: Responses = {
    200: {"content": {"image/jpeg": BINARY}, "description": "The thumbnail"},
    304: {"description": "Not Modified"},
}


@router.get(
    "/images",
    response_model=ImagePage,
    responses=documented(422, 429, 503, 504),
    openapi_extra=filters(IMAGE_FIELDS),
    summary="List images",
    operation_id="list_images",
)
async def list_images(
    request: Request,
    repository: RepositoryDep,
    selection: ImageSelectionDep,
    order: ImageOrderDep,
    projection: ImageProjectionDep,
    limit: Limit = 20,
    cursor: Cursor = None,
    expand: Expand = None,
) -> Response:
    """Images that pass a filter, page by page; any field can be one: `modality=CT`, `age__lte=18`."""
    whole = projection.names is None and expand is None
    page = await repository.page(IMAGES, selection, order, limit=limit, after=cursor, summaries=whole)
    if whole:
        return await page_response(request, repository, page, [each["summary"] for each in page.documents], limit)
    cases = await repository.cases(list({document["U_id"] for document in page.documents})) if expand else None
    items = await asyncio.to_thread(_items, page.documents, projection, cases)
    return await page_response(request, repository, page, items, limit)


def _items(
    documents: list[dict[str, Any]], projection: Projection, cases: Mapping[str, dict[str, Any]] | None
) -> list[dict[str, Any]]:
    items = [projection.apply(image_view(document)) for document in documents]
    if cases is not None:
        for item, document in zip(items, documents, strict=True):
            item["case"] = case_view(case_of(document, cases))
    return items


@router.get(
    "/images/{image}",
    response_model=ImageDetail | StoredRecord,
    responses=documented(404, 422, 503, 504),
    summary="Read an image",
    operation_id="get_image",
)
async def read_image(
    request: Request, image: ImageIdDep, repository: RepositoryDep, annotations: AnnotationsDep, raw: Raw = False
) -> Response:
    """One image with its case and its current annotations; any letter case of the id is taken."""
    if raw:
        return await data_response(request, repository, await repository.get(IMAGES, image))
    own = await repository.answer(IMAGES, image, "summary")
    u_id = image.partition("_")[0]
    try:
        case = await repository.answer(CASES, u_id, "summary")
    except NotFoundError as error:
        raise missing_case(u_id, image) from error
    current = [annotation_view(each) for each in await annotations.of_image(image)]
    answer = with_member(own["summary"], "case", case["summary"])
    return await data_response(request, repository, with_member(answer, "annotations", encode(current)))


@router.get(
    "/images/{image}/file",
    response_class=FileResponse,
    responses={**_PNG, **documented(404, 412, 416, 422, 503, 504)},
    summary="Read an image file",
    operation_id="get_image_file",
)
async def read_file(
    request: Request, image: ImageIdDep, repository: RepositoryDep, image_store: ImageStoreDep
) -> Response:
    """The PNG file as it is in the dataset."""
    file = (await repository.get(IMAGES, image))["file"]
    return await image_response(request, f'"{file["sha256"]}"', lambda: image_store.path(file), "image/png")


@router.get(
    "/images/{image}/thumbnail",
    response_class=FileResponse,
    responses={**_JPEG, **documented(404, 412, 416, 422, 503, 504)},
    summary="Read a thumbnail",
    operation_id="get_thumbnail",
)
async def read_thumbnail(
    request: Request,
    image: ImageIdDep,
    repository: RepositoryDep,
    image_store: ImageStoreDep,
    width: Annotated[int, Query(ge=64, le=512, description="Longest side in pixels at most"), OnlyDigits] = 256,
) -> Response:
    """A JPEG that fits a square of the given width, in the next smaller of 64, 128, 256 and 512 pixels."""
    width = max(step for step in THUMBNAIL_WIDTHS if step <= width)
    file = (await repository.get(IMAGES, image))["file"]
    etag = f'"{file["sha256"]}-{width}"'
    return await image_response(request, etag, lambda: image_store.thumbnail(file, width), "image/jpeg")
