"""The registered models: their cards, and which one answers each task."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.api.deps import ModelsDep, example
from app.api.errors import documented
from app.data.repository import NotFoundError
from app.serving.model_manager import ModelManager
from ml.registry.model_card import ModelCard

if TYPE_CHECKING:  # imports PyTorch
    from app.serving.predictor import Predictor

router = APIRouter(tags=["models"])


class BackendView(BaseModel):
    """Where a network runs."""

    name: Literal["torch", "openvino"]
    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    precision_reason: str = Field(description="Why it computes in this precision")


class ModelView(BaseModel):
    """A model card, with what the model does in this service."""

    card: ModelCard
    serves: list[str] = Field(description="Tasks that this model answers here")
    finds_images: bool = Field(description="Whether this model finds images by words here, in GET /search/images")
    backend: BackendView | None = Field(description="Where its network runs; null where none runs here")


class TrainingChoiceView(BaseModel):
    """Which models a start trains where they are missing."""

    models: list[str] = Field(description="In the order of their training")
    device: str = Field(description="Where they are trained", examples=["cpu"])
    reason: str = Field(description="Why these")
    notes: list[str] = Field(description="What is left out or trained otherwise, and what to do, in sentences")
    chosen_at: datetime


class ModelList(BaseModel):
    """All registered models."""

    items: list[ModelView]
    tasks: dict[str, Any] = Field(description="Per task: the model that serves it and why, or how far its training is")
    training: TrainingChoiceView | None = Field(description="What the last start trains; null before the first")


@router.get("/models", response_model=ModelList, responses=documented(422), summary="List models")
async def list_models(models: ModelsDep) -> Response:
    """Every registered model with its card."""
    items = [_view(card, models) for card in models.cards]
    choice = models.training_choice
    training = None if choice is None else TrainingChoiceView.model_validate(choice).model_dump(mode="json")
    return JSONResponse({"items": items, "tasks": models.status(), "training": training})


@router.get("/models/{name}", response_model=ModelView, responses=documented(404, 422), summary="Read a model card")
async def read_model(
    name: Annotated[str, Path(openapi_examples=example("efficientnet"))], models: ModelsDep
) -> Response:
    """One model: classes, preprocessing, metrics with intervals, files with their hashes, limits."""
    for card in models.cards:
        if card.name == name:
            return JSONResponse(_view(card, models))
    raise NotFoundError(f"There is no model {name[:80]!r}. GET /models lists those that are registered.")


def _view(card: ModelCard, models: ModelManager) -> dict[str, Any]:
    serving = {task: p for task, p in models.serving.items() if p.card.version == card.version}
    backend = next((_backend_view(predictor) for predictor in serving.values()), None)
    return {
        "card": card.model_dump(mode="json"),
        "serves": sorted(serving),
        "finds_images": models.text_search_version == card.version,
        "backend": backend,
    }


def _backend_view(predictor: "Predictor") -> dict[str, str] | None:
    backend, choice = predictor.backend, predictor.precision
    if backend is None or choice is None:
        return None
    return {
        "name": backend.name,
        "device": backend.device,
        "precision": backend.precision,
        "precision_reason": choice.reason,
    }
