"""What routes ask for, as annotated types, so that a signature says what a route needs."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import Depends, Path, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from app.api.filter_parameters import takes_filters
from app.core.settings import Settings
from app.data.fields import CASE_ALIASES, CASE_FIELDS, IMAGE_ALIASES, IMAGE_FIELDS
from app.data.filters import Filter, ParameterError, ParameterProblem, parse_filter
from app.data.image_store import ImageStore
from app.data.pagination import SortOrder, parse_sort
from app.data.record import CASE_ID, IMAGE_ID
from app.data.repository import CASES, IMAGES, Collection, Repository
from app.serving.model_manager import ModelManager

MAX_LIMIT: Final = 100
MAX_QUERY_CHARS: Final = 300
MAX_SAMPLE: Final = 1_000

_CASE_ID = re.compile(CASE_ID, re.IGNORECASE | re.ASCII)
_IMAGE_ID = re.compile(IMAGE_ID, re.IGNORECASE | re.ASCII)


async def get_settings(request: Request) -> Settings:
    """The settings that this application was made with."""
    settings: Settings = request.app.state.settings
    return settings


async def get_repository(request: Request) -> Repository:
    """The data of this application."""
    repository: Repository = request.app.state.repository
    return repository


async def get_image_store(request: Request) -> ImageStore:
    """The image files of this application."""
    image_store: ImageStore = request.app.state.image_store
    return image_store


async def get_models(request: Request) -> ModelManager:
    """The models of this application."""
    models: ModelManager = request.app.state.models
    return models


async def case_id(u_id: Annotated[str, Path(examples=["MPX1007"])]) -> str:
    """A case id in the dataset's spelling; any letter case is taken.

    Raises:
        ParameterError: it cannot be the id of a case.
    """
    if not _CASE_ID.fullmatch(u_id):
        raise ParameterError([ParameterProblem("u_id", f"expected an id such as MPX1007, got {u_id[:40]!r}")])
    return u_id.upper()


async def image_id(image: Annotated[str, Path(examples=["MPX1007_synpic46719"])]) -> str:
    """An image id in the dataset's spelling; any letter case is taken.

    Raises:
        ParameterError: it cannot be the id of an image.
    """
    if not _IMAGE_ID.fullmatch(image):
        message = f"expected an id such as MPX1007_synpic46719, got {image[:40]!r}"
        raise ParameterError([ParameterProblem("image", message)])
    case, _, number = image.upper().partition("_SYNPIC")
    return f"{case}_synpic{number}"


def _declared(route: APIRoute) -> frozenset[str]:
    """The query parameters that a route declares, its filters apart."""

    def names(dependant: Dependant) -> Iterator[str]:
        yield from (field.alias for field in dependant.query_params)
        for each in dependant.dependencies:
            yield from names(each)

    return frozenset(names(route.dependant))


async def check_parameters(request: Request) -> None:
    """Refuse a query parameter that a route does not take, or takes once and was given several times.

    Raises:
        ParameterError: names each.
    """
    route: APIRoute = request.scope["route"]
    declared, counts = _declared(route), Counter(name for name, _ in request.query_params.multi_items())
    problems = [
        ParameterProblem(name, f"given {count} times; this parameter is taken once")
        for name, count in counts.items()
        if name in declared and count > 1
    ]
    if not takes_filters(route):
        taken = f"takes {', '.join(sorted(declared))}" if declared else "takes none"
        unknown = [name for name in counts if name not in declared]
        problems += [ParameterProblem(name[:60], f"is no parameter of {route.path}, which {taken}") for name in unknown]
    if problems:
        raise ParameterError(problems)


def query_pairs(request: Request) -> list[tuple[str, str]]:
    """The parameters of a query that are filters: all that the route does not declare."""
    declared = _declared(request.scope["route"])
    return [(name, value) for name, value in request.query_params.multi_items() if name not in declared]


async def case_filter(request: Request, repository: Annotated[Repository, Depends(get_repository)]) -> Filter:
    """The filter over cases in the query string."""
    return parse_filter(query_pairs(request), CASE_FIELDS, CASE_ALIASES, await repository.vocabulary(CASES))


async def image_filter(request: Request, repository: Annotated[Repository, Depends(get_repository)]) -> Filter:
    """The filter over images in the query string."""
    return parse_filter(query_pairs(request), IMAGE_FIELDS, IMAGE_ALIASES, await repository.vocabulary(IMAGES))


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What narrows a selection beside its filters: a text search, then a random sample of what is left."""

    q: str | None
    sample: int | None
    seed: int
    per_case: bool

    async def apply(self, repository: Repository, collection: Collection, selection: Filter) -> Filter:
        """The narrowed selection."""
        if self.q is not None:
            selection = await repository.found_by_text(collection, selection, self.q)
        if self.sample is not None:
            selection = await repository.sampled(collection, selection, self.sample, self.seed, per_case=self.per_case)
        return selection


