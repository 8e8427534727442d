"""Images of the dataset that are similar to an image, or that fit a text, by the embeddings of a model."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.deps import (
    MAX_QUERY_CHARS,
    ImageFilterDep,
    ImageIdDep,
    ImageStoreDep,
    Limit,
    ModelsDep,
    OnlyDigits,
    RepositoryDep,
)
from app.api.errors import documented
from app.api.filter_parameters import filters
from app.api.prediction_request import (
    DATASET_IMAGE_ERRORS,
    TIMED_TOGETHER,
    UPLOAD_ERRORS,
    PredictionRequest,
    PredictionRequestDep,
    timing_header,
)
from app.api.responses import with_prefix
from app.api.routes.predict_image import read_image_file
from app.api.schemas.predictions import DatasetImage, ImageStamp, ModelStamp, Task, image_stamp, model_stamp
from app.api.schemas.records import ImageLinks, ImageView
from app.api.uploads import read_upload, upload_schema
from app.core.exceptions import ContentTooLargeError, ProblemItem, UnavailableError, UnprocessableError, message_of
from app.data.fields import IMAGE_FIELDS
from app.data.filters import EVERYTHING, Filter, ParameterError
from app.data.integrity import case_of
from app.data.record import CaseId, ImageId, Split
from app.data.repository import IMAGES, Repository
from app.data.serializers import case_view, encode, image_view
from app.serving.prediction_context import PredictionContext
from app.web.pages import prefix_of

if TYPE_CHECKING:  # imports PyTorch
    from app.serving.text_search import TextSearch

router = APIRouter(tags=["similar"])

_EXAMPLE: Final = "axial CT with ring-enhancing lesion"
_MAX_OFFSET: Final = 10_000
# More than any reference has: filtered neighbours are chosen among all.
_ALL: Final = 1_000_000_000
# Of a JSON body: the text at four bytes a character, escaped, with its braces.
_MAX_TEXT_BYTES: Final = 16 * 1024

# Cases have up to 31 images; so many may have to be left out.
_SPARE: Final = 40
_SETUP_RETRY_S: Final = 60

LimitQuery = Annotated[int, Query(ge=1, le=50, description="How many images"), OnlyDigits]
TaskQuery = Annotated[Task, Query(description="Whose model compares: the one that serves this task")]


class SimilarImage(BaseModel):
    """A similar image of the dataset."""

    image: ImageId
    u_id: CaseId
    split: Split
    similarity: float = Field(ge=-1, le=1, description="Cosine similarity of the embeddings")
    title: str | None
    diagnosis: str | None
    caption: str | None
    modality: str
    location: str | None
    links: ImageLinks


class SimilarImages(BaseModel):
    """Images, the most similar first."""

    items: list[SimilarImage]
    model: ModelStamp
    text: str | None = Field(default=None, description="The text that was compared, where there was one")
    image: ImageStamp | None = Field(description="The image that was compared; null for a text")
    in_dataset: DatasetImage | None = Field(description="The image that was compared, if it is of the dataset")
    notes: list[str] = Field(description="What a reader should know, in sentences")
    request_id: str


class FoundImage(BaseModel):
    """An image that was found by words."""

    score: float = Field(ge=-1, le=1, description="Cosine similarity of text and image; comparable within one answer")
    image: ImageView


class FoundImages(BaseModel):
    """One page of images, those that fit the text best first."""

    items: list[FoundImage]
    total: int = Field(description="How many images pass the filters and are ranked: every image has a rank")
    model: ModelStamp
    limit: int
    offset: int
    request_id: str


class TextQuery(BaseModel):
    """The body of a search by words."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": _EXAMPLE}]})

    text: str = Field(min_length=1, max_length=MAX_QUERY_CHARS, description="What the image shows, in words")


