"""The one table from exception to response: every error is an RFC 9457 problem document."""

import errno
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pymongo.errors import (
    AutoReconnect,
    ConnectionFailure,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    WaitQueueTimeoutError,
)
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.core.exceptions import (
    ApiError,
    DeadlineExceededError,
    ProblemItem,
    UnavailableError,
    UnprocessableError,
    message_of,
)
from app.data.client import UNAUTHORIZED
from app.data.dataset import DatasetNotFoundError
from app.data.filters import ParameterError
from app.data.repository import NotFoundError

_EXHAUSTED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})
logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
# As nginx counts clients that close the connection before the answer.
CLIENT_CLOSED_REQUEST: Final = 499
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:medpix:problem:not-found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no case MPX9999."])
    instance: str = Field(examples=["/cases/MPX9999"])
    request_id: str
    errors: list[ProblemItem] | None = Field(default=None, description="Each unusable part of the request")


def problem_response(request: Request, error: ApiError) -> JSONResponse:
    """The answer to an error."""
    return JSONResponse(_content(request, error), error.status, headers=error.headers, media_type=MEDIA_TYPE)


def problem_of(request: Request, error: Exception) -> dict[str, Any]:
    """The problem document of an exception, as a part of an answer; what nobody expected is logged."""
    translated = translate(error)
    if translated.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("a part of a request failed", exc_info=error)
    return _content(request, translated)


def _content(request: Request, error: ApiError) -> dict[str, Any]:
    problem = Problem(
        type=f"urn:medpix:problem:{error.slug}",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        instance=request.url.path,
        request_id=request.scope.get("state", {}).get("request_id", ""),
        errors=error.errors,
        **error.members,
    )
    return problem.model_dump(exclude_none=True)


def translate(error: Exception) -> ApiError:
    """The response that an exception stands for."""
    match error:
        case ApiError():
            return error
        case NotFoundError():
            return _with_status(404, "not-found", str(error))
        case ParameterError():
            return UnprocessableError(f"The query cannot be used: {error}", errors=[*error.problems])
        case RequestValidationError():
            return _invalid_request(error)
        case HTTPException(__cause__=ApiError() as cause):  # FastAPI answers 400 to whatever ends the reading of a body
            return cause
        case HTTPException():
            return _http_error(error)
        case PyMongoError():
            return _database_error(error)
        case DatasetNotFoundError():  # its message names a folder of this machine
            logger.error("%s", error)
            return UnavailableError(
                "The image files are not in this service's dataset folder. Run `medpix fetch`, or set MEDPIX_DATA_DIR.",
                retry_after_s=60,
            )
        case OSError(errno=number) if number in _EXHAUSTED:
            logger.error("%s: %s", error.strerror, error.filename or "this process")
            return UnavailableError(f"The service is short of something: {error.strerror}.", retry_after_s=60)
        case OSError():
            logger.error("a request failed", exc_info=error)
    return _with_status(500, "internal", "The service failed. The log holds the cause under this request_id.")


def _with_status(
    status: int, slug: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
) -> ApiError:
    error = ApiError(detail, headers=headers, **members)
    error.status, error.slug = status, slug
    return error


def _invalid_request(error: RequestValidationError) -> ApiError:
    items = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"] if part not in ("query", "path", "body")]
        items.append(ProblemItem(parameter=".".join(location), message=message_of(problem)))
    detail = "; ".join(f"{item.parameter}: {item.message}" if item.parameter else item.message for item in items)
    return UnprocessableError(f"The request cannot be used: {detail}", errors=items)


def _http_error(error: HTTPException) -> ApiError:
    phrase = HTTPStatus(error.status_code).phrase
    slug = phrase.lower().replace(" ", "-")
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and detail == phrase:
        detail = "No endpoint has this path. /docs lists all."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"This address does not take this method; it takes {(error.headers or {}).get('Allow', 'others')}."
    return _with_status(error.status_code, slug, detail, headers=error.headers)


