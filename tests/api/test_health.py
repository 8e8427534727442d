import asyncio
import gc
import json
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import httpx
import pytest
from pymongo.database import Database

from app.api.routes.health import live
from app.core.settings import Settings, load_settings
from app.data import schema
from app.data.client import connect
from app.data.mongod import embedded_mongod, find_mongod
from app.data.seed import seed
from app.serving.model_manager import ModelManager
from tests.conftest import Document
from tests.service import is_ok, wait_for

Serve = Callable[[Settings], AbstractContextManager[httpx.Client]]


def test_alive_and_ready(api: httpx.Client) -> None:
    assert api.get("/health/live").json() == {"status": "alive"}
    answer = wait_for(api, "/health/ready", is_ok)
    assert answer.status_code == 200
    assert answer.json()["database"]["cases"] == 40
    assert answer.json()["models"]["modality"]["state"] == "missing"


def test_the_faults_are_not_looked_for_at_each_call(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_for(api, "/health/ready", is_ok).json()["database"]["faults"] == []
    monkeypatch.setattr("app.data.integrity._FAULTS_S", 60)
    looked = []

    async def missing_indexes(_: object) -> list[str]:
        looked.append(time.monotonic())
        return []

    monkeypatch.setattr("app.data.integrity.missing_indexes", missing_indexes)
    for _ in range(5):
        assert api.get("/health/ready").status_code == 200
    assert len(looked) <= 1


def test_an_empty_database_is_not_ready(settings: Settings, serve: Serve) -> None:
    with serve(settings) as client:
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["database"] == {
            "cases": 0,
            "images": 0,
            "dataset_version": None,
            "faults": [],
            "reachable": True,
            "seeded": False,
        }
        assert client.get("/health/live").status_code == 200


def test_the_service_outlives_its_database(serve: Serve, tmp_path: Path, generated_dataset: Path) -> None:
    """The database goes away and comes back at the same address; the service needs no restart."""
    db, run = tmp_path / "db", tmp_path / "run"
    with embedded_mongod(db, run, find_mongod()) as uri:
        settings = load_settings(home=tmp_path, mongo_uri=uri, data_dir=generated_dataset, mongo_server_selection_s=0.5)
        with connect(uri, settings, timeout_s=0) as client:
            seed(client.get_default_database("medpix"), generated_dataset)
    with serve(settings) as client:
        answer = client.get("/cases/MPX1008")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["type"] == "urn:medpix:problem:unavailable"
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        with embedded_mongod(db, run, find_mongod()):
            assert wait_for(client, "/cases/MPX1008", is_ok).status_code == 200
            assert wait_for(client, "/health/ready", is_ok).status_code == 200
    _collect_sockets()


def test_what_is_removed_from_the_database_is_named_and_nothing_fails(
    settings: Settings,
    serve: Serve,
    database: Database[Document],
    generated_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed(database, generated_dataset)
    monkeypatch.setattr("app.data.integrity._FAULTS_S", 0)
    with serve(settings) as client:
        assert wait_for(client, "/health/ready", is_ok).json()["database"]["faults"] == []
        for name in (
            schema.CASES,
            schema.IMAGES,
            schema.ANNOTATIONS,
            schema.SEED_RUNS,
            schema.VIEWS,
            schema.IMAGE_COUNTS,
        ):
            database[name].drop_indexes()
        ready = client.get("/health/ready")
        assert ready.status_code == 200  # slower, but right
        missing = [index for indexes in schema.index_names().values() for index in indexes]
        for index in missing:
            named = [fault for fault in ready.json()["database"]["faults"] if f"index {index} of" in fault]
            assert named, index
        image = client.get("/images?limit=1").json()["items"][0]["image"]
        case = image.partition("_")[0]
        database[schema.CASES].delete_one({"_id": case})
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert any("Clinical_reports holds 39" in fault for fault in ready.json()["database"]["faults"])
        answers = {
            path: client.get(path).status_code
            for path in (
                *(f"/images/{image}", f"/images/{image}/file", f"/cases/{case}", "/images?limit=100&sort=age"),
                *("/images?expand=case", "/cases?sort=age", "/facets", "/statistics?of=cases", "/search?q=brain"),
                *("/export?of=records", "/export/images.csv", "/export/cases.zip", "/export/croissant", "/annotations"),
            )
        }
        refused = {path: status for path, status in answers.items() if status != 200}
        assert refused == {
            f"/images/{image}": 503,
            f"/cases/{case}": 404,
            **dict.fromkeys((f"/images/{image}/file", "/images?expand=case", "/export?of=records"), 503),
            **dict.fromkeys(("/export/images.csv", "/export/croissant"), 503),
            "/export/cases.zip": 422,  # a zip holds image files
        }
        seed(database, generated_dataset)  # as every start does
        assert wait_for(client, "/health/ready", is_ok).json()["database"]["faults"] == []
        assert wait_for(client, f"/images/{image}", is_ok).status_code == 200


def _collect_sockets() -> None:
    """PyMongo leaves a socket to the garbage collector when its monitor is cancelled while it connects."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_a_gpu_that_failed_for_good_is_not_alive() -> None:
    class Failed:
        fatal_error = "CUDA error: an illegal memory access was encountered"

    answer = asyncio.run(live(cast("ModelManager", Failed())))
    assert answer.status_code == 503
    assert json.loads(bytes(answer.body)) == {"status": "failed", "detail": Failed.fatal_error}
