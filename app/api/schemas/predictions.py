"""Serialises predictions: the response schemas of the prediction routes."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.serving.decode.decoded_image import ImageInfo
from app.serving.prediction_context import PredictionContext
from ml.registry.model_card import ModelCard

Task = Literal["modality", "location"]


class Probability(BaseModel):
    """One class and its calibrated probability."""

    label: str = Field(examples=["CT"])
    probability: float = Field(ge=0, le=1, examples=[0.998])


class Ranking(BaseModel):
    """All classes of a question."""

    label: str = Field(description="The most probable class", examples=["CT"])
    probabilities: list[Probability] = Field(description="Most probable first")


class ModelStamp(BaseModel):
    """Which model answered."""

    name: str = Field(examples=["efficientnet"])
    version: str = Field(examples=["20261128T101500Z-3f9c2a7e"])
    sha256: str = Field(description="One hash over the names and hashes of all files of the model")
    init: Literal["pretrained", "scratch"]


class ImageStamp(BaseModel):
    """Which image was predicted."""

    sha256: str
    width: int = Field(examples=[512])
    height: int = Field(examples=[512])
    mode: str = Field(examples=["L"])
    header_modality: str | None = Field(default=None, description="Modality of the header of a DICOM file")


class DatasetImage(BaseModel):
    """The image of the dataset that has exactly the uploaded bytes."""

    image: str = Field(examples=["MPX1007_synpic46719"])
    u_id: str = Field(examples=["MPX1007"])
    split: Literal["train", "dev", "test"]


class PredictionView(Ranking):
    """A prediction with all that is needed to trace it."""

    task: Task
    decision: Literal["confident", "uncertain"]
    out_of_distribution: bool | None = Field(
        description="Whether the image is unlike all that the model was trained on, which makes the decision "
        "uncertain; null where the model has no rule for it"
    )
    inputs_used: list[Literal["image", "caption"]]
    location_category: Ranking | None = Field(default=None, description="Body region; for location only")
    model: ModelStamp
    image: ImageStamp
    in_dataset: DatasetImage | None = Field(description="Set when the uploaded file is an image of the dataset")
    notes: list[str] = Field(description="What a reader should know, in sentences")
    request_id: str


def prediction_view(context: PredictionContext) -> dict[str, Any]:
    """A prediction as a ``PredictionView``, but for what dataset and request add."""
    task = context.task
    answer = {
        "task": task,
        **ranking(context.probabilities[task]),
        "decision": "confident" if context.confident else "uncertain",
        "out_of_distribution": context.out_of_distribution,
        "inputs_used": list(context.inputs_used),
        "model": model_stamp(context.card),
        "image": image_stamp(context.info),
    }
    if task == "location" and "location_category" in context.probabilities:
        answer["location_category"] = ranking(context.probabilities["location_category"])
    return answer


def ranking(probabilities: Mapping[str, float]) -> dict[str, Any]:
    """Classes with their probabilities, the most probable first."""
    ordered = sorted(probabilities.items(), key=lambda pair: -pair[1])
    ranked = [{"label": label, "probability": round(probability, 6)} for label, probability in ordered]
    return {"label": ordered[0][0], "probabilities": ranked}


def model_stamp(card: ModelCard) -> dict[str, str]:
    """Which model answered."""
    return {"name": card.name, "version": card.version, "sha256": card.sha256, "init": card.init}


def image_stamp(info: ImageInfo) -> dict[str, Any]:
    """Which file was predicted."""
    return {
        "sha256": info.sha256,
        "width": info.width,
        "height": info.height,
        "mode": info.mode,
        "header_modality": info.header_modality,
    }
