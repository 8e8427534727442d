"""Predictions: modality from an image, location from an image and its caption."""

from collections.abc import Awaitable

from fastapi import APIRouter, Response

from app.api.prediction_request import ASKING_ERRORS, TIMED, Asking, AskingDep, timed
from app.api.schemas.predictions import PredictionView, Task
from app.api.uploads import read_upload, upload_schema
from app.serving.prediction import Upload
from app.serving.predictor import Predictor

router = APIRouter(tags=["predict"], prefix="/predict")


@router.post(
    "/modality",
    response_model=PredictionView,
    response_model_exclude_unset=True,
    responses={**TIMED, **ASKING_ERRORS},
    openapi_extra=upload_schema(with_caption=False),
    summary="CT or MR",
)
async def predict_modality(asking: AskingDep) -> Response:
    """The imaging modality of an image (`image`, PNG, JPEG or DICOM). Not for diagnosis."""
    return await _predict("modality", asking)


@router.post(
    "/location",
    response_model=PredictionView,
    response_model_exclude_unset=True,
    responses={**TIMED, **ASKING_ERRORS},
    openapi_extra=upload_schema(with_caption=True),
    summary="Anatomical location",
)
async def predict_location(asking: AskingDep) -> Response:
    """The anatomical location, one of 21, of an image with its caption.

    Without a caption the image alone is judged, and `inputs_used` says so. Not for diagnosis.
    """
    return await _predict("location", asking)


async def _predict(task: Task, asking: Asking) -> Response:
    def read() -> Awaitable[Upload]:
        return read_upload(asking.request, asking.settings, with_caption=task == "location")

    async def work(predictor: Predictor, upload: Upload) -> Response:
        prediction, view = await asking.predict(predictor, task, upload)
        return timed(view, prediction)

    return await asking.answer_upload(task, read, work)
