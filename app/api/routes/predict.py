"""Predictions: modality from an image, location from an image and its caption."""

from collections.abc import Awaitable

from fastapi import APIRouter, Response

from app.api.prediction_request import TIMED, UPLOAD_ERRORS, PredictionRequest, PredictionRequestDep, timed
from app.api.schemas.predictions import PredictionView, Task
from app.api.uploads import read_upload, upload_schema
from app.serving.prediction import Upload
from app.serving.predictor import Predictor

router = APIRouter(tags=["predict"], prefix="/predict")


@router.post(
    "/modality",
    response_model=PredictionView,
    response_model_exclude_unset=True,
    responses={**TIMED, **UPLOAD_ERRORS},
    openapi_extra=upload_schema(with_caption=False),
    summary="CT or MR",
)
async def predict_modality(prediction_request: PredictionRequestDep) -> Response:
    """The imaging modality of an image (`image`, PNG, JPEG or DICOM). Not for diagnosis."""
    return await _predict("modality", prediction_request)


@router.post(
    "/location",
    response_model=PredictionView,
    response_model_exclude_unset=True,
    responses={**TIMED, **UPLOAD_ERRORS},
    openapi_extra=upload_schema(with_caption=True),
    summary="Anatomical location",
)
async def predict_location(prediction_request: PredictionRequestDep) -> Response:
    """The anatomical location, one of 21, of an image with its caption.

    Without a caption the image alone is judged, and `inputs_used` says so. Not for diagnosis.
    """
    return await _predict("location", prediction_request)


async def _predict(task: Task, prediction_request: PredictionRequest) -> Response:
    def read() -> Awaitable[Upload]:
        return read_upload(prediction_request.request, prediction_request.settings, with_caption=task == "location")

    async def work(predictor: Predictor, upload: Upload) -> Response:
        prediction, view = await prediction_request.predict(predictor, task, upload)
        return timed(view, prediction)

    return await prediction_request.answer_upload(task, read, work)
