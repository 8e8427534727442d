"""Predictions: modality from an image, location from an image and its caption."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from app.api.prediction_request import (
    TIMED,
    UPLOAD_ERRORS,
    PredictionRequest,
    PredictionRequestDep,
    cache_header,
    timing_header,
)
from app.api.schemas.predictions import PredictionView, Task
from app.api.uploads import read_upload, upload_schema

router = APIRouter(tags=["predict"], prefix="/predict")


@router.post(
    "/modality",
    response_model=PredictionView,
    responses={**TIMED, **UPLOAD_ERRORS},
    openapi_extra=upload_schema(with_caption=False),
    summary="CT or MR",
)
async def predict_modality(request: PredictionRequestDep) -> Response:
    """The imaging modality of an image (`image`, PNG, JPEG or DICOM). Not for diagnosis."""
    return await _predict("modality", request)


@router.post(
    "/location",
    response_model=PredictionView,
    responses={**TIMED, **UPLOAD_ERRORS},
    openapi_extra=upload_schema(with_caption=True),
    summary="Anatomical location",
)
async def predict_location(request: PredictionRequestDep) -> Response:
    """The anatomical location, one of 21, of an image with its caption.

    Without a caption the prediction is from the image alone, and `inputs_used` says so. Not for diagnosis.
    """
    return await _predict("location", request)


async def _predict(task: Task, request: PredictionRequest) -> Response:
    with request.admit(task):
        context = await request.read(read_upload(request.http, request.settings, with_caption=task == "location"))
        with request.acquire_slot(task) as predictor:
            async with request.cancel_on_disconnect():
                prediction = await request.predict(predictor, task, context)
    return JSONResponse(prediction, headers=timing_header(context.timings_s) | cache_header(context))
