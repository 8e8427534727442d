"""The pages: HTML around scripts that use nothing but the public API.

`/` is the browse page, all others are below `/pages`, so that no page takes an address of the API.
"""

import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse, RedirectResponse
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
    "browse": (*_COMMON, "state", "catalogue", "result", "facets", "filters", "tiles"),
    "case": (*_COMMON, "state", "catalogue", "result", "viewer", "casetext", "flags", "prediction"),
    "predict": (*_COMMON, "item", "post", "explanation", "prediction", "snippets", "copy", "training"),
    "models": (*_COMMON, "training", "board", "card", "charts", "scores"),
    "about": (*_COMMON, "copy", "scores"),
    "missing": (),
}
# The longest id of a case that there could be, and room for a mistyped one.
_MAX_ID: Final = 40


def _page(name: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    html = _TEMPLATES.get_template(f"{name}.html").render(page=name, modules=_MODULES[name], **values)
    return HTMLResponse(html, status, headers={"Cache-Control": _CACHE_CONTROL})


@router.get("/")
async def browse() -> HTMLResponse:
    """The grid of images with its filters."""
    return _page("browse")


@router.get("/pages/case/{u_id}")
async def case(u_id: str) -> HTMLResponse:
    """One case; whether there is such a case is said by the API."""
    if len(u_id) > _MAX_ID:
        return _page("missing", HTTPStatus.NOT_FOUND)
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


@router.get("/pages/{address:path}", response_model=None)
async def missing(address: str) -> Response:
    """Any other address below /pages: a person reads the answer."""
    if address.endswith("/") and address.strip("/"):
        return RedirectResponse(f"/pages/{address.strip('/')}")
    return _page("missing", HTTPStatus.NOT_FOUND)


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
