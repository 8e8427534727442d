"""Predictions for the dataset's own images, beside what the dataset says of them."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.api.deps import ImageIdDep, ImageStoreDep
from app.api.errors import Problem, problem_of
from app.api.prediction_request import JUDGING_ERRORS, TIMED_TOGETHER, Asking, AskingDep, timing_headers
from app.api.schemas.predictions import PredictionView, Task
from app.api.serializers import image_view
from app.data.image_store import ImageStore
from app.data.record import CaseId, ImageId, Split
from app.data.repository import IMAGES, NotFoundError
from app.serving.prediction import Upload

router = APIRouter(tags=["predict"])

TASKS: Final[tuple[Task, ...]] = ("modality", "location")


class Truth(BaseModel):
    """What the dataset says of an image; null where it says nothing."""

    modality: str
    location: str | None
    location_category: str | None


class JudgedTask(BaseModel):
    """The answer to one question: a prediction, or why there is none."""

    status: int = Field(description="200, or the status of the problem", examples=[200])
    truth: str | None = Field(description="What the dataset says; null where it says nothing")
    correct: bool | None = Field(description="Whether the prediction agrees; null where there is nothing to compare")
    prediction: PredictionView | None
    problem: Problem | None


class JudgedImage(BaseModel):
    """An image of the dataset with predictions beside its labels."""

    image: ImageId
    u_id: CaseId
    split: Split
    caption: str | None = Field(description="That the location was judged with; null where it was left out")
    truth: Truth
    modality: JudgedTask
    location: JudgedTask
    request_id: str


@router.get(
    "/images/{image}/predict",
    response_model=JudgedImage,
    responses={**TIMED_TOGETHER, **JUDGING_ERRORS},
    summary="Judge an image of the dataset",
)
async def predict_image(
    image: ImageIdDep,
    asking: AskingDep,
    pictures: ImageStoreDep,
    caption: Annotated[bool, Query(description="Judge the location with the image's caption")] = True,
) -> Response:
    """Modality and location of an image of the dataset, with its true labels beside the answers.

    On an image of the training split the answer proves nothing; its notes say so.
    """
    document = await asking.repository.get(IMAGES, image)
    view = image_view(document)
    data = await read_picture(pictures, document)
    text = view["caption"] if caption else None

    async def answer() -> Response:
        found = await asyncio.gather(*(_judge(asking, task, Upload(data, text), view[task]) for task in TASKS))
        content = {name: view[name] for name in ("image", "u_id", "split")}
        content |= {"caption": text, "truth": {name: view[name] for name in Truth.model_fields}}
        content |= dict(zip(TASKS, (judged for judged, _ in found), strict=True))
        timings = timing_headers(*(timings for _, timings in found))
        return JSONResponse(content | {"request_id": asking.request_id}, headers=timings)

    return await asking.unless_gone(answer())


async def read_picture(pictures: ImageStore, document: dict[str, Any]) -> bytes:
    """The file of an image of the dataset.

    Raises:
        NotFoundError: it is not in the dataset folder.
    """
    try:
        return await asyncio.to_thread(lambda: pictures.path(document["file"]).read_bytes())
    except FileNotFoundError as error:
        message = f"The file of image {document['_id']} is not in this service's dataset folder."
        raise NotFoundError(message) from error


async def _judge(
    asking: Asking, task: Task, upload: Upload, truth: str | None
) -> tuple[dict[str, Any], Mapping[str, float]]:
    """The answer to one question, and how long its stages took."""
    judged = {"status": 200, "truth": truth, "correct": None, "prediction": None, "problem": None}
    try:
        with asking.place(task) as predictor:
            prediction, view = await asking.predict(predictor, task, upload)
    except Exception as error:  # noqa: BLE001 - a model in training must not hide the answer of the other
        problem = problem_of(asking.request, error)
        return judged | {"status": problem["status"], "problem": problem}, {}
    known = truth in {entry["label"] for entry in view["probabilities"]}
    return judged | {"correct": view["label"] == truth if known else None, "prediction": view}, prediction.timings_s
