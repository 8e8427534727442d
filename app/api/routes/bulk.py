"""Bulk reads: many cases or images by their ids, which would not fit an address."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.deps import RepositoryDep, case_id, image_id
from app.api.errors import documented
from app.api.projection import CaseProjectionDep, ImageProjectionDep, Projection
from app.api.responses import data_response
from app.api.schemas.records import CaseView, ChosenFields, ImageView
from app.core.exceptions import ProblemItem
from app.data.filters import ParameterError
from app.data.repository import CASES, IMAGES, Collection, Repository
from app.data.serializers import case_view, encode, image_view

router = APIRouter()

MAX_IDS: Final = 500
_Ids = Annotated[list[str], Field(min_length=1, max_length=MAX_IDS)]


class CaseIds(BaseModel):
    """Ids of cases, in any letter case."""

    model_config = ConfigDict(extra="forbid")

    ids: _Ids = Field(examples=[["MPX1007", "MPX1063"]])


class ImageIds(BaseModel):
    """Ids of images, in any letter case."""

    model_config = ConfigDict(extra="forbid")

    ids: _Ids = Field(examples=[["MPX1007_synpic46719", "MPX1063_synpic22166"]])


class _Found(BaseModel):
    unknown: list[str] = Field(description="Ids that no record has, in the order of the request")


class CasesFound(_Found):
    """The cases with some ids."""

    items: list[CaseView | ChosenFields] = Field(
        description="In the order of the request, each as often as it is there"
    )


class ImagesFound(_Found):
    """The images with some ids."""

    items: list[ImageView | ChosenFields] = Field(
        description="In the order of the request, each as often as it is there"
    )


@router.post(
    "/cases/bulk",
    response_model=CasesFound,
    responses=documented(400, 413, 415, 422, 429, 503, 504),
    tags=["cases"],
    summary="Read many cases",
    operation_id="get_cases",
)
async def read_cases(
    request: Request, body: CaseIds, repository: RepositoryDep, projection: CaseProjectionDep
) -> Response:
    """Up to 500 cases by their ids, each with its images, in the order of the request; unknown ids are named."""
    keys = await _checked(body.ids, case_id)
    return await _found(request, repository, CASES, keys, projection)


@router.post(
    "/images/bulk",
    response_model=ImagesFound,
    responses=documented(400, 413, 415, 422, 429, 503, 504),
    tags=["images"],
    summary="Read many images",
    operation_id="get_images",
)
async def read_images(
    request: Request, body: ImageIds, repository: RepositoryDep, projection: ImageProjectionDep
) -> Response:
    """Up to 500 images by their ids, in the order of the request; unknown ids are named."""
    keys = await _checked(body.ids, image_id)
    return await _found(request, repository, IMAGES, keys, projection)


async def _checked(ids: list[str], spelling: Callable[[str], Awaitable[str]]) -> list[str]:
    """The ids in the dataset's spelling.

    Raises:
        ParameterError: names each that cannot be an id.
    """
    keys: list[str] = []
    problems: list[ProblemItem] = []
    for index, text in enumerate(ids):
        try:
            keys.append(await spelling(text))
        except ParameterError as error:
            problems += [ProblemItem(f"ids.{index}", each.message) for each in error.problems]
    if problems:
        raise ParameterError(problems)
    return keys


async def _found(
    request: Request, repository: Repository, collection: Collection, keys: list[str], projection: Projection
) -> Response:
    distinct = list(dict.fromkeys(keys))
    if projection.names is None:
        encoded = await repository.answers(collection, distinct, "whole" if collection is CASES else "summary")
    else:
        documents = await repository.get_many(collection, distinct)
        encoded = await asyncio.to_thread(_projected, documents, projection, collection)
    body = await asyncio.to_thread(_body, keys, encoded)
    return await data_response(request, repository, body)


def _projected(documents: list[dict[str, Any]], projection: Projection, collection: Collection) -> dict[str, bytes]:
    view = case_view if collection is CASES else image_view
    return {document["_id"]: encode(projection.apply(view(document))) for document in documents}


def _body(keys: list[str], encoded: Mapping[str, bytes]) -> bytes:
    items = b",".join(encoded[key] for key in keys if key in encoded)
    unknown = encode([key for key in dict.fromkeys(keys) if key not in encoded])
    return b'{"items":[%s],"unknown":%s}' % (items, unknown)
