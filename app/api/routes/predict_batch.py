"""Predictions of many images in one request: each gets its own answer or its own problem."""

import asyncio
import csv
import io
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.api.errors import Problem, Responses, problem_of
from app.api.negotiation import accepts
from app.api.prediction_request import (
    TIMED_TOGETHER,
    UPLOAD_ERRORS,
    PredictionRequest,
    PredictionRequestDep,
    timing_header,
)
from app.api.schemas.predictions import PredictionView, Task
from app.api.uploads import batch_schema, read_batch
from app.core.exceptions import ApiError
from app.export.tables import escape_formula
from app.serving.prediction_context import PredictionContext

if TYPE_CHECKING:  # imports PyTorch
    from app.serving.predictor import Predictor

router = APIRouter(tags=["predict"], prefix="/predict")

_COLUMNS: Final = (
    "index", "file", "status", "task", "label", "probability", "decision", "inputs_used", "model", "model_version",
    "sha256", "header_modality", "dataset_image", "dataset_split", "notes", "problem",
)  # fmt: skip
_ANSWERS: Final[Responses] = {
    200: {
        **TIMED_TOGETHER[200],
        "description": "The results; with `Accept: text/csv` one line each",
        "content": {"text/csv": {"schema": {"type": "string"}}},
    },
    **UPLOAD_ERRORS,
}


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
    responses=_ANSWERS,
    openapi_extra=batch_schema(with_captions=False),
    summary="CT or MR, for many images",
)
async def predict_modality_batch(request: PredictionRequestDep) -> Response:
    """The modality of each of `images`. An image that cannot be used gets a problem; the others are predicted."""
    return await _predict("modality", request)


@router.post(
    "/location/batch",
    response_model=BatchAnswer,
    responses=_ANSWERS,
    openapi_extra=batch_schema(with_captions=True),
    summary="Anatomical location, for many images",
)
async def predict_location_batch(request: PredictionRequestDep) -> Response:
    """The location of each of `images`, with one of `captions` each, or none at all; an empty caption counts as none.

    An image that cannot be used gets a problem; the others are predicted.
    """
    return await _predict("location", request)


async def _predict(task: Task, request: PredictionRequest) -> Response:
    with request.admit(task):
        uploads = await request.read(read_batch(request.http, request.settings, with_captions=task == "location"))
        with request.acquire_slot(task, len(uploads)) as predictor:
            async with request.cancel_on_disconnect():
                items = await asyncio.gather(*(_item(request, predictor, task, upload.context) for upload in uploads))
    timings = timing_header(*(u.context.timings_s for u in uploads if isinstance(u.context, PredictionContext)))
    if _wants_csv(request.http.headers.get("accept", "")):
        rows = [
            _row(index, upload.file_name, item) for index, (upload, item) in enumerate(zip(uploads, items, strict=True))
        ]
        headers = timings | {"Vary": "Accept", "Content-Disposition": f'attachment; filename="{task}.csv"'}
        return Response(_csv(rows), media_type="text/csv", headers=headers)
    succeeded = sum(item["problem"] is None for item in items)
    content = {
        "items": [{"index": index, **item} for index, item in enumerate(items)],
        "succeeded": succeeded,
        "failed": len(items) - succeeded,
        "request_id": request.request_id,
    }
    return JSONResponse(content, headers=timings | {"Vary": "Accept"})


async def _item(
    request: PredictionRequest, predictor: "Predictor", task: Task, upload: PredictionContext | ApiError
) -> dict[str, Any]:
    """The result for one image."""
    if isinstance(upload, ApiError):
        return _failed(request, upload)
    try:
        prediction = await request.predict(predictor, task, upload)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the problem of this image alone
        return _failed(request, error)
    return {"status": 200, "prediction": prediction, "problem": None}


def _failed(request: PredictionRequest, error: Exception) -> dict[str, Any]:
    problem = problem_of(request.http, error)
    return {"status": problem["status"], "prediction": None, "problem": problem}


def _wants_csv(accept: str) -> bool:
    """Whether an Accept header prefers text/csv to JSON; where it wants both alike, the first of them."""
    csv_weight, json_weight = accepts(accept, "text/csv"), accepts(accept, "application/json")
    if csv_weight == json_weight > 0:
        return accept.lower().index("text/csv") < accept.lower().index("application/json")
    return csv_weight > json_weight


def _row(index: int, file_name: str, item: dict[str, Any]) -> list[Any]:
    """A result as cells, in the order of ``_COLUMNS``."""
    if (prediction := item["prediction"]) is None:
        return [index, file_name, item["status"], *[None] * (len(_COLUMNS) - 4), item["problem"]["detail"]]
    in_dataset = prediction["in_dataset"] or {}
    return [
        index,
        file_name,
        item["status"],
        prediction["task"],
        prediction["label"],
        prediction["probabilities"][0]["probability"],
        prediction["decision"],
        " ".join(prediction["inputs_used"]),
        prediction["model"]["name"],
        prediction["model"]["version"],
        prediction["image"]["sha256"],
        prediction["image"]["header_modality"],
        in_dataset.get("image"),
        in_dataset.get("split"),
        " ".join(prediction["notes"]),
        None,
    ]


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows([escape_formula(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()
