"""Uploads as clients send them, through the address that decodes without a model."""

import asyncio
import gzip
import http.client
import io
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.types import Message, Receive, Scope, Send

from app.api.middleware import BodyLimit
from app.core.settings import Settings
from tests.api.predict_client import ask, is_problem
from tests.service import running_service
from tests.serving.decode.dicom_files import dicom
from tests.serving.hostile_files import accepted

PNG = accepted()["grey"]
NOISE = accepted()["16 bit"] + np.random.default_rng(0).bytes(700_000)  # after its end, a PNG may have anything
BOUNDARY = "----boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def _form(*parts: tuple[str, bytes]) -> bytes:
    """A multipart body; each part as its Content-Disposition behind form-data, and its data."""
    body = b""
    for disposition, data in parts:
        body += f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize("data", [PNG, NOISE], ids=["small", "over the limit of a text"])
@pytest.mark.parametrize(
    "disposition",
    ['name="image"', "name=\"image\"; filename*=UTF-8''r%C3%B6ntgen.png", 'name="image"; filename=""', "name=image"],
)
def test_a_file_needs_no_name(api: httpx.Client, disposition: str, data: bytes) -> None:
    answer = api.post("/preview", content=_form((disposition, data)), headers=FORM)
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("PNG", (96, 80))


@pytest.mark.parametrize("path", ["/cases/bulk", "/images/bulk", "/views", "/images/MPX1007_synpic46719/annotations"])
def test_json_has_a_limit_of_its_own(api: httpx.Client, path: str) -> None:
    json = {"Content-Type": "application/json"}
    answer = api.post(path, content=b'{"ids": ["%s"]}' % (b"x" * 70_000), headers=json)
    is_problem(answer, 413)
    assert "the limit of 64 KiB" in answer.json()["detail"]
    longest = b'{"comment": "%s"}' % (b"\\ud83d\\ude00" * 5_000)
    assert api.post(path, content=longest, headers=json).status_code != 413


def test_text_in_the_place_of_a_file_is_told(api: httpx.Client) -> None:
    answer = api.post("/preview", content=_form(('name="image"', b"scan.png")), headers=FORM)
    is_problem(answer, 422)
    assert "it is text, not a file" in answer.json()["detail"]


def test_a_misspelt_field_is_told(api: httpx.Client) -> None:
    answer = api.post("/preview", files={"file": ("any.png", PNG)}, data={"title": "x"})
    is_problem(answer, 422)
    assert answer.json()["detail"].endswith("it is missing. The request has: file, title.")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        *(("location", "captions"), ("location/batch", "caption")),
        *(("modality", "caption"), ("modality/batch", "captions")),
    ],
)
def test_a_field_that_would_be_ignored_is_told(predict_api: httpx.Client, path: str, field: str) -> None:
    image = "images" if path.endswith("batch") else "image"
    answer = predict_api.post(f"/predict/{path}", files={image: ("any.png", PNG)}, data={field: "Axial CT"})
    is_problem(answer, 422)
    assert f"The field {field} is not taken here" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/preview", "/search/similar", "/explain/modality"])
def test_a_caption_is_refused_where_the_image_alone_counts(predict_api: httpx.Client, path: str) -> None:
    answer = predict_api.post(path, files={"image": ("any.png", PNG)}, data={"caption": "Axial CT"})
    is_problem(answer, 422)
    assert answer.json()["detail"] == "The field caption is not taken here; the only field is image."


def test_a_field_of_text_has_a_limit(api: httpx.Client) -> None:
    answer = api.post("/preview", files={"image": ("any.png", PNG)}, data={"caption": "x" * 600_000})
    is_problem(answer, 413)
    assert answer.json()["detail"] == "The field caption has more than 512 KiB of text."


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no form at all", "cannot be read"),
        (_form(('name="image"', PNG))[:200], "closing boundary is missing"),
        (_form(("title", PNG)), 'The Content-Disposition header field "name" must be provided'),
        (b"", "closing boundary is missing"),
    ],
)
def test_a_broken_form_is_told(api: httpx.Client, body: bytes, words: str) -> None:
    answer = api.post("/preview", content=body, headers=FORM)
    is_problem(answer, 400)
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/preview", "/images/any/annotations", "/predict/modality"])
def test_a_body_with_a_content_coding_is_refused_by_name(api: httpx.Client, path: str) -> None:
    body = gzip.compress(_form(('name="image"; filename="any.png"', PNG)))
    answer = api.post(path, content=body, headers=FORM | {"Content-Encoding": "gzip"})
    is_problem(answer, 415)
    assert "content coding 'gzip'" in answer.json()["detail"]
    assert answer.headers["accept-encoding"] == "identity"


