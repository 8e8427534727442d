"""What routes ask for, as annotated types, so that a signature says what a route needs."""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, unquote_plus, unquote_to_bytes

from fastapi import Depends, Path, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import Example
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from app.api.filter_parameters import takes_filters
from app.core.exceptions import ProblemItem, message_of
from app.core.settings import Settings
from app.data.annotations import Annotations
from app.data.fields import CASE_ALIASES, CASE_FIELDS, IMAGE_ALIASES, IMAGE_FIELDS
from app.data.filters import Filter, ParameterError, parse_filter
from app.data.image_store import ImageStore
from app.data.pagination import SortOrder, parse_sort
from app.data.record import CASE_ID, IMAGE_ID
from app.data.repository import CASES, IMAGES, Collection, Repository
from app.data.saved_views import SavedViews
from app.export.export_files import ExportFiles
from app.serving.model_manager import ModelManager

MAX_LIMIT: Final = 100
MAX_QUERY_CHARS: Final = 300
MAX_SAMPLE: Final = 1_000
# More than a route declares and a filter may have; each unknown one is answered with a sentence.
_MAX_PARAMETERS: Final = 50
# Parameters of some lists, and of no route a filter.
_NO_FILTERS: Final = frozenset({"limit", "offset", "cursor", "sort", "fields", "raw", "q"})

_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")


def _only_digits(value: object) -> object:
    """Refuse what Python's ``int`` reads too, such as ``1_0`` and `` 5``."""
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise PydanticCustomError("int_parsing", "expected an integer, got '{value}'", {"value": value[:60]})
    return value


# Stands behind the bounds of a number: in front of them it would hide them from the API reference.
OnlyDigits: Final = BeforeValidator(_only_digits)
QueryText = Annotated[str, Field(max_length=MAX_QUERY_CHARS)]
SampleSize = Annotated[int, Field(ge=1, le=MAX_SAMPLE), OnlyDigits]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1), OnlyDigits]
SampleBy = Literal["case"]

_CASE_ID = re.compile(CASE_ID, re.IGNORECASE | re.ASCII)
_IMAGE_ID = re.compile(IMAGE_ID, re.IGNORECASE | re.ASCII)


def _member(name: str) -> Callable[[Request], Awaitable[Any]]:
    """A dependency: what the application keeps in its state under a name."""

    async def get(request: Request) -> Any:
        return getattr(request.app.state, name)

    return get


get_settings: Final = _member("settings")
get_repository: Final = _member("repository")


def example(value: str) -> dict[str, Example]:
    """What the API reference fills in for a path parameter; it leaves the examples of a schema out."""
    return {value: {"value": value}}


# The `_id` of an annotation or of a view.
DocumentId = Annotated[
    str, Path(pattern="^[0-9a-f]{32}$", openapi_examples=example("0f8fad5bd9cb469fa16570867728950e"))
]


async def case_id(u_id: Annotated[str, Path(openapi_examples=example("MPX1007"))]) -> str:
    """A case id in the dataset's spelling; any letter case is taken.

    Raises:
        ParameterError: it cannot be the id of a case.
    """
    if not _CASE_ID.fullmatch(u_id):
        raise ParameterError([ProblemItem("u_id", f"expected an id such as MPX1007, got {u_id[:40]!r}")])
    return u_id.upper()


async def image_id(image: Annotated[str, Path(openapi_examples=example("MPX1007_synpic46719"))]) -> str:
    """An image id in the dataset's spelling; any letter case is taken.

    Raises:
        ParameterError: it cannot be the id of an image.
    """
    if not _IMAGE_ID.fullmatch(image):
        message = f"expected an id such as MPX1007_synpic46719, got {image[:40]!r}"
        raise ParameterError([ProblemItem("image", message)])
    case, _, number = image.upper().partition("_SYNPIC")
    return f"{case}_synpic{number}"


def _declared(route: APIRoute) -> frozenset[str]:
    """The query parameters that a route declares, its filters apart."""

    def names(dependant: Dependant) -> Iterator[str]:
        yield from (field.alias for field in dependant.query_params)
        for each in dependant.dependencies:
            yield from names(each)

    return frozenset(names(route.dependant))


def _check_encoding(query: str) -> None:
    """Text that is not UTF-8 would be read with other characters in it, and would find something else.

    Raises:
        ParameterError: the first part of a query string that is not UTF-8.
    """
    for part in query.split("&"):
        try:
            unquote_to_bytes(part).decode()
        except UnicodeDecodeError as error:
            message = f"{part.partition('=')[2][:60]} is not UTF-8; é is %C3%A9 in UTF-8"
            raise ParameterError([ProblemItem(unquote_plus(part.partition("=")[0])[:60], message)]) from error


