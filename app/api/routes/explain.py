"""Explanations: a Grad-CAM map, and the prediction from each input alone."""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.api.errors import Responses
from app.api.prediction_request import UPLOAD_ERRORS, PredictionRequest, PredictionRequestDep, timing_header
from app.api.schemas.predictions import PredictionView, Ranking, Task, ranking
from app.api.uploads import read_upload, upload_schema
from app.serving.prediction_context import PredictionContext

router = APIRouter(tags=["explain"], prefix="/explain")

LabelQuery = Annotated[
    str | None, Query(max_length=100, description="Class to explain; default: the one that the model answers")
]
FormatQuery = Annotated[
    Literal["png", "json"], Query(alias="format", description="The image with the map on it, or the map")
]


class RelevanceMap(BaseModel):
    """Which parts of the image contributed to a class."""

    label: str = Field(description="The class")
    method: Literal["grad-cam", "occlusion"]
    map: list[list[float]] = Field(description="Rows of relevance, 0 to 1, stretched over the whole image")


class InputAnswers(BaseModel):
    """The prediction from each input alone; null where it was not given or cannot answer alone."""

    image: Ranking | None
    caption: Ranking | None


class ExplanationView(BaseModel):
    """A prediction with its explanation."""

    prediction: PredictionView
    explanation: RelevanceMap
    by_input: InputAnswers
    caption_effect: float | None = Field(
        description="Probability of the answered class less its probability from the image alone: negative where the "
        "caption lowers the confidence; null without a caption that counts"
    )


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_ANSWERS: Final[Responses] = {
    200: {
        "model": ExplanationView,
        "description": "The explanation",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "X-Explained-Label": _header("The class that the map explains"),
            "X-Explanation-Method": _header("grad-cam or occlusion"),
            "Server-Timing": _header("Milliseconds per stage: wait, decode, queue, run, postprocess, explain"),
        },
    },
    **UPLOAD_ERRORS,
}


@router.post(
    "/modality",
    response_model=None,
    responses=_ANSWERS,
    openapi_extra=upload_schema(with_caption=False),
    summary="Explain a modality prediction (Grad-CAM)",
)
async def explain_modality(
    request: PredictionRequestDep, label: LabelQuery = None, output_format: FormatQuery = "png"
) -> Response:
    """A Grad-CAM map of the modality: red areas contributed most."""
    return await _explain("modality", request, label, output_format)


@router.post(
    "/location",
    response_model=None,
    responses=_ANSWERS,
    openapi_extra=upload_schema(with_caption=True),
    summary="Explain a location prediction (Grad-CAM)",
)
async def explain_location(
    request: PredictionRequestDep, label: LabelQuery = None, output_format: FormatQuery = "png"
) -> Response:
    """A Grad-CAM map of the location: red areas contributed most.

    `format=json` also has the predictions from image and caption alone.
    """
    return await _explain("location", request, label, output_format)


async def _explain(task: Task, request: PredictionRequest, label: str | None, output_format: str) -> Response:
    with request.admit(task):
        context = await request.read(read_upload(request.http, request.settings, with_caption=task == "location"))
        context.task, context.deadline = task, request.deadline
        with request.acquire_slot(task) as predictor:
            async with request.cancel_on_disconnect():
                await predictor.explain(context, label)
                prediction = await request.view(context) if output_format == "json" else {}
    explanation = context.explanation
    headers = {
        "X-Explained-Label": explanation.label,
        "X-Explanation-Method": explanation.method,
        **timing_header(context.timings_s),
    }
    if output_format == "png":
        return Response(explanation.overlay, media_type="image/png", headers=headers)
    rows = [[round(value, 3) for value in row] for row in explanation.heat.tolist()]
    content = {
        "prediction": prediction,
        "explanation": {"label": explanation.label, "method": explanation.method, "map": rows},
        "caption_effect": _caption_effect(context),
        "by_input": {name: shares and ranking(shares) for name, shares in context.by_input.items()},
    }
    return JSONResponse(content, headers=headers)


def _caption_effect(context: PredictionContext) -> float | None:
    """By how much the caption changes the probability of the answered class."""
    image_alone = context.by_input["image"]
    if image_alone is None or "caption" not in context.inputs_used:
        return None
    return round(context.probabilities[context.task][context.label] - image_alone[context.label], 6)
