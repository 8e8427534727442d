"""The pages: HTML around scripts that use nothing but the public API.

`/` is the browse page, all others are below `/pages`, so that no page takes an address of the API.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Path, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

# A copy may be kept, but is asked for again: after an update no old script meets a new page.
_CACHE_CONTROL: Final = "no-cache"
_TEMPLATES: Final = Environment(
    loader=PackageLoader("app.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
# The modules that a page's own script imports, so that the browser asks for all of them at once.
_COMMON: Final = ("api", "dom")
_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "browse": (*_COMMON, "state", "catalogue", "result", "facets", "filters"),
    "case": (*_COMMON, "state", "catalogue", "result", "viewer", "flags", "prediction"),
    "predict": (*_COMMON, "item", "prediction", "snippets", "training"),
    "models": (*_COMMON, "training", "charts"),
    "about": _COMMON,
}


def _page(name: str, **values: Any) -> HTMLResponse:
    html = _TEMPLATES.get_template(f"{name}.html").render(page=name, modules=_MODULES[name], **values)
    return HTMLResponse(html, headers={"Cache-Control": _CACHE_CONTROL})


@router.get("/")
async def browse() -> HTMLResponse:
    """The grid of images with its filters."""
    return _page("browse")


@router.get("/pages/case/{u_id}")
async def case(u_id: Annotated[str, Path(max_length=40)]) -> HTMLResponse:
    """One case; whether there is such a case is said by the API."""
    return _page("case", u_id=u_id)


@router.get("/pages/predict")
async def predict() -> HTMLResponse:
    """Modality and location of uploaded images."""
    return _page("predict")


@router.get("/pages/models")
async def models() -> HTMLResponse:
    """The registered models."""
    return _page("models")


@router.get("/pages/about")
async def about() -> HTMLResponse:
    """What the data and the models are."""
    return _page("about")


class _Assets(StaticFiles):
    """Files that are asked for again, and answered with 304 while they are the same."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file, or 304."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = _CACHE_CONTROL
        return response


def install_pages(app: FastAPI) -> None:
    """Serve the pages and their files."""
    app.include_router(router)
    app.mount("/static", _Assets(packages=[("app.web", "static")]), name="static")
