"""The interactive API reference, served from this machine, and the OpenAPI document behind it."""

from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from app.api.errors import Problem
from app.web.pages import Assets, render

router = APIRouter(include_in_schema=False)

# What the reference says of each group of routes, in its order.
TAGS: Final = (
    ("cases", "Clinical cases: texts, topic and images. Lists are filtered by any field and paged by cursor."),
    ("images", "CT and MR images: records, files and thumbnails."),
    ("search", "Full-text search over cases and captions, with highlighted matches."),
    ("overview", "The fields that filters take, counts per value, and statistics of every field."),
    ("export", "Downloads of whatever a filter selects, as CSV, Parquet, JSON, JSON Lines or ZIP."),
    ("views", "Selections saved under a name, with a stable address for people and for data tools."),
    ("annotations", "Corrections and comments of readers. The records of the dataset never change."),
    ("predict", "Modality from an image; location from an image and its caption. One image or many."),
    ("explain", "Heatmaps of what contributed to a prediction, and the prediction from each input alone."),
    ("similar", "Images of other cases with the most similar embeddings."),
    ("models", "Model cards with metrics and intervals, the models in use, and the last evaluation."),
    ("health", "Liveness and readiness for orchestrators."),
)


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    """The API reference as a page."""
    return HTMLResponse(render(request, "docs"), headers={"Cache-Control": "no-cache"})


def install_docs(app: FastAPI) -> None:
    """Serve Swagger UI's files from the package that carries them, and describe the problem document."""
    assets = str(files("fastapi_offline") / "static")
    app.mount("/docs/assets", Assets(directory=assets), name="docs-assets")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            schema["tags"] = [{"name": name, "description": about} for name, about in TAGS]
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            components.update(problem.pop("$defs", {}), Problem=problem)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
