"""Connections that do not send a request are hung up; slow bodies and slow answers are not."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from fastapi import FastAPI, Request

from app.api.http_protocol import HttpProtocol
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


def _seconds_until_hung_up(connection: socket.socket, every_50_ms: bytes) -> float:
    """Send the same bytes again and again; returns how long the server puts up with it, 4 at most."""
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
        assert _LIMIT_S / 2 < _seconds_until_hung_up(connection, then) < 3
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