async def check_parameters(request: Request) -> None:
    """Refuse a query parameter that a route does not take, takes once and was given several times, or is not UTF-8.

    Raises:
        ParameterError: names each, or there are too many to look at.
    """
    route: APIRoute = request.scope["route"]
    _check_encoding(request.scope["query_string"].decode("latin-1"))
    pairs = request.query_params.multi_items()
    if len(pairs) > _MAX_PARAMETERS:
        raise ParameterError([ProblemItem("", f"{len(pairs)} parameters; at most {_MAX_PARAMETERS} are read")])
    declared, counts = _declared(route), Counter(name for name, _ in pairs)
    problems = [
        ProblemItem(name, f"given {count} times; this parameter is taken once")
        for name, count in counts.items()
        if name in declared and count > 1
    ]
    unknown = [name for name in counts if name not in declared and (not takes_filters(route) or name in _NO_FILTERS)]
    if unknown:
        accepted = f"takes {', '.join(sorted(declared))}" if declared else "takes none"
        accepted += ", and filters" if takes_filters(route) else ""
        problems += [ProblemItem(name[:60], f"is no parameter of {route.path}, which {accepted}") for name in unknown]
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
        QueryText | None,
        Query(description="Only cases that hold every word and phrase of this text, and their images"),
    ] = None,
    sample: Annotated[SampleSize | None, Query(description="Only this many, chosen at random", examples=[50])] = None,
    seed: Annotated[
        Seed | None, Query(description="Of the sample: the same seed chooses the same, default 0", examples=[1])
    ] = None,
    sample_by: Annotated[
        SampleBy | None, Query(description="`case`: a sample has at most one image of each case")
    ] = None,
) -> Narrowing:
    """Text search and sample.

    Raises:
        ParameterError: `seed` or `sample_by` without `sample`.
    """
    for name, value in (("seed", seed), ("sample_by", sample_by)):
        if value is not None and sample is None:
            raise ParameterError([ProblemItem(name, "belongs to a sample; give `sample` too")])
    return Narrowing(q, sample, seed or 0, per_case=sample_by is not None)


NarrowingDep = Annotated[Narrowing, Depends(narrowing)]


class _Parameters(BaseModel):
    """The parameters of a selection that are no filters, where they come as text and not with a request."""

    q: QueryText | None = None
    sample: SampleSize | None = None
    seed: Seed | None = None
    sample_by: SampleBy | None = None
    sort: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What a query string of `/images` or `/cases` selects, and in which order."""

    selection: Filter
    order: SortOrder


async def parse_selection(text: str, repository: Repository, collection: Collection) -> Selection:
    """Read the query string of a list of images or cases.

    Raises:
        ParameterError: names each parameter that the list would refuse.
    """
    _check_encoding(text)
    pairs = parse_qsl(text, keep_blank_values=True)
    counts = Counter(name for name, _ in pairs if name in _Parameters.model_fields)
    twice = [ProblemItem(name, f"given {count} times") for name, count in counts.items() if count > 1]
    if twice:
        raise ParameterError(twice)
    try:
        parameters = _Parameters.model_validate({name: value for name, value in pairs if name in counts})
    except ValidationError as error:
        raise ParameterError(
            ProblemItem(str(each["loc"][0]), message_of(each)) for each in error.errors(include_url=False)
        ) from error
    aliases = IMAGE_ALIASES if collection is IMAGES else CASE_ALIASES
    filters = [pair for pair in pairs if pair[0] not in counts]
    selection = parse_filter(filters, collection.fields, aliases, await repository.vocabulary(collection))
    narrowed = await narrowing(parameters.q, parameters.sample, parameters.seed, parameters.sample_by)
    return Selection(
        await narrowed.apply(repository, collection, selection), parse_sort(parameters.sort, collection.fields)
    )


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
ImageStoreDep = Annotated[ImageStore, Depends(_member("image_store"))]
ExportFilesDep = Annotated[ExportFiles, Depends(_member("export_files"))]
AnnotationsDep = Annotated[Annotations, Depends(_member("annotations"))]
SavedViewsDep = Annotated[SavedViews, Depends(_member("saved_views"))]
ModelsDep = Annotated[ModelManager, Depends(_member("models"))]
CaseIdDep = Annotated[str, Depends(case_id)]
ImageIdDep = Annotated[str, Depends(image_id)]
CaseFilterDep = Annotated[Filter, Depends(case_filter)]
ImageFilterDep = Annotated[Filter, Depends(image_filter)]
CaseSelectionDep = Annotated[Filter, Depends(case_selection)]
ImageSelectionDep = Annotated[Filter, Depends(image_selection)]
CaseOrderDep = Annotated[SortOrder, Depends(case_order)]
ImageOrderDep = Annotated[SortOrder, Depends(image_order)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most items on a page"), OnlyDigits]
Cursor = Annotated[str | None, Query(max_length=4000, description="`next_cursor` of the page before")]
Raw = Annotated[bool, Query(description="Answer the stored document with the dataset's own keys and values")]
