"""Images of the dataset that look alike to the model that serves."""

from collections.abc import Awaitable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.api.deps import ImageIdDep, ImageStoreDep
from app.api.prediction_request import ASKING_ERRORS, JUDGING_ERRORS, TIMED_TOGETHER, Asking, AskingDep, timing_headers
from app.api.routes.predict_image import read_picture
from app.api.schemas.predictions import DatasetImage, ImageStamp, ModelStamp, Task, image_stamp, model_stamp
from app.api.schemas.records import ImageLinks
from app.api.serializers import case_view, image_view
from app.api.uploads import read_upload, upload_schema
from app.core.exceptions import UnprocessableError
from app.data.record import CaseId, ImageId, Split
from app.data.repository import CASES, IMAGES
from app.serving.prediction import Upload
from app.serving.predictor import Predictor

router = APIRouter(tags=["similar"])

# Cases have up to 31 images; so many may have to be left out.
_SPARE: Final = 40

LimitQuery = Annotated[int, Query(ge=1, le=50, description="How many images")]
TaskQuery = Annotated[Task, Query(description="Whose model compares: the one that serves this task")]


class SimilarImage(BaseModel):
    """An image of the dataset that looks alike."""

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
    responses={**TIMED_TOGETHER, **ASKING_ERRORS},
    openapi_extra=upload_schema(with_caption=False),
    summary="Find images that look alike",
)
async def search_similar(asking: AskingDep, limit: LimitQuery = 10, task: TaskQuery = "modality") -> Response:
    """The images of the dataset that look most like an uploaded one, with title, diagnosis and caption of their cases.

    If the upload is itself of the dataset, the images of its own case are left out.
    """

    def read() -> Awaitable[Upload]:
        return read_upload(asking.request, asking.settings, with_caption=False)

    async def work(predictor: Predictor, upload: Upload) -> Response:
        return await _similar(asking, predictor, upload.data, limit)

    return await asking.answer_upload(task, read, work)


@router.get(
    "/images/{image}/similar",
    response_model=SimilarImages,
    responses={**TIMED_TOGETHER, **JUDGING_ERRORS},
    summary="Find images that look like one of the dataset",
)
async def similar_images(
    image: ImageIdDep,
    asking: AskingDep,
    pictures: ImageStoreDep,
    limit: LimitQuery = 10,
    task: TaskQuery = "modality",
) -> Response:
    """The images of other cases that look most like an image of the dataset."""
    document = await asking.repository.get(IMAGES, image)
    data = await read_picture(pictures, document)
    with asking.place(task) as predictor:
        return await asking.unless_gone(_similar(asking, predictor, data, limit))


async def _similar(asking: Asking, predictor: Predictor, data: bytes, limit: int) -> Response:
    source, nearest, timings_s = await predictor.nearest(data, limit + _SPARE, asking.deadline)
    in_dataset, notes = await asking.find(source.sha256)
    notes = [] if in_dataset else notes  # being trained on an image does not make it look like another
    own_case = in_dataset and in_dataset["u_id"]
    images = {each["_id"]: each for each in await asking.repository.get_many(IMAGES, [name for name, _ in nearest])}
    kept = [
        (images[name], similarity)
        for name, similarity in nearest
        if name in images and images[name]["U_id"] != own_case
    ][:limit]
    wanted = sorted({document["U_id"] for document, _ in kept})
    cases = {each["_id"]: each for each in await asking.repository.get_many(CASES, wanted)}
    if not kept:
        raise UnprocessableError("The model knows no image of this dataset. Train it again: `medpix train --missing`.")
    content = {
        "items": [_item(document, cases[document["U_id"]], similarity) for document, similarity in kept],
        "model": model_stamp(predictor.card),
        "image": image_stamp(source),
        "in_dataset": in_dataset,
        "notes": [*source.notes, *notes],
        "request_id": asking.request_id,
    }
    return JSONResponse(content, headers=timing_headers(timings_s))


def _item(document: dict[str, Any], case: dict[str, Any], similarity: float) -> dict[str, Any]:
    view, of_case = image_view(document), case_view(case)
    names = ("image", "u_id", "split", "caption", "modality", "location", "links")
    described = {"title": of_case["title"], "diagnosis": of_case["diagnosis"]}
    return {**{name: view[name] for name in names}, **described, "similarity": round(similarity, 6)}
