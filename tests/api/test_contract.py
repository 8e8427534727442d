"""The OpenAPI document says exactly what is returned, and serving speaks to nobody else."""

import socket
from http import HTTPStatus
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.config import Settings, load_settings
from app.main import create_app
from ml.records import Record
from tests.api.asking import CAPTION, ask, ask_many
from tests.service import is_ok, running_service, wait_for


def is_no_fault(_context: Any, response: Any, _case: Any) -> None:
    """A deadline of a microsecond is rightly answered with 504, and nothing with 500."""
    assert response.status_code != HTTPStatus.INTERNAL_SERVER_ERROR


CHECKS = (
    is_no_fault,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


SCHEMA: Any = schemathesis.openapi.from_dict(create_app(load_settings()).openapi())
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
_quick = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_is_sent_the_answer_is_one_that_is_documented(predict_api: httpx.Client, label: str) -> None:
    @_quick
    @given(data=strategies.data())
    def ask_anything(data: Any) -> None:
        case = data.draw(OPERATIONS[label].as_strategy())
        case.call_and_validate(base_url=str(predict_api.base_url), checks=CHECKS, timeout=60)

    ask_anything()


@pytest.mark.parametrize("task", ["modality", "location"])
def test_good_answers_are_as_documented(predict_api: httpx.Client, records: list[Record], task: str) -> None:
    data, image = records[0].path.read_bytes(), records[0].image
    answers = {
        f"POST /predict/{task}": ask(predict_api, f"/predict/{task}", data, CAPTION),
        f"POST /predict/{task}/batch": ask_many(predict_api, f"/predict/{task}/batch", [data, b"bad"]),
        f"POST /explain/{task}": ask(predict_api, f"/explain/{task}?format=json", data, CAPTION),
        "GET /images/{image}/predict": predict_api.get(f"/images/{image}/predict"),
        "GET /images/{image}/similar": predict_api.get(f"/images/{image}/similar"),
        "POST /search/similar": ask(predict_api, "/search/similar", data),
        "GET /models": predict_api.get("/models"),
        "GET /metrics": predict_api.get("/metrics"),
    }
    for label, answer in answers.items():
        assert answer.status_code == 200, answer.text
        answer.request.read()  # it was streamed, and the check looks at it
        OPERATIONS[label].validate_response(answer)


def test_serving_speaks_to_nobody_else(
    predict_settings: Settings, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere: list[object] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def watched_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            elsewhere.append(address)
            raise OSError("the network is blocked")
        connect(self, address)

    def watched_look_up(host: Any, *arguments: Any, **named: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", "::1", None, b"127.0.0.1"):
            elsewhere.append(host)
            raise socket.gaierror("the network is blocked")
        return look_up(host, *arguments, **named)

    monkeypatch.setattr(socket.socket, "connect", watched_connect)
    monkeypatch.setattr(socket, "getaddrinfo", watched_look_up)
    with running_service(predict_settings) as client:
        wait_for(client, "/health/ready", is_ok)
        data = records[0].path.read_bytes()
        for answer in (
            ask(client, "/predict/modality", data),
            ask(client, "/predict/location", data, CAPTION),
            ask(client, "/explain/location", data, CAPTION),
            ask(client, "/search/similar", data),
            client.get("/docs"),
            client.get("/openapi.json"),
            client.get("/metrics"),
        ):
            assert answer.status_code == 200, answer.text
    assert elsewhere == []
    with pytest.raises(OSError, match="blocked"):  # the watch does watch
        socket.create_connection(("192.0.2.1", 80), timeout=1)
