"""Fields, counts under a filter, and statistics."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.deps import ImageSelectionDep, NarrowingDep, RepositoryDep, case_filter, image_filter
from app.api.errors import documented
from app.api.filter_parameters import filters
from app.api.responses import data_response
from app.data import fields as catalogue
from app.data.facets import MAX_VALUES
from app.data.filters import SORTABLE, operators_of
from app.data.record import Kind
from app.data.repository import CASES, IMAGES, Collection

router = APIRouter(tags=["overview"])

Of = Annotated[Literal["images", "cases"], Query(description="What is counted")]
Value = str | int | None


class FieldView(BaseModel):
    """One field that answers hold and filters take."""

    name: str = Field(examples=["location_category"])
    kind: Kind
    about: str
    source: str = Field(description="Where the dataset has it; empty for what this service derives")
    nullable: bool
    operators: list[str] = Field(description="Parameters that filter by this field", examples=[["age", "age__gte"]])
    sortable: bool
    values: list[Value] | None = Field(description="All values, where there are at most 100")


class FieldList(BaseModel):
    """The fields of images and of cases, with other names that filters take."""

    images: list[FieldView]
    cases: list[FieldView]
    aliases: dict[str, dict[str, str]]


class FacetValue(BaseModel):
    """One value and how many images have it."""

    value: Value
    count: int
    filter: dict[str, str] | None = Field(description="Parameters that select these images")


class Facets(BaseModel):
    """Counts under the current filter; each facet sums to the total."""

    total: int
    cases: int
    facets: dict[str, list[FacetValue]]


class FieldStatistics(BaseModel):
    """Distribution of one field; which members there are depends on its kind."""

    model_config = ConfigDict(extra="allow")

    kind: Kind
    nulls: int


class Statistics(BaseModel):
    """Distribution of every field under the current filter."""

    total: int
    fields: dict[str, FieldStatistics]


@router.get(
    "/fields",
    response_model=FieldList,
    responses=documented(422, 503, 504),
    summary="List fields",
    operation_id="list_fields",
)
async def list_fields(request: Request, repository: RepositoryDep) -> Response:
    """Every field with its type, operators and values: all that a form for filters needs."""
    content = {
        "images": await _describe(repository, IMAGES),
        "cases": await _describe(repository, CASES),
        "aliases": {"images": dict(catalogue.IMAGE_ALIASES), "cases": dict(catalogue.CASE_ALIASES)},
    }
    return await data_response(request, repository, content)


async def _describe(repository: RepositoryDep, collection: Collection) -> list[dict[str, Any]]:
    vocabulary = await repository.vocabulary(collection)
    values = {name: occurring for name, occurring in vocabulary.items() if len(occurring) <= MAX_VALUES}
    return [
        {
            "name": name,
            "kind": field.kind,
            "about": field.about,
            "source": field.source,
            "nullable": field.nullable,
            "operators": [name, *(f"{name}__{operator}" for operator in operators_of(field))],
            "sortable": field.kind in SORTABLE,
            "values": values.get(name),
        }
        for name, field in collection.fields.items()
    ]


@router.get(
    "/facets",
    response_model=Facets,
    responses=documented(422, 429, 503, 504),
    openapi_extra=filters(catalogue.IMAGE_FIELDS),
    summary="Count by value",
    operation_id="get_facets",
)
async def read_facets(request: Request, repository: RepositoryDep, selection: ImageSelectionDep) -> Response:
    """How many images have each value of a few fields, under the filters of `/images`."""
    return await data_response(request, repository, await repository.facets(selection))


@router.get(
    "/statistics",
    response_model=Statistics,
    responses=documented(422, 429, 503, 504),
    openapi_extra=filters({**catalogue.CASE_FIELDS, **catalogue.IMAGE_FIELDS}),
    summary="Describe all fields",
    operation_id="get_statistics",
)
async def read_statistics(
    request: Request, repository: RepositoryDep, narrowed: NarrowingDep, of: Of = "images"
) -> Response:
    """Nulls, values, ranges and lengths of every field, under the filters of `/images` or `/cases`."""
    collection = IMAGES if of == "images" else CASES
    selection = await (image_filter if of == "images" else case_filter)(request, repository)
    selection = await narrowed.apply(repository, collection, selection)
    return await data_response(request, repository, await repository.statistics(collection, selection))