def test_texts_are_utf_8_whatever_the_header_says(predict_api: httpx.Client) -> None:
    body = _form(('name="image"; filename="a.png"', PNG), ('name="caption"', b"CT of the chest"))
    for charset in ("utf-16", "undefined", "latin-1"):
        headers = {"Content-Type": f"{FORM['Content-Type']}; charset={charset}"}
        is_problem(predict_api.post("/predict/location", content=body, headers=headers), 415)
    headers = {"Content-Type": f"{FORM['Content-Type']}; charset=UTF-8"}
    assert predict_api.post("/predict/location", content=body, headers=headers).status_code == 200


def test_a_large_chunked_body_of_json_is_answered_with_413(api: httpx.Client) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(12):
            yield bytes(1024**2)

    headers = {"Content-Type": "application/json"}
    is_problem(api.post("/images/bulk", content=parts(), headers=headers), 413)


@pytest.mark.parametrize("path", ["/cases/bulk", "/views", "/preview"])
def test_a_body_that_does_not_arrive_is_answered_with_408(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("app.api.factory.BodyLimit", partial(BodyLimit, body_s=0.3))
    with (
        running_service(settings) as client,
        closing(socket.create_connection((client.base_url.host, client.base_url.port or 80))) as raw,
    ):
        raw.settimeout(20)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nContent-Type: "
        kind = FORM["Content-Type"] if path == "/preview" else "application/json"
        raw.sendall(f"{head}{kind}\r\n\r\n".encode())
        received = b""
        while part := raw.recv(65536):
            received += part
        assert received.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within" in received


def test_two_captions_are_refused(predict_api: httpx.Client) -> None:
    image = ('name="image"; filename="any.png"', PNG)
    caption = ('name="caption"', b"CT of the chest")
    answer = predict_api.post("/predict/location", content=_form(image, caption, caption), headers=FORM)
    is_problem(answer, 422)
    assert answer.json()["detail"] == "There are 2 fields caption; send one."


def test_the_preview_is_what_the_model_sees(api: httpx.Client) -> None:
    ramp = np.tile(np.arange(64, dtype=np.int16), (32, 1))
    answer = ask(api, "/preview", dicom(ramp, WindowCenter=32, WindowWidth=65, PhotometricInterpretation="MONOCHROME1"))
    levels = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert np.abs(levels[0] - (255 - np.arange(64) * 255 / 64)).max() <= 3
    transparent = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    buffer = io.BytesIO()
    transparent.save(buffer, "PNG")
    preview = Image.open(io.BytesIO(ask(api, "/preview", buffer.getvalue()).content))
    assert preview.convert("L").getextrema() == (0, 0)


def _connection(client: httpx.Client) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)


def _chunks(count: int) -> Iterator[bytes]:
    yield _form(('name="image"', b""))[:-18]
    for _ in range(count):
        yield bytes(2**20)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_everything_first_reads_the_413(api: httpx.Client, chunked: bool) -> None:
    with closing(_connection(api)) as connection:
        body = _chunks(40) if chunked else bytes(40 * 2**20)
        connection.request("POST", "/preview", body, FORM, encode_chunked=chunked)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("connection")) == (413, "close")
        assert b"larger than the limit of 10.1 MiB" in answer.read()


def test_every_early_answer_can_be_read(api: httpx.Client) -> None:
    """There is no model: that is said before the body is read."""
    with closing(_connection(api)) as connection:
        connection.request("POST", "/predict/modality", bytes(9 * 2**20), FORM)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("content-type")) == (503, "application/problem+json")
        answer.read()


def test_a_small_body_that_is_not_read_leaves_the_connection_usable(api: httpx.Client) -> None:
    with closing(_connection(api)) as connection:
        for _ in range(3):
            connection.request("POST", "/predict/modality", bytes(900), FORM)
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, answer.getheader("connection")) == (503, None)


def test_a_client_that_waits_for_leave_is_refused_at_once(api: httpx.Client) -> None:
    with closing(socket.create_connection((api.base_url.host, api.base_url.port or 80))) as raw:
        raw.settimeout(20)
        started = time.monotonic()
        raw.sendall(b"POST /preview HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        received = b""
        while part := raw.recv(65536):
            received += part
        assert received.startswith(b"HTTP/1.1 413")
        assert time.monotonic() - started < 4


@pytest.mark.parametrize("pause_s", [0.01, 60.0], ids=["sends without end", "stops sending"])
def test_lingering_has_a_bound(pause_s: float) -> None:
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    async def receive() -> Message:
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
    started = time.monotonic()
    asyncio.run(BodyLimit(app, lambda _: 10**9, linger_s=0.6, idle_s=0.3)(scope, receive, send))
    assert 0.25 < time.monotonic() - started < 3
    assert [message.get("more_body", False) for message in sent] == [False, True, False]
    assert (b"connection", b"close") in sent[0]["headers"]
