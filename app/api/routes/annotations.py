"""Annotations: what readers would correct; the dataset's own records never change."""

from typing import Annotated, Self

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.api.auth import KEY_HEADERS, WriterDep
from app.api.deps import Cursor, ImageIdDep, Limit, RepositoryDep, query_pairs
from app.api.errors import documented
from app.api.filter_parameters import filters
from app.api.responses import page_response
from app.api.serializers import annotation_view
from app.data.fields import ANNOTATION_FIELDS, CATEGORIES
from app.data.filters import Filter, parse_filter
from app.data.pagination import SortOrder, parse_sort
from app.data.record import Annotation, Modality
from app.data.repository import ANNOTATIONS, IMAGES
from ml.dataset.labels import LOCATIONS

router = APIRouter(tags=["annotations"])

Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Comment = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=5000)]


class AnnotationIn(BaseModel):
    """A corrected label, a comment, or both."""

    model_config = ConfigDict(extra="forbid")

    modality: Modality | None = None
    location: Label | None = Field(default=None, examples=["Genitourinary"])
    location_category: Label | None = Field(default=None, examples=["Abdomen"])
    comment: Comment | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any((self.modality, self.location, self.location_category, self.comment)):
            raise ValueError("give modality, location, location_category or comment")
        for name, value, known in (
            ("location", self.location, LOCATIONS),
            ("location_category", self.location_category, CATEGORIES),
        ):
            if value is not None and value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}")
        return self


class AnnotationPage(BaseModel):
    """One page of annotations."""

    items: list[Annotation]
    total: int
    total_is_exact: bool
    limit: int
    next_cursor: str | None


async def annotation_filter(request: Request) -> Filter:
    """The filter over annotations in the query string."""
    return parse_filter(query_pairs(request), ANNOTATION_FIELDS, {})


async def annotation_order(sort: str | None = None) -> SortOrder:
    """The order of annotations."""
    return parse_sort(sort, ANNOTATION_FIELDS)


@router.post(
    "/images/{image}/annotations",
    status_code=201,
    response_model=Annotation,
    responses=documented(400, 401, 404, 413, 422, 429, 503, 504),
    dependencies=KEY_HEADERS,
    summary="Annotate an image",
    operation_id="annotate_image",
)
async def annotate(image: ImageIdDep, body: AnnotationIn, repository: RepositoryDep, by: WriterDep) -> Response:
    """Keep a corrected label or a comment on an image, with who wrote it and what was seen.

    It is acknowledged when a majority of the database's members have it.
    """
    seen = await repository.get(IMAGES, image)
    stored = await repository.annotate(seen, body.model_dump(), by)
    return JSONResponse(
        annotation_view(stored), status_code=201, headers={"Location": f"/annotations?id={stored['_id']}"}
    )


@router.get(
    "/annotations",
    response_model=AnnotationPage,
    responses=documented(422, 503, 504),
    openapi_extra=filters(ANNOTATION_FIELDS),
    summary="List annotations",
    operation_id="list_annotations",
)
async def list_annotations(
    request: Request,
    repository: RepositoryDep,
    selection: Annotated[Filter, Depends(annotation_filter)],
    order: Annotated[SortOrder, Depends(annotation_order)],
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """Annotations that pass a filter, page by page: `image=MPX1007_synpic46719`, `by=reader`."""
    page = await repository.page(ANNOTATIONS, selection, order, limit=limit, after=cursor)
    items = [annotation_view(document) for document in page.documents]
    return await page_response(request, repository, page, items, limit)
