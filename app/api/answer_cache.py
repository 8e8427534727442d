"""Keeps answers about the data: they stay the same until the next seeding."""

import re
from collections import OrderedDict
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.files import matches
from app.data.repository import Repository

# What is read from the cases and images alone. Annotations, models and files have their own ways.
_CACHED: Final = re.compile(r"/(cases(/[^/]+)?|images(/[^/]+)?|search|facets|fields|statistics|export/croissant)")
_MAX_QUERY: Final = 500
_MAX_SHARE: Final = 16


class _Answer(NamedTuple):
    headers: list[tuple[bytes, bytes]]
    etag: str
    body: bytes
    route: Any


class AnswerCache:
    """Answers again from memory, for as long as no new seeding run is complete.

    The least recently used answers go when the memory is full. Whether there was a new run is asked
    of the database at most once a second; while it cannot be reached, nothing is answered from here.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._bytes = 0
        self._seeded: str | None = None
        self._answers: OrderedDict[tuple[str, bytes], _Answer] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] != "GET" or not _CACHED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        query: bytes = scope["query_string"]
        if len(query) > _MAX_QUERY or not await self._is_current(scope["app"].state.repository):
            await self._app(scope, receive, send)
            return
        key = (scope["path"], query)
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
            scope["route"] = answer.route  # the metrics count by route
            await _send(answer, Headers(scope=scope).get("if-none-match"), send)
            return
        await self._app(scope, receive, _Recorder(self, key, scope, send))

    async def _is_current(self, repository: Repository) -> bool:
        """Forget everything after a seeding; whether answers may be kept at all."""
        try:
            seeded = await repository.seeded()
        except Exception:  # noqa: BLE001  # the route asks again, and knows how to answer each fault
            return False
        if seeded != self._seeded:
            self._answers.clear()
            self._bytes = 0
            self._seeded = seeded
        return seeded is not None

    def keep(self, key: tuple[str, bytes], answer: _Answer) -> None:
        """Remember an answer, unless it takes too large a share of the memory."""
        size = len(answer.body)
        if size * _MAX_SHARE > self._max_bytes or key in self._answers:
            return
        self._answers[key] = answer
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= len(oldest.body)


async def _send(answer: _Answer, if_none_match: str | None, send: Send) -> None:
    if matches(if_none_match, answer.etag):
        headers = [(name, value) for name, value in answer.headers if name not in (b"content-length", b"content-type")]
        await send({"type": "http.response.start", "status": HTTPStatus.NOT_MODIFIED, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": list(answer.headers)})
    await send({"type": "http.response.body", "body": answer.body})


class _Recorder:
    """Passes an answer on, and keeps it if it is whole and has an ETag."""

    def __init__(self, cache: AnswerCache, key: tuple[str, bytes], scope: Scope, send: Send) -> None:
        self._cache, self._key, self._scope, self._send = cache, key, scope, send
        self._headers: list[Any] = []
        self._etag = ""

    async def __call__(self, message: Message) -> None:
        """Handle one message."""
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
            self._headers = list(message["headers"])
            headers = Headers(raw=self._headers)
            self._etag = "" if "no-store" in headers.get("cache-control", "") else headers.get("etag", "")
        elif message["type"] == "http.response.body" and self._etag and not message.get("more_body"):
            answer = _Answer(self._headers, self._etag, message.get("body", b""), self._scope.get("route"))
            self._cache.keep(self._key, answer)
        await self._send(message)
