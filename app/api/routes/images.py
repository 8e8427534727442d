"""Images: their records, their files and thumbnails."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from app.api.deps import (
    Cursor,
    ImageFilterDep,
    ImageIdDep,
    ImageOrderDep,
    Limit,
    PicturesDep,
    Raw,
    RepositoryDep,
)
from app.api.errors import Responses, documented
from app.api.files import file_response
from app.api.page_links import page_response
from app.api.projection import ImageProjectionDep
from app.api.responses import data_response
from app.api.schemas.records import ImagePage, ImageWithCase, StoredRecord
from app.api.serializers import case_view, image_view
from app.data.repository import CASES, IMAGES

router = APIRouter(tags=["images"])

Expand = Annotated[Literal["case"] | None, Query(description="`case` answers each image with its case")]

_PNG: Responses = {200: {"content": {"image/png": {}}, "description": "The file"}, 304: {"description": "Not Modified"}}
_JPEG: Responses = {
    200: {"content": {"image/jpeg": {}}, "description": "The thumbnail"},
    304: {"description": "Not Modified"},
}


@router.get("/images", response_model=ImagePage, responses=documented(422, 503, 504), summary="List images")
async def list_images(
    request: Request,
    repository: RepositoryDep,
    selection: ImageFilterDep,
    order: ImageOrderDep,
    projection: ImageProjectionDep,
    limit: Limit = 20,
    cursor: Cursor = None,
    expand: Expand = None,
) -> Response:
    """Images that pass a filter, page by page; any field can be one: `modality=CT`, `age__lte=18`."""
    page = await repository.page(IMAGES, selection, order, limit=limit, after=cursor)
    items = [projection.apply(image_view(document)) for document in page.documents]
    if expand:
        cases = await repository.cases([document["U_id"] for document in page.documents])
        for item, document in zip(items, page.documents, strict=True):
            item["case"] = case_view(cases[document["U_id"]])
    return await page_response(request, repository, page, items, limit)


@router.get(
    "/images/{image}",
    response_model=ImageWithCase | StoredRecord,
    responses=documented(404, 422, 503, 504),
    summary="Read an image",
)
async def read_image(request: Request, image: ImageIdDep, repository: RepositoryDep, raw: Raw = False) -> Response:
    """One image with its case; any letter case of the id is taken."""
    document = await repository.get(IMAGES, image)
    if raw:
        return await data_response(request, repository, document)
    case = await repository.get(CASES, document["U_id"])
    return await data_response(request, repository, {**image_view(document), "case": case_view(case)})


@router.get(
    "/images/{image}/file",
    response_class=FileResponse,
    responses={**_PNG, **documented(404, 416, 422, 503, 504)},
    summary="Read an image file",
)
async def read_file(request: Request, image: ImageIdDep, repository: RepositoryDep, pictures: PicturesDep) -> Response:
    """The PNG file as it is in the dataset."""
    file = (await repository.get(IMAGES, image))["file"]
    return await file_response(request, f'"{file["sha256"]}"', image, lambda: pictures.path(file), "image/png")


@router.get(
    "/images/{image}/thumbnail",
    response_class=FileResponse,
    responses={**_JPEG, **documented(404, 416, 422, 503, 504)},
    summary="Read a thumbnail",
)
async def read_thumbnail(
    request: Request,
    image: ImageIdDep,
    repository: RepositoryDep,
    pictures: PicturesDep,
    width: Annotated[int, Query(ge=64, le=512, description="Longest side in pixels")] = 256,
) -> Response:
    """A JPEG that fits a square of the given width."""
    file = (await repository.get(IMAGES, image))["file"]
    etag = f'"{file["sha256"]}-{width}"'
    return await file_response(request, etag, image, lambda: pictures.thumbnail(file, width), "image/jpeg")
