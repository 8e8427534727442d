"""ASGI layers around every request: its id, its size limit, HEAD, security headers, the answer to a failure."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import problem_response, translate
from app.core.exceptions import ApiError, ContentTooLargeError, RequestTimeoutError, UnsupportedMediaTypeError
from app.core.logs import REQUEST_ID
from app.core.telemetry import Metrics

logger = logging.getLogger(__name__)
_REQUEST_LOG: Final = logging.getLogger("medpix.requests")

_PREFIX: Final = re.compile(r"(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
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
        REQUEST_ID.set(request_id)
        scope.setdefault("state", {}).update(request_id=request_id, started=time.perf_counter())
        is_head = scope["method"] == "HEAD"
        scope["state"]["is_head"] = is_head  # a file is then not read
        if is_head:
            # Range is defined for GET alone.
            headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
            scope = {**scope, "method": "GET", "headers": headers}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Failures:
    """Answers what no handler did with a 500.

    Starlette's own layer for that is the outermost one: there the answer would have no security and no CORS headers,
    the log line no id, and the connection would be closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        has_started = False

        async def noted(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if scope["type"] != "http":
                raise
            method = "HEAD" if scope["state"]["is_head"] else scope["method"]
            logger.exception("request %s failed: %s %s", scope["state"]["request_id"], method, scope["path"])
            if has_started:
                raise  # the server closes the connection: there is no other way to say that the answer is cut
            await problem_response(Request(scope), translate(error))(scope, receive, send)


class ForwardedPrefix:
    """Puts back the path that a proxy stripped, so that links and redirects lead through the proxy.

    As the ASGI specification has it, ``root_path`` then is that path, and ``path`` begins with it. A proxy that does
    not strip it is served as well.

    Args:
        app: the next layer.
        prefix: the path; X-Forwarded-Prefix wins over it.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            sent = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
            prefix = sent if _PREFIX.fullmatch(sent) else self._prefix
            if prefix:
                # Not a copy: the layers outside read the route from it.
                scope["root_path"] = prefix
                if scope["path"] == prefix:
                    scope["path"] += "/"
                elif not scope["path"].startswith(f"{prefix}/"):
                    scope["path"] = prefix + scope["path"]
                    scope["raw_path"] = prefix.encode() + scope.get("raw_path", b"")
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
        status = 500

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
            method = "HEAD" if scope["state"]["is_head"] else scope["method"]
            self._metrics.request(method, route, status, seconds)
            if self._log:
                fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
                _REQUEST_LOG.info("request", extra={"fields": fields})


class BodyLimit:
    """Refuses a body over the limit of its address, one that arrives too slowly, and one with a content coding.

    Where an answer is complete before its request is read, the rest of the request body is drained, within a bound,
    before the connection is closed. A client that sends the whole body first would otherwise see a reset connection in
    the place of the answer.

    Args:
        app: to protect.
        limit_of: from a path to its limit in bytes.
        body_s: how long a body may take to arrive.
        linger_s: how long the rest of a body is read.
        idle_s: how long to wait for more of it.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit_of: Callable[[str], int],
        *,
        body_s: float = 120.0,
        linger_s: float = 30.0,
        idle_s: float = 5.0,
    ) -> None:
        self._app = app
        self._limit_of = limit_of
        self._body_s = body_s
        self._linger_s = linger_s
        self._idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] in ("GET", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._limit_of(scope["path"])
        received = 0
        declared = headers.get("content-length", "")
        has_more = bool(declared) or "transfer-encoding" in headers
        # The rest of a small body is read in any case, and the connection goes on.
        is_small = declared.isdigit() and len(declared) < 6
        # Such a client waits for leave before it sends.
        can_linger = headers.get("expect", "").lower() != "100-continue"
        deadline = asyncio.get_running_loop().time() + self._body_s

        async def counted() -> Message:
            nonlocal received, has_more
            try:
                async with asyncio.timeout_at(deadline if has_more else None):
                    message = await receive()
            except TimeoutError as error:
                raise RequestTimeoutError(f"The body did not arrive within {self._body_s:.0f} s.") from error
            received += len(message.get("body", b""))
            has_more = has_more and message.get("more_body", False)
            if received > limit:
                raise _too_large(limit)
            return message

        async def lingering(message: Message) -> None:
            if has_more and not is_small and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            if has_more and can_linger and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                await self._drop_body(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        error = _refusal(headers, limit)
        if error is not None:
            await problem_response(Request(scope), error)(scope, receive, lingering)
            return
        await self._app(scope, counted, lingering)

    async def _drop_body(self, receive: Receive) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._linger_s):
                has_more = True
                while has_more:
                    async with asyncio.timeout(self._idle_s):
                        has_more = (await receive()).get("more_body", False)


def _refusal(headers: Headers, limit: int) -> ApiError | None:
    """What is wrong with a body, as far as the headers tell."""
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        detail = (
            f"The body has the content coding {coding[:40]!r}. Send it without one: image files are compressed already."
        )
        error = UnsupportedMediaTypeError(detail)
        error.headers["Accept-Encoding"] = "identity"  # RFC 9110, section 15.5.16
        return error
    declared = headers.get("content-length", "")
    return _too_large(limit) if declared.isdigit() and int(declared) > limit else None


def _too_large(limit: int) -> ContentTooLargeError:
    size = f"{limit / 1024**2:.1f} MiB" if limit >= 1024**2 else f"{limit // 1024} KiB"
    return ContentTooLargeError(f"The body is larger than the limit of {size} for this address.")
