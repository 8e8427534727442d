"""The OpenAPI document says exactly what is returned, and serving speaks to nobody else."""

import socket
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api.factory import create_app
from app.core.settings import Settings, load_settings
from ml.dataset.records import Record
from tests.api.predict_client import CAPTION, ask, ask_many
from tests.service import is_ok, running_service, wait_for


def no_fault(ctx: Any, response: Any, case: Any) -> None:
    """Nothing breaks; a model that is busy (503) or a deadline that was asked for (504) is no fault."""
    if response.status_code not in (503, 504):
        not_a_server_error(ctx, response, case)


CHECKS = (
    no_fault,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


OPERATIONS = sorted(
    f"{method.upper()} {path}"
    for path, methods in create_app(load_settings()).openapi()["paths"].items()
    for method in methods
)


@pytest.fixture(scope="session")
def schema(predict_api: httpx.Client) -> Any:
    return schemathesis.openapi.from_url(f"{predict_api.base_url}/openapi.json")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_is_sent_the_answer_is_one_that_is_documented(schema: Any, operation: str) -> None:
    method, _, path = operation.partition(" ")
    asked = schema[path][method]
    statuses: set[int] = set()

    # What is documented, and what breaks the documentation; for some operations nothing does.
    @given(st.one_of([asked.as_strategy(generation_mode=mode) for mode in GenerationMode]))
    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def answer_is_documented(case: Any) -> None:
        # The server itself refuses a request whose framing is wrong, before there is a route to answer.
        assume(not {"transfer-encoding", "content-length"} & {name.lower() for name in case.headers or {}})
        answer = case.call_and_validate(checks=CHECKS, timeout=60)
        statuses.add(answer.status_code)

    answer_is_documented()
    assert statuses


@pytest.mark.parametrize("task", ["modality", "location"])
def test_good_answers_are_as_documented(
    schema: Any, predict_api: httpx.Client, records: list[Record], task: str
) -> None:
    data, image = records[0].path.read_bytes(), records[0].image
    answers = {
        ("POST", f"/predict/{task}"): ask(predict_api, f"/predict/{task}", data, CAPTION),
        ("POST", f"/predict/{task}/batch"): ask_many(predict_api, f"/predict/{task}/batch", [data, b"bad"]),
        ("POST", f"/explain/{task}"): ask(predict_api, f"/explain/{task}?format=json", data, CAPTION),
        ("GET", "/images/{image}/predict"): predict_api.get(f"/images/{image}/predict"),
        ("GET", "/images/{image}/similar"): predict_api.get(f"/images/{image}/similar"),
        ("POST", "/search/similar"): ask(predict_api, "/search/similar", data),
        ("GET", "/models"): predict_api.get("/models"),
        ("GET", "/metrics"): predict_api.get("/metrics"),
    }
    for (method, path), answer in answers.items():
        assert answer.status_code == 200, answer.text
        answer.request.read()
        schema[path][method].validate_response(answer)


def test_too_many_requests_are_documented_where_they_are_answered(
    schema: Any, predict_settings: Settings, png: bytes
) -> None:
    with running_service(predict_settings.model_copy(update={"rate_limit_per_minute": 1})) as client:
        ask(client, "/predict/modality", png)
        for operation in OPERATIONS:
            method, _, path = operation.partition(" ")
            if method == "POST" and path.startswith(("/predict", "/explain", "/search")):
                answer = ask(client, path, png)
                assert answer.status_code == 429
                assert {"429", "500"} <= schema[path]["POST"].definition.raw["responses"].keys()


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
