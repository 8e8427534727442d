"""Similar images of the dataset, by the embeddings of the model that serves."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from app.api.deps import ImageIdDep, ImageStoreDep
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
from app.api.schemas.records import ImageLinks
from app.api.serializers import case_view, image_view
from app.api.uploads import read_upload, upload_schema
from app.core.exceptions import UnprocessableError
from app.data.record import CaseId, ImageId, Split
from app.data.repository import IMAGES, Repository, case_of
from app.data.serializers import encode
from app.serving.prediction_context import PredictionContext
from app.web.pages import prefix_of

router = APIRouter(tags=["similar"])

# Cases have up to 31 images; so many may have to be left out.
_SPARE: Final = 40

LimitQuery = Annotated[int, Query(ge=1, le=50, description="How many images")]
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
    """Images of other cases, the most similar first."""

    items: list[SimilarImage]
    model: ModelStamp
    image: ImageStamp
    in_dataset: DatasetImage | None = Field(description="The image that was compared, if it is of the dataset")
    notes: list[str] = Field(description="What a reader should know, in sentences")
    request_id: str


@router.post(
    "/search/similar",
    response_model=SimilarImages,
    responses={**TIMED_TOGETHER, **UPLOAD_ERRORS},
    openapi_extra=upload_schema(with_caption=False),
    summary="Find visually similar images",
)
async def search_similar(
    request: PredictionRequestDep, limit: LimitQuery = 10, task: TaskQuery = "modality"
) -> Response:
    """The images of the dataset that look most like an uploaded one, with title, diagnosis and caption of their cases.

    If the upload is itself of the dataset, the images of its own case are left out.
    """
    with request.admit(task):
        context = await request.read(read_upload(request.http, request.settings, with_caption=False))
        return await _similar(request, task, context, limit)


@router.get(
    "/images/{image}/similar",
    response_model=SimilarImages,
    responses={**TIMED_TOGETHER, **DATASET_IMAGE_ERRORS},
    summary="Find images similar to one of the dataset",
)
async def similar_images(
    image: ImageIdDep,
    request: PredictionRequestDep,
    pictures: ImageStoreDep,
    limit: LimitQuery = 10,
    task: TaskQuery = "modality",
) -> Response:
    """The images of other cases that look most like an image of the dataset."""
    data = await read_image_file(pictures, await request.repository.get(IMAGES, image))
    return await _similar(request, task, PredictionContext(data), limit)


async def _similar(request: PredictionRequest, task: Task, context: PredictionContext, limit: int) -> Response:
    context.task, context.deadline = task, request.deadline
    with request.acquire_slot(task) as predictor:
        async with request.cancel_on_disconnect():
            await predictor.nearest(context, limit + _SPARE)
            in_dataset, notes = await request.find_in_dataset(context.info.sha256)
            items = await _items(
                request.repository, context.neighbours, in_dataset["u_id"] if in_dataset else None, limit
            )
    if not items:
        raise UnprocessableError("The model knows no image of this dataset. Train it again: `medpix train --missing`.")
    content = {
        "items": items,
        "model": model_stamp(predictor.card),
        "image": image_stamp(context.info),
        "in_dataset": in_dataset,
        # That the model was trained on the image does not make it look like another.
        "notes": [*context.info.notes, *([] if in_dataset else notes)],
        "request_id": request.request_id,
    }
    body = with_prefix(encode(content), prefix_of(request.http))
    return Response(body, headers=timing_header(context.timings_s), media_type="application/json")


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