async def narrowing(
    q: Annotated[
        str | None,
        Query(max_length=MAX_QUERY_CHARS, description="Only cases that `/search` finds by this text, and their images"),
    ] = None,
    sample: Annotated[
        int | None, Query(ge=1, le=MAX_SAMPLE, description="Only this many, chosen at random", examples=[50])
    ] = None,
    seed: Annotated[
        int | None, Query(ge=0, le=2**31 - 1, description="Of the sample: the same seed chooses the same, default 0")
    ] = None,
    sample_by: Annotated[
        Literal["case"] | None, Query(description="`case`: a sample has at most one image of each case")
    ] = None,
) -> Narrowing:
    """Text search and sample.

    Raises:
        ParameterError: `seed` or `sample_by` without `sample`.
    """
    for name, value in (("seed", seed), ("sample_by", sample_by)):
        if value is not None and sample is None:
            raise ParameterError([ParameterProblem(name, "belongs to a sample; give `sample` too")])
    return Narrowing(q, sample, seed or 0, per_case=sample_by is not None)


NarrowingDep = Annotated[Narrowing, Depends(narrowing)]


async def case_selection(
    selection: Annotated[Filter, Depends(case_filter)],
    narrowed: NarrowingDep,
    repository: Annotated[Repository, Depends(get_repository)],
) -> Filter:
    """Filters over cases, text search and sample."""
    return await narrowed.apply(repository, CASES, selection)


async def image_selection(
    selection: Annotated[Filter, Depends(image_filter)],
    narrowed: NarrowingDep,
    repository: Annotated[Repository, Depends(get_repository)],
) -> Filter:
    """Filters over images, text search and sample."""
    return await narrowed.apply(repository, IMAGES, selection)


SortText = Annotated[
    str | None, Query(alias="sort", description="Fields to sort by, - for descending", examples=["-age,u_id"])
]


async def case_order(sort: SortText = None) -> SortOrder:
    """The order of cases."""
    return parse_sort(sort, CASE_FIELDS)


async def image_order(sort: SortText = None) -> SortOrder:
    """The order of images."""
    return parse_sort(sort, IMAGE_FIELDS)


SettingsDep = Annotated[Settings, Depends(get_settings)]
RepositoryDep = Annotated[Repository, Depends(get_repository)]
ImageStoreDep = Annotated[ImageStore, Depends(get_image_store)]
ModelsDep = Annotated[ModelManager, Depends(get_models)]
CaseIdDep = Annotated[str, Depends(case_id)]
ImageIdDep = Annotated[str, Depends(image_id)]
CaseFilterDep = Annotated[Filter, Depends(case_filter)]
ImageFilterDep = Annotated[Filter, Depends(image_filter)]
CaseSelectionDep = Annotated[Filter, Depends(case_selection)]
ImageSelectionDep = Annotated[Filter, Depends(image_selection)]
CaseOrderDep = Annotated[SortOrder, Depends(case_order)]
ImageOrderDep = Annotated[SortOrder, Depends(image_order)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most items on a page")]
Cursor = Annotated[str | None, Query(max_length=4000, description="`next_cursor` of the page before")]
Raw = Annotated[bool, Query(description="Answer the stored document with the dataset's own keys and values")]