def _methods(request: Request) -> list[str]:
    """The methods that an address takes; Starlette names those of the first of its routes."""
    methods = [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return ["GET", "HEAD", *methods[1:]] if "GET" in methods else methods


def _database_error(error: PyMongoError) -> ApiError:
    match error:
        case ExecutionTimeout() | NetworkTimeout():
            return DeadlineExceededError("The database did not answer in time. Ask for less, or use a simpler filter.")
        case ConnectionFailure() | AutoReconnect() | WaitQueueTimeoutError():
            return UnavailableError("The database cannot be reached at the moment. Try again shortly.")
        case OperationFailure() if error.code == UNAUTHORIZED:
            logger.error("the database user may not do this", exc_info=error)
            return UnavailableError(
                "The database user of this service may not do this. Run the init script of the database again, as "
                ".env.example says: an older version made the user.",
                retry_after_s=60,
            )
    if error.timeout:
        return UnavailableError("The database did not answer in time. Try again shortly.")
    logger.error("database error", exc_info=error)
    return _with_status(500, "internal", "The database refused the query. The log holds the cause.")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception with a problem document."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            error.headers = {"Allow": ", ".join(_methods(request))}
        return problem_response(request, translate(error))

    async def handle_disconnect(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # for the metrics; nobody reads it

    app.add_exception_handler(ClientDisconnect, handle_disconnect)
    for kind in (
        ApiError,
        NotFoundError,
        ParameterError,
        RequestValidationError,
        HTTPException,
        PyMongoError,
        DatasetNotFoundError,
        OSError,
        Exception,
    ):
        app.add_exception_handler(kind, handle)


Responses = dict[int | str, dict[str, Any]]
# Of a body that is a file, for generated clients.
BINARY: Final[Mapping[str, Any]] = {"schema": {"type": "string", "format": "binary"}}


# For the API reference: by status the end of the type, the address, the detail, and what else there may be.
_EXAMPLES: Final[Mapping[int, tuple[str, str, str, Mapping[str, Any]]]] = {
    400: ("bad-request", "/views", "There was an error parsing the body", {}),
    401: (
        "unauthorized",
        "/views",
        "This address needs a key. Send it as X-API-Key, or as Authorization: Bearer.",
        {},
    ),
    403: ("forbidden", "/annotations/0f8fad5b", "Another key wrote this annotation. Only its writer can amend it.", {}),
    404: ("not-found", "/cases/MPX9999", "There is no case MPX9999.", {}),
    409: ("conflict", "/views", "reader has a view of this name. Choose another name, or delete it.", {}),
    412: (
        "precondition-failed",
        "/export/images.parquet",
        'The content has another entity tag than If-Match names: "3f9c2a7e".',
        {},
    ),
    413: (
        "content-too-large",
        "/predict/modality",
        "The body is larger than the limit of 10.1 MiB for this address.",
        {},
    ),
    415: (
        "unsupported-media-type",
        "/predict/modality",
        "Send the image as multipart/form-data, field image; the body is application/json.",
        {},
    ),
    416: (
        "range-not-satisfiable",
        "/export/images.parquet",
        "The file has 123456 bytes, and no range that was asked for begins inside it.",
        {},
    ),
    422: (
        "unprocessable-content",
        "/images",
        "The query cannot be used: modality: expected one of CT, MR; got 'PET'",
        {"errors": [{"parameter": "modality", "message": "expected one of CT, MR; got 'PET'"}]},
    ),
    429: ("too-many-requests", "/search", "More than 60 requests in a minute. Try again in 3 s.", {}),
    503: ("unavailable", "/images", "The database cannot be reached at the moment. Try again shortly.", {}),
    504: (
        "deadline-exceeded",
        "/images",
        "The database did not answer in time. Ask for less, or use a simpler filter.",
        {},
    ),
    507: (
        "insufficient-storage",
        "/export/images.zip",
        "The file cannot be kept: No space left on device. /export?of=images&format=zip needs no disk.",
        {},
    ),
}


def documented(*statuses: int) -> Responses:
    """The ``responses`` of a route: these statuses answer a problem document."""
    return {status: {"description": HTTPStatus(status).phrase, "content": _documented(status)} for status in statuses}


def _documented(status: int) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Problem"}}
    if status in _EXAMPLES:
        slug, instance, detail, members = _EXAMPLES[status]
        content["example"] = {
            "type": f"urn:medpix:problem:{slug}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "instance": instance,
            "request_id": "5f0c7a2c0d7b4e6f8d1f6a3b2c4d5e6f",
            **members,
        }
    return {MEDIA_TYPE: content}
