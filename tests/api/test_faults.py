"""What must not be lost when something breaks, is slow, or stops."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from app.api.factory import create_app
from app.core.settings import Settings
from app.serving.admission import UploadBudget
from app.serving.decode.image import decode
from app.serving.engine import Engine
from app.serving.predictor import Predictor
from tests.api.predict_client import ask, is_problem
from tests.service import is_ok, running_server, running_service, wait_for
from tests.serving.decode.dicom_files import jpeg


@dataclass
class GatedService:
    """A service whose modality model can be held back."""

    client: httpx.Client
    server: uvicorn.Server
    predictor: Predictor
    upload_budget: UploadBudget
    free: threading.Event
    entered: threading.Event
    runs: list[int]

    @property
    def engine(self) -> Engine:
        engine = self.predictor.image_encoder.engine
        assert engine is not None
        return engine


@pytest.fixture
def gated_service(predict_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatedService]:
    monkeypatch.setattr("app.serving.autotune.stream_count", lambda _: 1)  # what is held back is one worker
    app = create_app(predict_settings.model_copy(update={"cache_entries": 0, "max_batch": 4}))
    free, entered, runs = threading.Event(), threading.Event(), list[int]()
    with running_server(predict_settings, app) as (client, server):
        wait_for(client, "/health/ready", is_ok)
        predictor = app.state.models.serving["modality"]
        engine = predictor.image_encoder.engine
        run = engine._run

        def gated(pixels: Any) -> Any:
            entered.set()
            free.wait(30)
            runs.append(len(pixels))
            return run(pixels)

        [worker] = engine._workers
        engine._run = worker.run = gated
        try:
            yield GatedService(client, server, predictor, app.state.models.upload_budget, free, entered, runs)
        finally:
            free.set()


def _eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within ten seconds")


def test_a_killed_batch_task_fails_all_at_once_and_comes_back(gated_service: GatedService, png: bytes) -> None:
    gated_service.engine._restart_s = 3.0
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(ask, gated_service.client, "/predict/modality", png) for _ in range(8)]
        _eventually(lambda: gated_service.predictor.admission.active == 8 and gated_service.engine.depth > 0)
        task = gated_service.engine._task
        assert task is not None
        task.get_loop().call_soon_threadsafe(task.cancel)
        for job in jobs:  # while the model still hangs
            is_problem(job.result(), 503)
            assert job.result().headers["retry-after"]
    assert gated_service.client.get("/health/ready").status_code == 503
    assert gated_service.client.get("/health/live").status_code == 200
    is_problem(ask(gated_service.client, "/predict/modality", png), 503)
    gated_service.free.set()
    assert wait_for(gated_service.client, "/health/ready", is_ok).status_code == 200
    assert ask(gated_service.client, "/predict/modality", png).status_code == 200


def test_a_slow_model_is_answered_with_504_at_the_deadline(gated_service: GatedService, png: bytes) -> None:
    answer = ask(gated_service.client, "/predict/modality", png, headers={"X-Request-Timeout": "0.3"})
    is_problem(answer, 504)
    gated_service.free.set()
    assert ask(gated_service.client, "/predict/modality", png).status_code == 200


def _request(client: httpx.Client, data: bytes) -> tuple[http.client.HTTPConnection, bytes, dict[str, str]]:
    request = client.build_request("POST", "/predict/modality", files={"image": ("any.png", data)})
    address = client.base_url
    connection = http.client.HTTPConnection(address.host, address.port or 80, timeout=30)
    return connection, request.read(), {"Content-Type": request.headers["content-type"]}


def test_a_client_that_closes_the_connection_frees_its_place(gated_service: GatedService, png: bytes) -> None:
    first = threading.Thread(target=ask, args=(gated_service.client, "/predict/modality", png))
    first.start()
    _eventually(gated_service.entered.is_set)
    for number in range(1, 6):
        connection, body, headers = _request(gated_service.client, png)
        connection.request("POST", "/predict/modality", body, headers)
        _eventually(lambda number=number: gated_service.engine.depth == number)  # type: ignore[misc]  # bound now, as the loop goes on
        connection.close()
        _eventually(lambda: gated_service.predictor.admission.active == 1)
    gated_service.free.set()
    first.join()
    assert gated_service.runs == [1]


def test_who_would_wait_too_long_is_refused_before_the_body_is_read(gated_service: GatedService, png: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(ask, gated_service.client, "/predict/modality", png) for _ in range(4)]
        _eventually(lambda: gated_service.predictor.admission.active == 4)
        gated_service.engine._latency.seconds = 10.0
        with closing(
            socket.create_connection((gated_service.client.base_url.host, gated_service.client.base_url.port or 80))
        ) as raw:
            raw.settimeout(20)
            raw.sendall(
                b"POST /predict/modality HTTP/1.1\r\nHost: test\r\nContent-Length: 5000000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            )
            answer = raw.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 503")
        # 40 s to wait, of almost 30 that are left: half of them waiting
        assert "retry-after: 26" in answer.lower()
        gated_service.free.set()
        assert [job.result().status_code for job in jobs] == [200] * 4


def test_a_batch_is_not_taken_in_if_it_cannot_be_done_in_time(gated_service: GatedService, png: bytes) -> None:
    files = [("images", ("any.png", png))] * 20
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(ask, gated_service.client, "/predict/modality", png)
        _eventually(lambda: gated_service.predictor.admission.active == 1)
        gated_service.engine._latency.seconds = 1.0
        answer = gated_service.client.post("/predict/modality/batch", files=files)
        is_problem(answer, 503)
        assert answer.headers["retry-after"] == "6"  # 20 s to wait, of 30
        gated_service.free.set()
        assert job.result().status_code == 200
    gated_service.engine._latency.seconds = 1.0
    answer = gated_service.client.post("/predict/modality/batch", files=files)  # nobody is before it: it is tried
    assert answer.json()["succeeded"] == 20
    assert gated_service.engine.seconds_per_image < 1


def test_an_upload_that_does_not_come_is_not_waited_for(gated_service: GatedService) -> None:
    with closing(
        socket.create_connection((gated_service.client.base_url.host, gated_service.client.base_url.port or 80))
    ) as raw:
        raw.settimeout(20)
        raw.sendall(
            b"POST /predict/modality HTTP/1.1\r\nHost: test\r\nContent-Length: 5000\r\nX-Request-Timeout: 0.3\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        answer = raw.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 504")
    assert "upload was not complete" in answer
    _eventually(lambda: gated_service.upload_budget._held == 0)


def test_uploads_have_only_so_much_room(gated_service: GatedService, png: bytes) -> None:
    gated_service.upload_budget._limit = 3 * len(png)
    with ThreadPoolExecutor(2) as pool:
        job = pool.submit(ask, gated_service.client, "/predict/modality", png)
        _eventually(lambda: gated_service.upload_budget._held > len(png))
        answer = gated_service.client.post("/predict/modality/batch", files=[("images", ("any.png", png))] * 3)
        is_problem(answer, 503)
        assert "of uploads already" in answer.json()["detail"]
        gated_service.free.set()
        assert job.result().status_code == 200
    assert (
        gated_service.client.post("/predict/modality/batch", files=[("images", ("any.png", png))] * 3).status_code
        == 200
    )


def test_a_finished_image_does_not_wait_for_the_decoding_of_others(
    gated_service: GatedService, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, decoding = threading.Event(), list[bytes]()

    def decode_slowly(data: bytes, *arguments: Any) -> Any:
        if data.endswith(b"slow"):
            decoding.append(data)
            slow.wait(30)
        return decode(data, *arguments)

    monkeypatch.setattr("app.serving.image_encoder.decode", decode_slowly)
    threads = gated_service.predictor._pool._threads
    with ThreadPoolExecutor(1 + len(threads)) as pool:
        first = pool.submit(ask, gated_service.client, "/predict/modality", png)
        _eventually(gated_service.entered.is_set)
        jobs = [pool.submit(ask, gated_service.client, "/predict/modality", png + b"slow") for _ in threads]
        _eventually(lambda: len(decoding) == len(threads))
        gated_service.free.set()
        answer = first.result()
        assert not any(job.done() for job in jobs)
        slow.set()
        stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        assert list(stages) == ["wait", "decode", "queue", "run", "postprocess"]
        assert [job.result().status_code for job in jobs] == [200] * len(threads)


def test_64_images_at_once_get_the_answers_that_each_gets_alone(gated_service: GatedService) -> None:
    generator = np.random.default_rng(1)
    images = [jpeg(generator.integers(0, 256, (60 + n, 90), dtype=np.uint8), "PNG") for n in range(64)]
    with ThreadPoolExecutor(64) as pool:
        jobs = [pool.submit(ask, gated_service.client, "/predict/modality", image) for image in images]
        _eventually(lambda: gated_service.engine.depth >= 40)
        gated_service.free.set()
        together = [job.result().json() for job in jobs]
    assert max(gated_service.runs) == 4
    for image, concurrent in zip(images, together, strict=True):
        alone = ask(gated_service.client, "/predict/modality", image).json()
        assert concurrent["image"] == alone["image"]
        got, wanted = ({each["label"]: each["probability"] for each in a["probabilities"]} for a in (concurrent, alone))
        assert got == pytest.approx(wanted, abs=1e-5)
    assert len({each["image"]["sha256"] for each in together}) == 64


def test_a_decoder_that_hangs_does_not_keep_the_service_from_stopping(
    predict_settings: Settings, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, ended = threading.Event(), list[bool]()

    def hang(*_: Any) -> None:
        ended.append(free.wait(30))

    with running_service(predict_settings) as client:
        wait_for(client, "/health/ready", is_ok)
        monkeypatch.setattr("app.serving.image_encoder.decode", hang)
        is_problem(ask(client, "/predict/modality", png + b"!", headers={"X-Request-Timeout": "0.3"}), 504)
    assert ended == []
    free.set()


def test_who_comes_after_the_signal_is_refused_and_who_came_before_is_answered(
    gated_service: GatedService, png: bytes
) -> None:
    def is_refused() -> bool:
        try:
            return httpx.get(f"{gated_service.client.base_url}/health/ready").status_code != 200
        except httpx.TransportError:
            return True

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(ask, gated_service.client, "/predict/modality", png) for _ in range(3)]
        _eventually(lambda: gated_service.predictor.admission.active == 3)
        gated_service.server.should_exit = True  # what a signal does
        _eventually(is_refused)
        time.sleep(0.2)
        assert not any(job.done() for job in jobs)
        gated_service.free.set()
        assert [job.result().status_code for job in jobs] == [200] * 3


def test_sigterm_under_load_loses_no_accepted_answer(predict_settings: Settings, tmp_path: Any) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("mongo_uri", "data_dir", "models_dir", "device", "home")
    environment = {f"MEDPIX_{name.upper()}": str(getattr(predict_settings, name)) for name in names}
    log = (tmp_path / "log").open("wb")
    service = subprocess.Popen(
        [sys.executable, "-m", "app.main", "serve"],
        env=os.environ | environment | {"MEDPIX_PORT": str(port)},
        stdout=log,
        stderr=log,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _until_served(client, service)
            picture = jpeg(np.zeros((2500, 2500), dtype=np.uint8), "PNG")
            connections = []
            for number in range(40):
                connection, body, headers = _request(client, picture + str(number).encode())
                connection.request("POST", "/predict/modality", body, headers)
                connections.append(connection)
            _until_accepted(client)
            service.send_signal(signal.SIGTERM)
            answers = []
            for connection in connections:
                response = connection.getresponse()
                answers.append((response.status, json.loads(response.read())["task"]))
                connection.close()
        assert answers == [(200, "modality")] * 40
        assert service.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health/ready")
    finally:
        service.kill()
        service.wait()
        log.close()


def _until_served(client: httpx.Client, service: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert service.poll() is None
        try:
            if is_ok(client.get("/health/ready")):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not become ready within a minute")


def _until_accepted(client: httpx.Client) -> None:
    """One event loop takes connections in their order: when a later one is answered, all were taken."""
    assert client.get("/health/live", headers={"Connection": "close"}).status_code == 200
    time.sleep(0.2)
