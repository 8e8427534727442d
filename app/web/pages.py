"""The pages: HTML around scripts that use nothing but the public API.

`/` is the browse page, all others are below `/pages`, so that no page takes an address of the API.
"""

import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from pymongo.errors import PyMongoError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.core.byte_ranges import keep_satisfiable_ranges
from app.data.repository import CASES, NotFoundError, Repository

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

# A copy may be kept, but is asked for again: after an update no old script runs in a new page.
_CACHE_CONTROL: Final = "no-cache"
_TEMPLATES: Final = Environment(
    loader=PackageLoader("app.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
# The modules that a page's own script imports, so that the browser asks for all of them at once.
_COMMON: Final = ("address", "api", "dom")
_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "browse": (*_COMMON, "state", "catalogue", "result", "walk", "facets", "filters", "tiles", "menu"),
    "case": (*_COMMON, "state", "catalogue", "walk", "viewer", "casetext", "flags", "bookmarks"),
    "predict": (
        *_COMMON,
        "state",
        "item",
        "overview",
        "post",
        "explanation",
        "prediction",
        "similar",
        "snippets",
        "copy",
        "training",
    ),
    "models": (*_COMMON, "training", "board", "card", "charts", "scores"),
    "about": (*_COMMON, "copy", "scores"),
    "missing": ("address", "dom"),
    "docs": ("address", "dom"),
}
# The longest id of a case that there could be, and room for a mistyped one.
_MAX_ID: Final = 40


def prefix_of(request: Request) -> str:
    """The path below which a proxy serves this, without a slash at its end; empty without such a proxy."""
    # Inside of a mounted application, root_path is that of the mount too.
    return str(request.scope.get("app_root_path", request.scope.get("root_path", "")))


def render(request: Request, page: str, **values: Any) -> str:
    """The HTML of a page."""
    context = {"page": page, "modules": _MODULES[page], "prefix": prefix_of(request)}
    scripts = ["shell"] if page in ("missing", "docs") else [page, "shell"]
    return _TEMPLATES.get_template(f"{page}.html").render(scripts=scripts, **context, **values)


def _page(request: Request, name: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    return HTMLResponse(render(request, name, **values), status, headers={"Cache-Control": _CACHE_CONTROL})


def wants_page(request: Request) -> bool:
    """Whether a person reads the answer: HTML is asked for, as browsers do."""
    return request.method in ("GET", "HEAD") and "text/html" in request.headers.get("accept", "")


def missing_page(request: Request, *, u_id: str | None = None, detail: str | None = None) -> HTMLResponse:
    """The page of status 404.

    Args:
        request: that found nothing.
        u_id: of the case that there is not, where a case was asked for.
        detail: why there is nothing here and what to do, where that is known.
    """
    response = _page(request, "missing", HTTPStatus.NOT_FOUND, u_id=u_id, detail=detail)
    response.headers["Vary"] = "Accept"
    return response


@router.get("/")
async def browse(request: Request) -> HTMLResponse:
    """The cases and images with their filters."""
    return _page(request, "browse")


@router.get("/pages/case/{u_id}")
async def case(request: Request, u_id: str) -> HTMLResponse:
    """One case, or 404; its content comes from the API."""
    if len(u_id) > _MAX_ID:
        return missing_page(request)
    repository: Repository = request.app.state.repository
    try:
        await repository.get(CASES, u_id.upper())
    except NotFoundError:
        return missing_page(request, u_id=u_id)
    except PyMongoError:
        pass  # the page itself says what is wrong with the service, and asks again
    return _page(request, "case", u_id=u_id)


@router.get("/pages/predict")
async def predict(request: Request) -> HTMLResponse:
    """Modality and location of uploaded images, or of the image of the dataset that the query names."""
    return _page(request, "predict", image=request.query_params.get("image"))


@router.get("/pages/models")
async def models(request: Request) -> HTMLResponse:
    """The registered models."""
    return _page(request, "models")


@router.get("/pages/about")
async def about(request: Request) -> HTMLResponse:
    """What the data and the models are."""
    return _page(request, "about")


@router.get("/pages/{address:path}", response_model=None)
async def missing(request: Request, address: str) -> Response:
    """Any other address below /pages: a person reads the answer."""
    if address.endswith("/") and address.strip("/"):
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"{prefix_of(request)}/pages/{address.strip('/')}{query}")
    return missing_page(request)


class Assets(StaticFiles):
    """Files that are asked for again, and answered with 304 while they are the same."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file, the ranges of it that were asked for, or 304."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = _CACHE_CONTROL
        if response.status_code == HTTPStatus.OK:
            keep_satisfiable_ranges(scope, response.headers["ETag"], stat_result.st_size)
        return response


def install_pages(app: FastAPI) -> None:
    """Serve the pages and their files; call it after the error handlers are installed.

    An address that nothing serves is answered with a page where HTML is asked for, as browsers do, else with the
    problem document.
    """
    app.include_router(router)
    app.mount("/static", Assets(packages=[("app.web", "static")]), name="static")
    as_problem: Any = app.exception_handlers[HTTPException]

    async def nothing_there(request: Request, error: Exception) -> Response:
        response: Response = missing_page(request) if wants_page(request) else await as_problem(request, error)
        response.headers["Vary"] = "Accept"
        return response

    app.add_exception_handler(HTTPStatus.NOT_FOUND, nothing_there)
