"""What no handler answers: still a problem document with all headers, and a log line that can be found."""

import http.client
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from pymongo.database import Database

from app.api.factory import create_app
from app.api.middleware import SECURITY_HEADERS
from app.core.logs import REQUEST_ID
from app.core.settings import load_settings
from tests.api.predict_client import is_problem
from tests.conftest import Document, database_address
from tests.service import running_service

ORIGIN = "https://viewer.example.org"


def _failing(app: FastAPI) -> FastAPI:
    async def fail() -> Response:
        logging.getLogger("test").warning("about to fail, request %s", REQUEST_ID.get())
        raise ZeroDivisionError("secret")

    async def fail_in_the_middle() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            raise ZeroDivisionError

        return StreamingResponse(parts())

    app.add_api_route("/fail", fail, methods=["GET", "POST"])
    app.add_api_route("/fail-in-the-middle", fail_in_the_middle)
    app.router.routes[:] = app.router.routes[-2:] + app.router.routes[:-2]  # before the pages
    return app


@pytest.fixture
def failing(
    generated_database: Database[Document], generated_dataset: Path, mongo_server: str, tmp_path: Path
) -> Iterator[httpx.Client]:
    uri = database_address(mongo_server, generated_database.name)
    settings = load_settings(home=tmp_path, mongo_uri=uri, data_dir=generated_dataset, cors_origins=[ORIGIN])
    with running_service(settings, _failing(create_app(settings))) as client:
        yield client


def test_a_500_has_all_headers_and_its_log_line_has_the_id(
    failing: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = failing.get("/fail", headers={"X-Request-ID": "find-me-7", "Origin": ORIGIN})
    is_problem(answer, 500)
    assert answer.headers["x-request-id"] == "find-me-7"
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "secret" not in answer.text
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.getMessage() == "request find-me-7 failed: GET /fail"
    assert record.exc_info is not None
    assert "about to fail, request find-me-7" in caplog.text
    metrics = failing.get("/metrics").text
    assert any('status="500"' in line and 'route="/fail"' in line for line in metrics.splitlines())


def test_the_connection_is_usable_after_a_500(failing: httpx.Client) -> None:
    with closing(http.client.HTTPConnection(failing.base_url.host, failing.base_url.port, timeout=30)) as connection:
        for method, body in (("GET", None), ("POST", b"x" * 900), ("GET", None)):
            connection.request(method, "/fail", body)
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, answer.getheader("connection")) == (500, None)
        address = connection.sock.getsockname()
        connection.request("GET", "/health/live")
        assert connection.getresponse().status == 200
        assert connection.sock.getsockname() == address


def test_an_answer_that_breaks_off_is_not_ended_as_if_it_were_whole(failing: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        failing.get("/fail-in-the-middle")
    assert failing.get("/health/live").status_code == 200
