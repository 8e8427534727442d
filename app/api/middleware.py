"""ASGI layers around every request: its id, its size limit, HEAD, security headers."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import problem_response
from app.core.exceptions import ContentTooLargeError
from app.core.logs import REQUEST_ID
from app.core.telemetry import Metrics

_REQUEST_LOG: Final = logging.getLogger("medpix.requests")

_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
}


class RequestContext:
    """Gives every request an id and the time of its start, adds the security headers, answers HEAD as GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, started=time.perf_counter())
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET"}  # the server's own record keeps the method that was asked

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        token = REQUEST_ID.set(request_id)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            REQUEST_ID.reset(token)


class ForwardedPrefix:
    """Takes the path that a proxy stripped from X-Forwarded-Prefix, so that links lead back through the proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            prefix = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
            if prefix and _PREFIX.fullmatch(prefix):
                scope = {**scope, "root_path": prefix}
        await self._app(scope, receive, send)


class CountRequests:
    """Counts every answer by method, route and status, and measures its time.

    Args:
        app: the next layer.
        metrics: where it is counted.
        log: also log a line per request. It names the route's template, never a path, a query or a file.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # what an exception that nobody handles becomes further out

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - started
            self._metrics.request(scope["method"], route, status, seconds)
            if self._log:
                fields = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 6)}
                _REQUEST_LOG.info("request", extra={"fields": fields})


class BodyLimit:
    """Refuses a body over the limit of its address: at once where the length is declared, else while it is read."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int]) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            error = _too_large(limit)
            error.headers["Connection"] = "close"
            await problem_response(Request(scope), error)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self._app(scope, counted, send)


def _too_large(limit: int) -> ContentTooLargeError:
    return ContentTooLargeError(f"The body is larger than the limit of {limit / 1024**2:.1f} MiB for this address.")
