"""Connections that do not send a request are closed, slow ones are not; a response is sent in one piece."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from app.api.http_protocol import HttpProtocol, ResponseTransport
from app.core.settings import Settings
from tests.service import running_service

_LIMIT_S = 0.4
_GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpProtocol, "head_timeout_s", _LIMIT_S)


@contextmanager
def _connected(client: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as connection:
        yield connection


def _seconds_until_closed(connection: socket.socket, every_50_ms: bytes) -> float:
    """Send the same bytes again and again; returns after how long the server closes, 4 at most."""
    began = time.monotonic()
    connection.settimeout(0.05)
    while (passed := time.monotonic() - began) < 4:
        with suppress(TimeoutError):
            if connection.recv(4096) == b"":
                return passed
        with suppress(BrokenPipeError):
            connection.send(every_50_ms)
    return passed


# A pause between two requests is not among them: it has the limit of keep-alive.
@pytest.mark.parametrize(
    ("first", "then", "is_second"),
    [
        pytest.param(b"", b"", False, id="idle"),
        pytest.param(b"GET /health/live HT", b"", False, id="half a request line"),
        pytest.param(b"GET /health/live HT", b"", True, id="half a second request line"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nX-Slow: ", b"a", False, id="a header without end"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nX-Slow: ", b"a", True, id="a second header without end"),
        pytest.param(b"", b"\r\n", True, id="empty lines after a request"),
    ],
)
def test_a_head_that_does_not_come_is_not_waited_for(
    api: httpx.Client, first: bytes, then: bytes, is_second: bool
) -> None:
    with _connected(api) as connection:
        if is_second:
            connection.sendall(_GET)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.sendall(first)
        assert _LIMIT_S / 2 < _seconds_until_closed(connection, then) < 3
    assert api.get("/health/live").status_code == 200


def test_a_slow_body_a_slow_answer_and_a_pause_between_requests_are_waited_for(settings: Settings) -> None:
    app = FastAPI()

    @app.post("/slow")
    async def slow(request: Request) -> int:
        body = await request.body()
        await asyncio.sleep(2 * _LIMIT_S)
        return len(body)

    head = b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
    with running_service(settings, app) as client, _connected(client) as connection:
        for _ in range(2):
            connection.sendall(head)
            for byte in b"abc":
                time.sleep(_LIMIT_S / 2)
                connection.sendall(bytes([byte]))
            answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"3")
            time.sleep(2 * _LIMIT_S)


_LONG = 70_000 * b"a"


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /health/live?" + _LONG + b" HTTP/1.1\r\nHost: a\r\n\r\n", id="address"),
        pytest.param(b"GET /health/live?" + 20 * _LONG, id="address without end"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nX-Long: " + _LONG + b"\r\n\r\n", id="header"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nX-Long: " + 20 * _LONG, id="header without end"),
        pytest.param(b"GET /health/live HTTP/1.1\r\n" + 8_000 * b"X-Many: a\r\n" + b"\r\n", id="many headers"),
        pytest.param(_GET + b"GET /health/live HTTP/1.1\r\nX-Long: " + 20 * _LONG, id="second request"),
    ],
)
def test_a_head_over_the_limit_is_refused(api: httpx.Client, head: bytes) -> None:
    with _connected(api) as connection:
        if head.startswith(_GET):
            connection.sendall(_GET)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            head = head.removeprefix(_GET)
        connection.sendall(head)
        received = b""
        while part := connection.recv(4096):
            received += part
    status_line, _, rest = received.partition(b"\r\n")
    assert status_line == b"HTTP/1.1 431 Request Header Fields Too Large"
    assert b"Content-Type: application/problem+json\r\n" in rest
    problem = json.loads(rest.partition(b"\r\n\r\n")[2])
    assert (problem["status"], problem["type"]) == (431, "urn:medpix:problem:request-header-fields-too-large")
    assert api.get("/health/live").status_code == 200


def test_a_head_within_the_limit_and_many_small_ones_at_once_are_answered(settings: Settings) -> None:
    small = b"GET /text?size=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running_service(settings, _app_of_responses()) as client, _connected(client) as connection:
        assert client.get("/text?size=5", headers={"X-Long": "a" * 60_000}).status_code == 200
        connection.sendall(1_500 * small)
        received = b""
        while received.count(b"HTTP/1.1 200 ") < 1_500:
            part = connection.recv(65_536)
            assert part, received[-1_000:]
            received += part


def test_pipelined_requests_are_all_answered(settings: Settings) -> None:
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(2 * _LIMIT_S)
        return "answered"

    request = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running_service(settings, app) as client, _connected(client) as connection:
        connection.sendall(2 * request)
        received = b""
        while received.count(b"answered") < 2:
            part = connection.recv(4096)
            assert part, received
            received += part


def _app_of_responses(released: asyncio.Event | None = None) -> FastAPI:
    app = FastAPI()

    @app.get("/text")
    async def text(size: int, status: int = 200) -> Response:
        return Response(size * b"x", status)

    @app.get("/late")
    async def late() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            if released is not None:
                await released.wait()
            for part in (b"one", b"two"):
                yield part

        return StreamingResponse(parts())

    @app.get("/long")
    async def long() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for number in range(2_000):
                yield b"HTTP/1.1 %07d" % number * 64  # looks like the head of a response, and is none

        return StreamingResponse(parts())

    return app


@pytest.mark.parametrize(
    ("request_line", "extra", "size"),
    [
        ("GET /text?size=0", "", 0),
        ("GET /text?size=5", "", 5),
        ("GET /text?size=30000", "", 30_000),
        ("GET /text?size=5", "Connection: close\r\n", 5),
        ("GET /text?size=0&status=304", "", 0),
        ("HEAD /text?size=5", "", 0),  # answered with 405, whose body a HEAD does not get
    ],
)
def test_the_head_and_the_body_of_a_response_are_sent_together(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, request_line: str, extra: str, size: int
) -> None:
    sent: list[bytes] = []

    class Recorded(ResponseTransport):
        def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
            super().__init__(cast("asyncio.Transport", _Recorder(transport, sent)), loop)

    monkeypatch.setattr("app.api.http_protocol.ResponseTransport", Recorded)
    with running_service(settings, _app_of_responses()) as client, _connected(client) as connection:
        for number in range(1 if extra else 3):
            connection.sendall(f"{request_line} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode())
            received = connection.recv(65_536)
            while len(received.partition(b"\r\n\r\n")[2]) < size:
                received += connection.recv(65_536)
            assert received.startswith(b"HTTP/1.1 ")
            assert len(received.partition(b"\r\n\r\n")[2]) == size
            assert sent[number:] == [received]
        if extra:
            assert connection.recv(1) == b""


class _Recorder:
    """Notes what a transport is given in one call, which uvloop sends in one."""

    def __init__(self, transport: asyncio.Transport, sent: list[bytes]) -> None:
        self._transport = transport
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._sent.append(data)
        self._transport.write(data)

    def writelines(self, parts: Sequence[bytes]) -> None:
        self._sent.append(b"".join(parts))
        self._transport.writelines(parts)


def test_a_head_does_not_wait_for_a_late_body_and_a_long_one_is_whole(settings: Settings) -> None:
    with running_service(settings, _app_of_responses(asyncio.Event())) as client, _connected(client) as connection:
        connection.sendall(b"GET /late HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).endswith(b"\r\n\r\n")
    with running_service(settings, _app_of_responses()) as client:
        assert client.get("/late").text == "onetwo"
        expected = b"".join(b"HTTP/1.1 %07d" % number * 64 for number in range(2_000))
        assert client.get("/long").content == expected
