"""Annotations: corrections of readers, with their history. Neither they nor the dataset's records ever change."""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.api.auth import KEY_HEADERS, WriterDep
from app.api.deps import AnnotationsDep, Cursor, DocumentId, ImageIdDep, Limit, RepositoryDep, SortText, query_pairs
from app.api.errors import documented
from app.api.filter_parameters import filters
from app.api.responses import data_response, page_response
from app.api.schemas.records import PageModel
from app.core.exceptions import ConflictError, ForbiddenError
from app.data.annotations import Annotations
from app.data.fields import ANNOTATION_FIELDS, CATEGORIES
from app.data.filters import Filter, parse_filter
from app.data.pagination import SortOrder, parse_sort
from app.data.record import Annotation, Modality
from app.data.repository import ANNOTATIONS, IMAGES, Repository
from app.data.serializers import annotation_view
from app.web.pages import prefix_of
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
        for name, value, classes in (
            ("location", self.location, LOCATIONS),
            ("location_category", self.location_category, CATEGORIES),
        ):
            if value is not None and value not in classes:
                raise ValueError(f"{name} must be one of {', '.join(classes)}")
        return self


class AnnotationPage(PageModel):
    """One page of annotations."""

    items: list[Annotation]


class AnnotationWithHistory(Annotation):
    """An annotation with its history."""

    history: list[Annotation] = Field(description="From the first to the last; the last is the current one")


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        description="A value of your own: a request that is sent again with it is stored once",
    ),
]


async def annotation_filter(request: Request) -> Filter:
    """The filter over annotations in the query string."""
    return parse_filter(query_pairs(request), ANNOTATION_FIELDS, {}, {"location": LOCATIONS})


async def annotation_order(sort: SortText = None) -> SortOrder:
    """The order of annotations; default: the newest first."""
    return parse_sort(sort or "-created_at", ANNOTATION_FIELDS)


def _stored(request: Request, document: dict[str, Any], *, is_new: bool) -> Response:
    headers = {"Location": f"{prefix_of(request)}/annotations/{document['_id']}"}
    if not is_new:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(annotation_view(document), status_code=201, headers=headers)


@router.post(
    "/images/{image}/annotations",
    status_code=201,
    response_model=Annotation,
    responses=documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 504),
    dependencies=KEY_HEADERS,
    summary="Annotate an image",
    operation_id="annotate_image",
)
async def annotate(
    request: Request,
    image: ImageIdDep,
    body: AnnotationIn,
    repository: RepositoryDep,
    annotations: AnnotationsDep,
    by: WriterDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Keep a corrected label or a comment on an image, with who wrote it and what was seen.

    It is acknowledged when a majority of the database's members have it.
    """
    document = await repository.get(IMAGES, image)
    dataset_version = await repository.seed_runs.dataset_version()
    stored, is_new = await annotations.add(
        document, body.model_dump(), dataset_version=dataset_version, by=by, key=idempotency_key
    )
    return _stored(request, stored, is_new=is_new)


@router.put(
    "/annotations/{annotation}",
    status_code=201,
    response_model=Annotation,
    responses=documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 504),
    dependencies=KEY_HEADERS,
    summary="Amend an annotation",
    operation_id="amend_annotation",
)
async def amend(
    request: Request,
    annotation: DocumentId,
    body: AnnotationIn,
    repository: RepositoryDep,
    annotations: AnnotationsDep,
    by: WriterDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Replace an annotation by another one. The old one stays in the history; only its writer can replace it."""
    return await _replaced(request, repository, annotations, annotation, body.model_dump(), by, idempotency_key)


@router.delete(
    "/annotations/{annotation}",
    status_code=201,
    response_model=Annotation,
    responses=documented(401, 403, 404, 409, 422, 429, 503, 504),
    dependencies=KEY_HEADERS,
    summary="Retract an annotation",
    operation_id="retract_annotation",
)
async def retract(
    request: Request,
    annotation: DocumentId,
    repository: RepositoryDep,
    annotations: AnnotationsDep,
    by: WriterDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Take an annotation back. It stays in the history, followed by who took it back and when."""
    nothing = dict.fromkeys(AnnotationIn.model_fields)
    return await _replaced(request, repository, annotations, annotation, nothing, by, idempotency_key)


async def _replaced(
    request: Request,
    repository: Repository,
    annotations: Annotations,
    annotation: str,
    values: dict[str, Any],
    by: str,
    key: str | None,
) -> Response:
    earlier = await repository.get(ANNOTATIONS, annotation)
    if earlier["by"] != by:
        raise ForbiddenError("Another key wrote this annotation. Only its writer can amend or retract it.")
    # What was stored is answered again, whatever has been written since.
    if key is None or not await annotations.has(by, key):
        current = (await annotations.history(earlier))[-1]
        is_sent_again = key is not None and current.get("amends") == annotation
        if current["_id"] != annotation and not is_sent_again:
            raise ConflictError(f"A later annotation replaces this one: {current['_id']}. Amend that one.")
        if earlier.get("action") == "retract":
            raise ConflictError("This annotation was retracted. Write a new one.")
    document = await repository.get(IMAGES, earlier["image"])
    dataset_version = await repository.seed_runs.dataset_version()
    stored, is_new = await annotations.add(
        document, values, dataset_version=dataset_version, by=by, amends=earlier, key=key
    )
    return _stored(request, stored, is_new=is_new)


@router.get(
    "/annotations/{annotation}",
    response_model=AnnotationWithHistory,
    responses=documented(404, 422, 503, 504),
    summary="Read an annotation",
    operation_id="get_annotation",
)
async def read_annotation(
    request: Request, annotation: DocumentId, repository: RepositoryDep, annotations: AnnotationsDep
) -> Response:
    """An annotation with all that it replaces and that replaced it."""
    document = await repository.get(ANNOTATIONS, annotation)
    history = [annotation_view(each) for each in await annotations.history(document)]
    return await data_response(request, repository, {**annotation_view(document), "history": history})


@router.get(
    "/annotations",
    response_model=AnnotationPage,
    responses=documented(422, 429, 503, 504),
    openapi_extra=filters(ANNOTATION_FIELDS),
    summary="List annotations",
    operation_id="list_annotations",
)
async def list_annotations(
    request: Request,
    repository: RepositoryDep,
    annotations: AnnotationsDep,
    selection: Annotated[Filter, Depends(annotation_filter)],
    order: Annotated[SortOrder, Depends(annotation_order)],
    replaced: Annotated[
        bool, Query(description="Also annotations that were replaced or retracted, and the retractions")
    ] = False,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """Annotations that pass a filter, page by page: `image=MPX1007_synpic46719`, `by=reader`."""
    if not replaced:
        selection = await annotations.current(selection)
    page = await repository.page(ANNOTATIONS, selection, order, limit=limit, after=cursor)
    items = [annotation_view(document) for document in page.documents]
    return await page_response(request, repository, page, items, limit)
