"""Exceptions that several layers raise: faults a user can correct, and errors that know their HTTP status."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

RETRY_AFTER_S: Final = 2


class UserError(Exception):
    """A fault that the user can correct: the command line prints its message, without a traceback."""


def message_of(problem: Mapping[str, Any]) -> str:
    """The message of one of a pydantic error's problems; pydantic puts "Value error, " before a validator's own."""
    message: str = problem["msg"]
    return message.removeprefix("Value error, ")


@dataclass(frozen=True, slots=True)
class ProblemItem:
    """One part of a request that cannot be used, such as a query parameter; "" is the request as a whole."""

    parameter: str
    message: str


class ApiError(Exception):
    """An error that knows its own HTTP response.

    Subclasses set ``status`` and ``slug``; instances may add headers and members of the problem.
    """

    status: int = 500
    slug: str = "internal"

    def __init__(
        self,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: list[ProblemItem] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = errors
        self.members = members


class UnauthorizedError(ApiError):
    """The request needs a key that it does not have."""

    status = 401
    slug = "unauthorized"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenError(ApiError):
    """The key is known, but may not do this."""

    status = 403
    slug = "forbidden"


class RequestTimeoutError(ApiError):
    """The body did not arrive in time; the connection is closed, since the rest of it may still come."""

    status = 408
    slug = "request-timeout"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Connection": "close"})


class ConflictError(ApiError):
    """The request does not fit what is stored by now."""

    status = 409
    slug = "conflict"


class MisdirectedError(ApiError):
    """The request names a host that is not this service."""

    status = 421
    slug = "misdirected-request"


class TooManyRequestsError(ApiError):
    """The caller has made too many requests; Retry-After says when the next may come."""

    status = 429
    slug = "too-many-requests"


class UnsupportedMediaTypeError(ApiError):
    """The body or the file is of a kind that is not read here."""

    status = 415
    slug = "unsupported-media-type"


class PreconditionFailedError(ApiError):
    """The client asks for another content than the one that is there."""

    status = 412
    slug = "precondition-failed"


class ContentTooLargeError(ApiError):
    """The body, a file or a text is over its limit."""

    status = 413
    slug = "content-too-large"


class RangeNotSatisfiableError(ApiError):
    """The Range header asks for bytes that the file does not have."""

    status = 416
    slug = "range-not-satisfiable"


class UnprocessableError(ApiError):
    """The request is well-formed, but a part of it cannot be used."""

    status = 422
    slug = "unprocessable-content"


class InsufficientStorageError(ApiError):
    """The disk, or the part of it that the service may use, is too small for what was asked for."""

    status = 507
    slug = "insufficient-storage"


class UnavailableError(ApiError):
    """Try again later: Retry-After says when."""

    status = 503
    slug = "unavailable"

    def __init__(self, detail: str, *, retry_after_s: int = RETRY_AFTER_S, **members: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s)}, **members)


class DeadlineExceededError(ApiError):
    """The answer was not ready before the deadline of the request."""

    status = 504
    slug = "deadline-exceeded"
