"""Predictions of many images in one request: each gets its own answer or its own problem."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.api.errors import Problem, problem_of
from app.api.prediction_request import (
    TIMED_TOGETHER,
    UPLOAD_ERRORS,
    PredictionRequest,
    PredictionRequestDep,
    timing_headers,
)
from app.api.schemas.predictions import PredictionView, Task
from app.api.uploads import Uploads, batch_schema, read_batch
from app.core.exceptions import ApiError
from app.serving.prediction import Upload
from app.serving.predictor import Predictor

router = APIRouter(tags=["predict"], prefix="/predict")


class BatchItem(BaseModel):
    """The answer to one image of a batch: a prediction, or the problem that it would get alone."""

    index: int = Field(ge=0, description="Place in the request, from 0")
    status: int = Field(description="200, or the status of the problem", examples=[200])
    prediction: PredictionView | None
    problem: Problem | None


class BatchAnswer(BaseModel):
    """One item per image, in the order of the request."""

    items: list[BatchItem]
    succeeded: int
    failed: int
    request_id: str


@router.post(
    "/modality/batch",
    response_model=BatchAnswer,
    responses={**TIMED_TOGETHER, **UPLOAD_ERRORS},
    openapi_extra=batch_schema(with_captions=False),
    summary="CT or MR, for many images",
)
async def predict_modality_batch(prediction_request: PredictionRequestDep) -> Response:
    """The modality of each of `images`. An image that cannot be used gets a problem; the others do not suffer."""
    return await _predict("modality", prediction_request)


@router.post(
    "/location/batch",
    response_model=BatchAnswer,
    responses={**TIMED_TOGETHER, **UPLOAD_ERRORS},
    openapi_extra=batch_schema(with_captions=True),
    summary="Anatomical location, for many images",
)
async def predict_location_batch(prediction_request: PredictionRequestDep) -> Response:
    """The location of each of `images`, with one of `captions` each, or none at all; an empty caption counts as none.

    An image that cannot be used gets a problem; the others do not suffer.
    """
    return await _predict("location", prediction_request)


async def _predict(task: Task, prediction_request: PredictionRequest) -> Response:
    def read() -> Awaitable[Uploads]:
        return read_batch(prediction_request.request, prediction_request.settings, with_captions=task == "location")

    async def work(predictor: Predictor, uploads: Uploads) -> Response:
        found = await asyncio.gather(
            *(_item(prediction_request, predictor, task, place) for place in enumerate(uploads))
        )
        items = [item for item, _ in found]
        succeeded = sum(item["problem"] is None for item in items)
        content = {"items": items, "succeeded": succeeded, "failed": len(items) - succeeded}
        timings = timing_headers(*(timings for _, timings in found))
        return JSONResponse(content | {"request_id": prediction_request.request_id}, headers=timings)

    return await prediction_request.answer_upload(task, read, work, count=len)


async def _item(
    prediction_request: PredictionRequest, predictor: Predictor, task: Task, place: tuple[int, Upload | ApiError]
) -> tuple[dict[str, Any], Mapping[str, float]]:
    """The answer to one image, and how long its stages took."""
    index, upload = place
    item: dict[str, Any] = {"index": index, "status": 200, "prediction": None, "problem": None}
    if isinstance(upload, ApiError):
        problem = problem_of(prediction_request.request, upload)
    else:
        try:
            prediction, view = await prediction_request.predict(predictor, task, upload)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the problem of this image alone
            problem = problem_of(prediction_request.request, error)
        else:
            return item | {"prediction": view}, prediction.timings_s
    return item | {"status": problem["status"], "problem": problem}, {}
