"""A limit on how often one caller may post, counted in this process."""

import math
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


class RateLimit:
    """A token bucket per key or address: a minute's requests at most at once, refilled evenly."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        wait_s = self._take(self._caller(request), time.monotonic())
        if wait_s > 0:
            limit = self._settings.rate_limit_per_minute
            error = TooManyRequestsError(
                f"More than {limit} requests in a minute. Try again in {math.ceil(wait_s)} s.",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
            await problem_response(request, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _caller(self, request: Request) -> str:
        name = key_name(self._settings, offered_key(request))
        return f"key {name}" if name else f"address {request.client.host if request.client else 'unknown'}"

    def _take(self, caller: str, now: float) -> float:
        """Take one token; returns the seconds until there is one, 0 if there was."""
        size = float(self._settings.rate_limit_per_minute)
        tokens, last = self._buckets.pop(caller, (size, now))
        tokens = min(size, tokens + (now - last) * size / 60)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) * 60 / size
