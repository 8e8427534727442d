"""The image that is analysed, as PNG."""

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.routes.preview import _SLOTS
from app.core.settings import load_settings
from app.serving.admission import UploadBudget
from app.serving.decode.image import decode
from tests.serving.decode.dicom_files import dicom
from tests.serving.hostile_files import accepted


def _preview(client: httpx.Client, data: bytes, name: str = "scan") -> httpx.Response:
    return client.post("/preview", files={"image": (name, data)})


def test_a_dicom_file_becomes_the_image_that_the_models_are_given(api: httpx.Client) -> None:
    pixels = (np.arange(64 * 48) % 4096).astype(np.uint16).reshape(48, 64)
    file = dicom(pixels)
    answer = _preview(api, file, "scan.dcm")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "no-store"
    preview = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"))
    expected = np.asarray(decode(file, load_settings()).image.convert("L"))
    assert preview.shape == (48, 64)
    assert np.array_equal(preview, expected)


def test_a_large_image_is_made_smaller(api: httpx.Client) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 2000), np.uint8)).save(stream, "PNG")
    answer = _preview(api, stream.getvalue())
    assert Image.open(io.BytesIO(answer.content)).size == (1024, 154)


def test_an_upload_is_not_read_while_no_slot_is_free(api: httpx.Client) -> None:
    for _ in range(2):
        assert _SLOTS.acquire(blocking=False)
    try:
        with socket.create_connection(("127.0.0.1", api.base_url.port or 0), timeout=10) as connection:
            connection.sendall(
                b"POST /preview HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\nExpect: 100-continue\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 503 ")
    finally:
        for _ in range(2):
            _SLOTS.release()


def test_an_upload_counts_into_the_budget_of_all(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = []

    @contextmanager
    def reserve(_: UploadBudget, size: int) -> Iterator[None]:
        reserved.append(size)
        yield

    monkeypatch.setattr(UploadBudget, "reserve", reserve)
    answer = _preview(api, accepted()["grey"])
    assert answer.status_code == 200
    assert reserved == [int(answer.request.headers["content-length"])]


@pytest.mark.parametrize(("data", "status"), [(b"no image", 415), (b"", 422)])
def test_what_is_no_image_is_a_problem(api: httpx.Client, data: bytes, status: int) -> None:
    answer = _preview(api, data)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
