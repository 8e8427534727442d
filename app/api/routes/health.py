"""Health: whether the process answers, and whether it can do its work."""

from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pymongo.errors import PyMongoError

from app.api.deps import ModelsDep, RepositoryDep
from app.api.errors import documented
from app.core.exceptions import RETRY_AFTER_S

router = APIRouter(tags=["health"], prefix="/health")


class Liveness(BaseModel):
    """The process answers, and can go on."""

    status: Literal["alive", "failed"]
    detail: str | None = Field(default=None, description="Why the process must be replaced by a new one")


class DatabaseHealth(BaseModel):
    """What the database holds; the counts are null while it cannot be reached."""

    reachable: bool
    seeded: bool
    cases: int | None
    images: int | None
    dataset_version: str | None
    faults: list[str] = Field(
        description="What was removed since the seeding. A missing document makes the service not ready; "
        "a missing index makes it slower"
    )


class Readiness(BaseModel):
    """Whether the service can do its work, and what each task of it is waiting for."""

    status: Literal["ready", "not ready"]
    database: DatabaseHealth
    not_serving: list[str] = Field(description="Tasks whose predictions answer 503 at the moment; models says why")
    models: dict[str, Any] = Field(description="Per task: the model that serves it, or how far its training is")


@router.get(
    "/live",
    response_model=Liveness,
    responses={
        **documented(422),
        503: {"model": Liveness, "description": "The GPU failed for good; the process ends by itself"},
    },
    summary="Is the process alive",
)
async def live(models: ModelsDep) -> Response:
    """Answers as long as the process does; 503 once it can only be replaced."""
    if (error := models.fatal_error) is not None:
        return JSONResponse({"status": "failed", "detail": error}, status_code=503)
    return JSONResponse({"status": "alive"})


@router.get(
    "/ready",
    response_model=Readiness,
    responses={**documented(422), 503: {"model": Readiness, "description": "Not ready; the body says why"}},
    summary="Can the service do its work",
)
async def ready(repository: RepositoryDep, models: ModelsDep) -> Response:
    """Ready when the data are there, as the last seeding left them, and every registered model answers.

    A task whose first model is still in training does not count; `not_serving` names it.
    """
    database: dict[str, Any] = {**dict.fromkeys(("cases", "images", "dataset_version")), "faults": []}
    is_whole = False
    try:
        seed_run = await repository.seed_runs.read_latest()
        database |= {"reachable": True, "seeded": seed_run is not None, **await repository.counts()}
        database["dataset_version"] = seed_run["dataset_version"] if seed_run else None
        documents, indexes = await repository.fault_check.faults(seed_run)
        database["faults"] = documents + indexes
        is_whole = not documents
        await repository.load_image_hashes()
    except PyMongoError:
        database |= {"reachable": False, "seeded": False}
    is_ready = database["seeded"] and is_whole and models.healthy
    content: dict[str, Any] = {"status": "ready" if is_ready else "not ready", "database": database}
    content |= {"not_serving": models.not_serving(), "models": models.status()}
    headers = {} if is_ready else {"Retry-After": str(RETRY_AFTER_S)}
    return JSONResponse(content, status_code=200 if is_ready else 503, headers=headers)
