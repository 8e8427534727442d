"""Predictions: modality from an image, location from an image and its caption."""

import asyncio
import time
from typing import Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pymongo.errors import PyMongoError

from app.api.deps import ModelsDep, RepositoryDep, SettingsDep
from app.api.uploads import read_upload, upload_schema
from app.config import Settings
from app.data.repository import Repository
from app.errors import documented
from app.inference.models import ModelServer
from app.inference.predictor import Prediction, Upload

router = APIRouter(tags=["predict"], prefix="/predict")

# A prediction does not wait longer for the database than this: it can be given without.
_LOOKUP_S: Final = 0.5
_ERRORS = documented(400, 413, 415, 422, 503, 504)


class Probability(BaseModel):
    """One class and its calibrated probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class CategoryAnswer(BaseModel):
    """The body region that goes with a location."""

    label: str
    probabilities: list[Probability]


class ModelStamp(BaseModel):
    """Which model answered."""

    name: str
    version: str
    sha256: str = Field(description="Of all files of the model: one hash over their names and hashes")
    init: Literal["pretrained", "scratch"]


class ImageStamp(BaseModel):
    """Which image was judged."""

    sha256: str
    width: int
    height: int
    mode: str = Field(examples=["L"])


class DatasetImage(BaseModel):
    """The image of the dataset that has exactly the uploaded bytes."""

    image: str
    u_id: str
    split: Literal["train", "dev", "test"]


class PredictionView(BaseModel):
    """A prediction with all that is needed to trace it."""

    task: Literal["modality", "location"]
    label: str
    probabilities: list[Probability] = Field(description="Most probable first")
    decision: Literal["confident", "uncertain"]
    inputs_used: list[Literal["image", "caption"]]
    location_category: CategoryAnswer | None = Field(default=None, description="Body region; for location only")
    model: ModelStamp
    image: ImageStamp
    in_dataset: DatasetImage | None = Field(description="Set when the uploaded file is an image of the dataset")
    notes: list[str] = Field(description="What a reader should know, in sentences")
    request_id: str


@router.post(
    "/modality",
    response_model=PredictionView,
    response_model_exclude_unset=True,
    responses=_ERRORS,
    openapi_extra=upload_schema(with_caption=False),
    summary="CT or MR",
)
async def predict_modality(
    request: Request, models: ModelsDep, repository: RepositoryDep, settings: SettingsDep
) -> Response:
    """The imaging modality of an image (`image`, PNG or JPEG). Not for diagnosis."""
    return await _predict("modality", request, models, repository, settings)


@router.post(
    "/location",
    response_model=PredictionView,
    response_model_exclude_unset=True,
    responses=_ERRORS,
    openapi_extra=upload_schema(with_caption=True),
    summary="Anatomical location",
)
async def predict_location(
    request: Request, models: ModelsDep, repository: RepositoryDep, settings: SettingsDep
) -> Response:
    """The anatomical location, one of 21, of an image with its caption.

    Without a caption the image alone is judged, and `inputs_used` says so. Not for diagnosis.
    """
    return await _predict("location", request, models, repository, settings)


async def _predict(
    task: Literal["modality", "location"],
    request: Request,
    models: ModelServer,
    repository: Repository,
    settings: Settings,
) -> Response:
    deadline = time.perf_counter() + settings.request_deadline_s
    predictor = models.predictor(task)
    upload: Upload = await read_upload(request, settings, with_caption=task == "location")
    prediction = await predictor.predict(task, upload, deadline)
    notes = _notes(prediction)
    in_dataset = None
    try:
        async with asyncio.timeout(_LOOKUP_S):
            in_dataset = await repository.image_with_content(prediction.picture.sha256)
    except (PyMongoError, TimeoutError):
        notes.append("The database could not be asked whether this image is in the dataset.")
    if in_dataset is not None and in_dataset["split"] != "test":
        use = "trained" if in_dataset["split"] == "train" else "chosen"
        notes.append(f"The model was {use} on this image ({in_dataset['image']}): its answer proves nothing.")
    answer = _view(prediction, in_dataset) | {"notes": notes, "request_id": request.state.request_id}
    return JSONResponse(answer, headers={"Server-Timing": _server_timing(prediction)})


def _notes(prediction: Prediction) -> list[str]:
    notes = []
    if prediction.unusual:
        notes.append("The image is unlike every image that the model was trained on.")
    if prediction.task == "location" and "caption" not in prediction.inputs_used:
        notes.append("Judged by the image alone: there was no caption.")
    return notes


def _view(prediction: Prediction, in_dataset: dict[str, Any] | None) -> dict[str, Any]:
    card, picture = prediction.card, prediction.picture
    ranked = _ranked(prediction, prediction.task)
    answer: dict[str, Any] = {
        "task": prediction.task,
        "label": ranked[0]["label"],
        "probabilities": ranked,
        "decision": "confident" if prediction.confident else "uncertain",
        "inputs_used": list(prediction.inputs_used),
        "model": {
            "name": card.name,
            "version": card.version,
            "sha256": card.sha256,
            "init": card.init,
        },
        "image": {
            "sha256": picture.sha256,
            "width": picture.width,
            "height": picture.height,
            "mode": picture.mode,
        },
        "in_dataset": in_dataset,
    }
    if prediction.task == "location" and "location_category" in prediction.probabilities:
        categories = _ranked(prediction, "location_category")
        answer["location_category"] = {"label": categories[0]["label"], "probabilities": categories}
    return answer


def _ranked(prediction: Prediction, task: str) -> list[dict[str, Any]]:
    ordered = sorted(prediction.probabilities[task].items(), key=lambda pair: -pair[1])
    return [{"label": label, "probability": round(probability, 6)} for label, probability in ordered]


def _server_timing(prediction: Prediction) -> str:
    return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in prediction.timings_s.items())
