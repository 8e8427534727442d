"""The last evaluation of the models, as `medpix evaluate` wrote it."""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from app.api.deps import get_settings
from app.api.errors import documented
from app.api.file_responses import not_modified
from app.core.exceptions import UnavailableError
from app.core.settings import Settings
from app.data.evaluation_report import FaultyReportError, read_page, read_report
from app.data.repository import NotFoundError
from app.web.pages import missing_page, wants_page

router = APIRouter(tags=["models"])

# The report is one file with its styles and plots in it, and without scripts.
_REPORT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


class EvaluationView(BaseModel):
    """Scores, confusion, calibration, subgroups, leakage and label audit of the evaluated models."""

    model_config = ConfigDict(extra="allow")

    created_at: str
    split: dict[str, Any] = Field(description="What was scored, and how that was checked")
    tasks: dict[str, Any] = Field(
        description="Per task: classes, models, models that are not trained, figures quoted from others, label audit"
    )
    models: dict[str, Any] = Field(description="Per model: its card, and every figure per task")


@router.get(
    "/evaluation",
    response_model=EvaluationView,
    responses=documented(404, 422, 503),
    summary="Read the last evaluation",
)
async def read_evaluation(request: Request, settings: Annotated[Settings, Depends(get_settings)]) -> Response:
    """The last evaluation of all models on the test split: the same content as its results.json."""
    try:
        report = await asyncio.to_thread(read_report, settings.home)
    except FaultyReportError as error:
        raise UnavailableError(str(error)) from error
    headers = {"ETag": report.etag, "Cache-Control": "no-cache"}
    unchanged = not_modified(request, headers)
    return unchanged or Response(report.body, headers=headers, media_type="application/json")


@router.get(
    "/evaluation/report",
    response_class=HTMLResponse,
    responses=documented(404, 422, 503),
    summary="Read the last evaluation as a page",
)
async def read_evaluation_page(request: Request, settings: Annotated[Settings, Depends(get_settings)]) -> Response:
    """The last evaluation as HTML: scores, robustness, subgroups, leakage between the splits, and the label audit."""
    try:
        page = await asyncio.to_thread(read_page, settings.home)
    except NotFoundError as error:
        if not wants_page(request):
            raise
        return missing_page(request, detail=str(error))
    except FaultyReportError as error:
        raise UnavailableError(str(error)) from error
    return HTMLResponse(page, headers={"Cache-Control": "no-cache", "Content-Security-Policy": _REPORT_POLICY})
