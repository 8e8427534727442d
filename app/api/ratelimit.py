"""Limits on how often one caller may post or make a costly read, counted in this process."""

import math
import re
import time
from collections import OrderedDict
from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.auth import key_name, offered_key
from app.api.errors import problem_response
from app.core.exceptions import TooManyRequestsError
from app.core.settings import Settings

# The oldest callers are forgotten: a flood of addresses must not fill the memory.
_MAX_CALLERS: Final = 10_000
# What reads more than one page of documents, or runs a model.
_COSTLY: Final = re.compile(
    r"/(search(/images)?|facets|statistics|export(/.*)?|views/[^/]+(/.*)?|images/[^/]+/(similar|predict))"
)
# Parameters with which a list reads more than its page.
_SCANNING: Final = re.compile(r"q|sample|.*__(regex|contains|startswith)")
_BULK: Final = re.compile("/(cases|images)/bulk")


class RateLimit:
    """A token bucket per key or address: a minute's requests at most at once, refilled evenly."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        limit = self._limit_of(scope) if scope["type"] == "http" else 0
        if not limit:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        kind = "reads" if _is_read(scope) else "writes"
        wait_s = self._take(f"{kind} of {self._caller(request)}", limit, time.monotonic())
        if wait_s > 0:
            error = TooManyRequestsError(
                f"More than {limit} requests in a minute. Try again in {math.ceil(wait_s)} s.",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
            await problem_response(request, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _limit_of(self, scope: Scope) -> int:
        """The limit on requests of this kind; 0: none."""
        if not _is_read(scope):
            return 0 if scope["method"] == "OPTIONS" else self._settings.rate_limit_per_minute
        is_costly = (
            scope["method"] != "GET"
            or _COSTLY.fullmatch(_path(scope))
            or any(_SCANNING.fullmatch(name) for name, _ in Request(scope).query_params.multi_items())
        )
        return self._settings.rate_limit_reads_per_minute if is_costly else 0

    def _caller(self, request: Request) -> str:
        name = key_name(self._settings, offered_key(request))
        return f"key {name}" if name else f"address {request.client.host if request.client else 'unknown'}"

    def _take(self, caller: str, limit: int, now: float) -> float:
        """Take one token; returns the seconds until there is one, 0 if there was."""
        size = float(limit)
        tokens, last = self._buckets.pop(caller, (size, now))
        tokens = min(size, tokens + (now - last) * size / 60)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) * 60 / size


def _is_read(scope: Scope) -> bool:
    """Whether a request only reads; bulk reads post their ids."""
    return scope["method"] == "GET" or _BULK.fullmatch(_path(scope)) is not None


def _path(scope: Scope) -> str:
    """The path without the one below which a proxy serves this."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))
