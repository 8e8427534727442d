"""Predictions for the dataset's own images, beside their labels."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.api.deps import ImageIdDep, ImageStoreDep
from app.api.errors import Problem, problem_of
from app.api.prediction_request import (
    DATASET_IMAGE_ERRORS,
    TIMED_TOGETHER,
    PredictionRequest,
    PredictionRequestDep,
    timing_header,
)
from app.api.schemas.predictions import PredictionView, Task
from app.data.image_store import ImageStore
from app.data.record import CaseId, ImageId, Split
from app.data.repository import IMAGES
from app.data.serializers import image_view
from app.serving.model_selection import TASKS
from app.serving.prediction_context import PredictionContext

router = APIRouter(tags=["predict"])


class GroundTruth(BaseModel):
    """The labels of an image; null where the dataset has none."""

    modality: str
    location: str | None
    location_category: str | None


class TaskResult(BaseModel):
    """The result for one task: a prediction, or why there is none."""

    status: int = Field(description="200, or the status of the problem", examples=[200])
    truth: str | None = Field(description="Label in the dataset; null where it has none")
    correct: bool | None = Field(description="Whether the prediction agrees; null where there is nothing to compare")
    prediction: PredictionView | None
    problem: Problem | None


class LabelledPrediction(BaseModel):
    """An image of the dataset with predictions beside its labels."""

    image: ImageId
    u_id: CaseId
    split: Split
    caption: str | None = Field(description="Caption used for the location; null where it was left out")
    truth: GroundTruth
    modality: TaskResult
    location: TaskResult
    request_id: str


@router.get(
    "/images/{image}/predict",
    response_model=LabelledPrediction,
    responses={**TIMED_TOGETHER, **DATASET_IMAGE_ERRORS},
    summary="Predict an image of the dataset",
)
async def predict_image(
    image: ImageIdDep,
    request: PredictionRequestDep,
    image_store: ImageStoreDep,
    caption: Annotated[bool, Query(description="Use the image's caption for the location")] = True,
) -> Response:
    """Modality and location of an image of the dataset, with its true labels beside the answers.

    On an image of the training split a correct answer means little; the notes say so.
    """
    document = await request.repository.get(IMAGES, image)
    labels = image_view(document)
    data = await read_image_file(image_store, document)
    text = labels["caption"] if caption else None
    # The modality is from the image alone: with the caption, the cache would not know the same upload again.
    contexts = [PredictionContext(data, text if task == "location" else None) for task in TASKS]
    async with request.cancel_on_disconnect():
        results = await asyncio.gather(
            *(_result(request, task, context, labels[task]) for task, context in zip(TASKS, contexts, strict=True))
        )
    content = {
        **{name: labels[name] for name in ("image", "u_id", "split")},
        "caption": text,
        "truth": {name: labels[name] for name in GroundTruth.model_fields},
        **dict(zip(TASKS, results, strict=True)),
        "request_id": request.request_id,
    }
    return JSONResponse(content, headers=timing_header(*(context.timings_s for context in contexts)))


async def read_image_file(image_store: ImageStore, document: dict[str, Any]) -> bytes:
    """The file of an image of the dataset.

    Raises:
        NotFoundError: it is not in the dataset folder.
    """
    return await asyncio.to_thread(lambda: image_store.path(document["file"]).read_bytes())


async def _result(
    request: PredictionRequest, task: Task, context: PredictionContext, truth: str | None
) -> dict[str, Any]:
    """The prediction of one task beside its label."""
    result = {"status": 200, "truth": truth, "correct": None, "prediction": None, "problem": None}
    try:
        with request.acquire_slot(task) as predictor:
            prediction = await request.predict(predictor, task, context)
    except Exception as error:  # noqa: BLE001 - a model in training must not hide the answer of the other
        problem = problem_of(request.http, error)
        return result | {"status": problem["status"], "problem": problem}
    is_class = truth in {entry["label"] for entry in prediction["probabilities"]}
    return result | {"correct": prediction["label"] == truth if is_class else None, "prediction": prediction}