def _similar_schema() -> dict[str, Any]:
    """An image as a form or a text as JSON, and the filters of images."""
    schema = upload_schema(with_caption=False) | filters(IMAGE_FIELDS)
    text = {"schema": TextQuery.model_json_schema()}
    schema["requestBody"]["content"]["application/json"] = text
    return schema


@router.get(
    "/search/images",
    response_model=FoundImages,
    responses=documented(422, 429, 503, 504),
    openapi_extra=filters(IMAGE_FIELDS),
    summary="Find images by words",
)
async def search_images(
    request: PredictionRequestDep,
    models: ModelsDep,
    repository: RepositoryDep,
    selection: ImageFilterDep,
    q: Annotated[
        str, Query(min_length=1, max_length=MAX_QUERY_CHARS, description="What the image shows", examples=[_EXAMPLE])
    ],
    limit: Limit = 20,
    offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET, description="Images to leave out"), OnlyDigits] = 0,
) -> Response:
    """The images that fit a text best, by what they show rather than by the words of their captions.

    Text and images are compared in the embedding space of a dual encoder (`medpix train clip-location`). The filters
    of `/images` apply. Every image has a rank: the last ones do not fit at all.
    """
    text = _words(q, "q")
    search = models.text_search()
    ranked = await _ranked(search, repository, selection, text, request.deadline)
    page = ranked[offset : offset + limit]
    images = {each["_id"]: each for each in await repository.get_many(IMAGES, [name for name, _ in page])}
    content = {
        "items": [
            {"score": round(score, 6), "image": image_view(images[name])} for name, score in page if name in images
        ],
        "total": len(ranked),
        "model": model_stamp(search.card),
        "limit": limit,
        "offset": offset,
        "request_id": request.request_id,
    }
    return await _answer(request, content)


@router.post(
    "/search/similar",
    response_model=SimilarImages,
    responses={**TIMED_TOGETHER, **UPLOAD_ERRORS},
    openapi_extra=_similar_schema(),
    summary="Find images similar to an image or a text",
)
async def search_similar(
    request: PredictionRequestDep,
    models: ModelsDep,
    selection: ImageFilterDep,
    limit: LimitQuery = 10,
    task: TaskQuery = "modality",
) -> Response:
    """The images of the dataset most similar to an uploaded one, with title, diagnosis and caption of their cases.

    If the upload is itself of the dataset, the images of its own case are left out. The filters of `/images` apply.

    In place of an image, `application/json` with a `text` finds the images that fit the text best, as
    `GET /search/images` does; `task` then has no meaning.
    """
    if request.http.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        text = await request.read(_read_text(request))
        search = models.text_search()
        ranked = await _ranked(search, request.repository, selection, text, request.deadline)
        content = {
            "items": await _items(request.repository, ranked[: limit + _SPARE], None, limit),
            "model": model_stamp(search.card),
            "text": text,
            "image": None,
            "in_dataset": None,
            "notes": [],
            "request_id": request.request_id,
        }
        return await _answer(request, content)
    with request.admit(task):
        context = await request.read(read_upload(request.http, request.settings, with_caption=False))
        return await _similar(request, task, context, limit, selection)


@router.get(
    "/images/{image}/similar",
    response_model=SimilarImages,
    responses={**TIMED_TOGETHER, **DATASET_IMAGE_ERRORS},
    summary="Find images similar to one of the dataset",
)
async def similar_images(
    image: ImageIdDep,
    request: PredictionRequestDep,
    image_store: ImageStoreDep,
    limit: LimitQuery = 10,
    task: TaskQuery = "modality",
) -> Response:
    """The images of other cases that look most like an image of the dataset."""
    data = await read_image_file(image_store, await request.repository.get(IMAGES, image))
    return await _similar(request, task, PredictionContext(data), limit)


