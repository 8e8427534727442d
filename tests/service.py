"""Runs the service for a test: the real application under the real server on a free port."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from app.api.factory import create_app
from app.api.http_protocol import HttpProtocol
from app.core.settings import Settings


@contextmanager
def running_service(settings: Settings, app: FastAPI | None = None) -> Iterator[httpx.Client]:
    """Serve in a thread, an application of the test's own if there is one; yields a client of the service."""
    with running_server(settings, app) as (client, _):
        yield client


@contextmanager
def running_server(settings: Settings, app: FastAPI | None = None) -> Iterator[tuple[httpx.Client, uvicorn.Server]]:
    """The same, and the server, which a test can tell to stop."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    # As the command line does it: uvicorn's own log configuration closes the handlers of the whole process.
    config = uvicorn.Config(
        app or create_app(settings), http=HttpProtocol, log_level="warning", log_config=None, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the service did not start; its log is above")
        time.sleep(0.02)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client, server
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def wait_for(
    client: httpx.Client, path: str, done: Callable[[httpx.Response], bool], *, seconds: float = 180
) -> httpx.Response:
    """Ask until the answer is as wanted, and return it.

    Raises:
        AssertionError: it was not within so many seconds; holds the last answer.
    """
    deadline = time.monotonic() + seconds
    while not done(answer := client.get(path)):
        assert time.monotonic() < deadline, f"{path} after {seconds:.0f} s: {answer.status_code} {answer.text[:2000]}"
        time.sleep(0.1)
    return answer


def is_ok(answer: httpx.Response) -> bool:
    """Whether the answer has status 200."""
    return answer.status_code == 200
