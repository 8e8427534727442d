"""What routes ask for, as annotated types, so that a signature says what a route needs."""

import re
from typing import Annotated, Final

from fastapi import Depends, Path, Query, Request

from app.core.settings import Settings
from app.data.fields import CASE_ALIASES, CASE_FIELDS, IMAGE_ALIASES, IMAGE_FIELDS
from app.data.filters import Filter, ParameterError, ParameterProblem, parse_filter
from app.data.image_store import PictureStore
from app.data.pagination import SortOrder, parse_sort
from app.data.repository import Repository
from app.serving.model_manager import ModelServer

MAX_LIMIT: Final = 100
RESERVED: Final = frozenset(
    {"limit", "cursor", "sort", "fields", "expand", "raw", "q", "mode", "offset", "of", "format"}
)

# MedPix 2.0 has four digits; a larger collection may have more.
_CASE_ID = re.compile(r"mpx\d{4,8}", re.IGNORECASE)
_IMAGE_ID = re.compile(r"(mpx\d{4,8})_(synpic)(\d{2,5})", re.IGNORECASE)


async def get_settings(request: Request) -> Settings:
    """The settings that this application was made with."""
    settings: Settings = request.app.state.settings
    return settings


async def get_repository(request: Request) -> Repository:
    """The data of this application."""
    repository: Repository = request.app.state.repository
    return repository


async def get_pictures(request: Request) -> PictureStore:
    """The image files of this application."""
    pictures: PictureStore = request.app.state.pictures
    return pictures


async def get_models(request: Request) -> ModelServer:
    """The models of this application."""
    models: ModelServer = request.app.state.models
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
    match = _IMAGE_ID.fullmatch(image)
    if not match:
        message = f"expected an id such as MPX1007_synpic46719, got {image[:40]!r}"
        raise ParameterError([ParameterProblem("image", message)])
    return f"{match[1].upper()}_synpic{match[3]}"


def query_pairs(request: Request) -> list[tuple[str, str]]:
    """The parameters of a query that name fields."""
    return [(name, value) for name, value in request.query_params.multi_items() if name not in RESERVED]


async def case_filter(request: Request) -> Filter:
    """The filter over cases in the query string."""
    return parse_filter(query_pairs(request), CASE_FIELDS, CASE_ALIASES)


async def image_filter(request: Request) -> Filter:
    """The filter over images in the query string."""
    return parse_filter(query_pairs(request), IMAGE_FIELDS, IMAGE_ALIASES)


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
PicturesDep = Annotated[PictureStore, Depends(get_pictures)]
ModelsDep = Annotated[ModelServer, Depends(get_models)]
CaseIdDep = Annotated[str, Depends(case_id)]
ImageIdDep = Annotated[str, Depends(image_id)]
CaseFilterDep = Annotated[Filter, Depends(case_filter)]
ImageFilterDep = Annotated[Filter, Depends(image_filter)]
CaseOrderDep = Annotated[SortOrder, Depends(case_order)]
ImageOrderDep = Annotated[SortOrder, Depends(image_order)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most items on a page")]
Cursor = Annotated[str | None, Query(max_length=4000, description="`next_cursor` of the page before")]
Raw = Annotated[bool, Query(description="Answer the stored document with the dataset's own keys and values")]
