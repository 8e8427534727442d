"""Metrics for Prometheus."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pymongo.errors import PyMongoError

from app.api.deps import RepositoryDep
from app.api.errors import documented
from app.core.telemetry import Metrics

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=documented(422),
    summary="Metrics for Prometheus",
)
async def metrics(request: Request, repository: RepositoryDep) -> Response:
    """Requests, stages, predictions, database, training and caches, in the text format of Prometheus."""
    counted: Metrics = request.app.state.metrics
    try:
        seed_run = await repository.seed_runs.read_latest() or {}
        counted.database(**await repository.counts(), seeded_at=seed_run.get("finished_at"))
    except PyMongoError:
        counted.database(cases=None, images=None, seeded_at=None)
    return Response(counted.text(), media_type=CONTENT_TYPE_LATEST)
