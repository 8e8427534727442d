"""Explanations: where the model looked, and what each input alone would have said."""

from collections.abc import Awaitable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.api.errors import Responses
from app.api.prediction_request import UPLOAD_ERRORS, PredictionRequest, PredictionRequestDep, timing_headers
from app.api.schemas.predictions import PredictionView, Ranking, Task, ranking
from app.api.uploads import read_upload, upload_schema
from app.serving.prediction import Explained, Upload
from app.serving.predictor import Predictor

router = APIRouter(tags=["explain"], prefix="/explain")

LabelQuery = Annotated[
    str | None, Query(max_length=100, description="Class to explain; default: the one that the model answers")
]
FormatQuery = Annotated[
    Literal["png", "json"], Query(alias="format", description="The picture with the map on it, or the map")
]


class RelevanceMap(BaseModel):
    """What in the picture speaks for a class."""

    label: str = Field(description="The class")
    method: Literal["grad-cam", "occlusion"]
    map: list[list[float]] = Field(description="Rows of relevance, 0 to 1, stretched over the whole picture")


class InputAnswers(BaseModel):
    """What each input alone would have said; null where it was not given or cannot answer alone."""

    image: Ranking | None
    caption: Ranking | None


class ExplanationView(BaseModel):
    """A prediction with its reasons."""

    prediction: PredictionView
    explanation: RelevanceMap
    by_input: InputAnswers


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_ANSWERS: Final[Responses] = {
    200: {
        "model": ExplanationView,
        "description": "The explanation",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "X-Explained-Label": _header("The class that the map speaks for"),
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
    summary="What speaks for CT or MR",
)
async def explain_modality(
    prediction_request: PredictionRequestDep, label: LabelQuery = None, output_format: FormatQuery = "png"
) -> Response:
    """A Grad-CAM map of what in the image speaks for the modality: red is what counts most."""
    return await _explain("modality", prediction_request, label, output_format)


@router.post(
    "/location",
    response_model=None,
    responses=_ANSWERS,
    openapi_extra=upload_schema(with_caption=True),
    summary="What speaks for the location",
)
async def explain_location(
    prediction_request: PredictionRequestDep, label: LabelQuery = None, output_format: FormatQuery = "png"
) -> Response:
    """A Grad-CAM map of what in the image speaks for the location: red is what counts most.

    `format=json` also says what image and caption would each have answered alone.
    """
    return await _explain("location", prediction_request, label, output_format)


async def _explain(task: Task, prediction_request: PredictionRequest, label: str | None, form: str) -> Response:
    def read() -> Awaitable[Upload]:
        return read_upload(prediction_request.request, prediction_request.settings, with_caption=task == "location")

    async def work(predictor: Predictor, upload: Upload) -> Response:
        explained = await predictor.explain(task, upload, label, prediction_request.deadline)
        prediction, explanation = explained.prediction, explained.explanation
        headers = {
            "X-Explained-Label": explanation.label,
            "X-Explanation-Method": explanation.method,
            **timing_headers(prediction.timings_s),
        }
        if form == "png":
            return Response(explanation.overlay, media_type="image/png", headers=headers)
        return JSONResponse(
            _view(
                explained, prediction_request.view(prediction, await prediction_request.find(prediction.info.sha256))
            ),
            headers=headers,
        )

    return await prediction_request.answer_upload(task, read, work)


def _view(explained: Explained, prediction: dict[str, Any]) -> dict[str, Any]:
    explanation = explained.explanation
    rows = [[round(value, 3) for value in row] for row in explanation.heat.tolist()]
    inputs = {name: shares and ranking(shares) for name, shares in explained.inputs.items()}
    return {
        "prediction": prediction,
        "explanation": {"label": explanation.label, "method": explanation.method, "map": rows},
        "by_input": inputs,
    }