async def _similar(
    request: PredictionRequest, task: Task, context: PredictionContext, limit: int, selection: Filter = EVERYTHING
) -> Response:
    allowed = await request.repository.keys(IMAGES, selection) if selection.query else None
    context.task, context.deadline = task, request.deadline
    with request.acquire_slot(task) as predictor:
        async with request.cancel_on_disconnect():
            await predictor.nearest(context, limit + _SPARE if allowed is None else _ALL)
            if allowed is not None:
                context.neighbours = [each for each in context.neighbours if each[0] in allowed][: limit + _SPARE]
            in_dataset, notes = await request.find_in_dataset(context.info.sha256)
            items = await _items(
                request.repository, context.neighbours, in_dataset["u_id"] if in_dataset else None, limit
            )
    if not items and allowed is None:
        detail = "The model knows no image of this dataset. Train it again: `medpix train --missing`."
        raise UnavailableError(detail, retry_after_s=_SETUP_RETRY_S)
    content = {
        "items": items,
        "model": model_stamp(predictor.card),
        "image": image_stamp(context.info),
        "in_dataset": in_dataset,
        # That the model was trained on the image does not make it look like another.
        "notes": [*context.info.notes, *([] if in_dataset else notes)],
        "request_id": request.request_id,
    }
    return await _answer(request, content, headers=timing_header(context.timings_s))


async def _answer(
    request: PredictionRequest, content: dict[str, Any], headers: dict[str, str] | None = None
) -> Response:
    """An answer whose links have the prefix under which the caller reaches this service."""
    body = await with_prefix(encode(content), prefix_of(request.http))
    return Response(body, headers=headers, media_type="application/json")


def _words(text: str, parameter: str) -> str:
    """A text without white space around it.

    Raises:
        ParameterError: nothing is left.
    """
    if not (text := " ".join(text.split())):
        raise ParameterError([ProblemItem(parameter, "has no words; describe what the image shows")])
    return text


async def _read_text(request: PredictionRequest) -> str:
    """The text of a JSON body.

    Raises:
        ContentTooLargeError: the body is larger than any text may be.
        UnprocessableError: it is no JSON object with a text.
    """
    body = bytearray()
    async for part in request.http.stream():
        body += part
        if len(body) > _MAX_TEXT_BYTES:
            raise ContentTooLargeError(f"The body has more than {_MAX_TEXT_BYTES // 1024} KiB; send a shorter text.")
    try:
        return _words(TextQuery.model_validate_json(bytes(body)).text, "text")
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(map(str, problem["loc"])) or "body"
        raise UnprocessableError(f'Send {{"text": "…"}} as JSON. {location}: {message_of(problem)}.') from error


async def _ranked(
    search: "TextSearch", repository: Repository, selection: Filter, text: str, deadline: float
) -> list[tuple[str, float]]:
    """The images that pass a filter, those that fit a text best first."""
    ranked, allowed = await asyncio.gather(search.rank(text, deadline), repository.keys(IMAGES, selection))
    return [(name, score) for name, score in ranked if name in allowed]


async def _items(
    repository: Repository, neighbours: Sequence[tuple[str, float]], own_case: str | None, limit: int
) -> list[dict[str, Any]]:
    """The most similar images of other cases, with their cases."""
    images = {each["_id"]: each for each in await repository.get_many(IMAGES, [name for name, _ in neighbours])}
    kept = [
        (images[name], similarity)
        for name, similarity in neighbours
        if name in images and images[name]["U_id"] != own_case
    ][:limit]
    cases = await repository.cases(sorted({document["U_id"] for document, _ in kept}))
    return [_item(document, case_of(document, cases), similarity) for document, similarity in kept]


def _item(document: dict[str, Any], case: dict[str, Any], similarity: float) -> dict[str, Any]:
    view, of_case = image_view(document), case_view(case)
    names = ("image", "u_id", "split", "caption", "modality", "location", "links")
    described = {"title": of_case["title"], "diagnosis": of_case["diagnosis"]}
    return {**{name: view[name] for name in names}, **described, "similarity": round(similarity, 6)}
