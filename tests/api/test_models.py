from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database

from app.core.settings import Settings, load_settings
from app.data.client import connect
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import MODELS, TRAINING_RUNS
from app.data.seed import seed
from ml.training.train import queue
from tests.api.predict_client import CAPTION, ask, is_problem
from tests.service import is_ok, running_service, wait_for

Document = dict[str, Any]
Serve = Callable[[Settings], AbstractContextManager[httpx.Client]]


def test_without_a_model_the_answer_says_how_far_the_training_is(
    settings: Settings, serve: Serve, database: Database[Document], png: bytes
) -> None:
    with serve(settings) as client:
        wait_for(client, "/models", lambda answer: answer.json()["tasks"]["modality"]["state"] == "missing")
        answer = ask(client, "/predict/modality", png)
        is_problem(answer, 503)
        assert "medpix train modality" in answer.json()["detail"]
        queue(["compact"], database)
        database[TRAINING_RUNS].update_one(
            {"_id": "compact"},
            {"$set": {"state": "running", "fraction": 0.42, "eta_s": 61.0, "updated_at": datetime.now(UTC)}},
        )
        wait_for(client, "/models", lambda answer: answer.json()["tasks"]["modality"]["state"] == "running")
        answer = ask(client, "/predict/modality", png)
        is_problem(answer, 503)
        assert 40 <= int(answer.headers["retry-after"]) <= 61
        assert "42% done" in answer.json()["detail"]
        training = answer.json()["training"]
        assert 40 <= training.pop("eta_s") <= 61, "it counts down between two reports"
        assert training == {
            "model": "compact",
            "state": "running",
            "fraction": 0.42,
            "step": 1,
            "steps": 1,
            "message": "waiting for its turn",
        }
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        database[TRAINING_RUNS].update_one({"_id": "compact"}, {"$set": {"updated_at": long_ago}})
        wait_for(client, "/models", lambda answer: answer.json()["tasks"]["modality"]["state"] == "failed")
        assert "stopped reporting" in ask(client, "/predict/modality", png).json()["detail"]


def test_a_model_that_appears_is_served_without_a_restart(
    settings: Settings,
    serve: Serve,
    database: Database[Document],
    ml_database: Database[Document],
    models_dir: Path,
    png: bytes,
) -> None:
    with serve(settings.model_copy(update={"models_dir": models_dir})) as client:
        wait_for(client, "/models", lambda answer: answer.json()["tasks"]["modality"]["state"] == "missing")
        assert ask(client, "/predict/modality", png).status_code == 503
        database[MODELS].insert_many(ml_database[MODELS].find())
        wait_for(client, "/models", lambda answer: answer.json()["tasks"]["location"]["state"] == "serving")
        assert ask(client, "/predict/modality", png).status_code == 200
        assert ask(client, "/predict/location", png, CAPTION).status_code == 200


@pytest.mark.parametrize("hashes_read", [True, False])
def test_predictions_go_on_while_the_database_is_down(
    ml_database: Database[Document],
    models_dir: Path,
    generated_dataset: Path,
    tmp_path: Path,
    warm_home: Callable[[Path], Path],
    png: bytes,
    hashes_read: bool,
) -> None:
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        settings = load_settings(
            home=warm_home(tmp_path),
            mongo_uri=uri,
            data_dir=generated_dataset,
            models_dir=models_dir,
            device="cpu",
            mongo_server_selection_s=0.3,
        )
        with connect(uri, settings, timeout_s=0) as client:
            own = client.get_default_database("medpix")
            seed(own, generated_dataset)
            own[MODELS].insert_many(ml_database[MODELS].find())
        service = running_service(settings)
        api = service.__enter__()
        if hashes_read:  # a service that is ready has read which images there are
            wait_for(api, "/health/ready", is_ok)
        else:
            wait_for(api, "/models", lambda models: models.json()["tasks"]["modality"]["state"] == "serving")
    try:
        answer = ask(api, "/predict/modality", png)
        assert answer.status_code == 200, answer.text
        if hashes_read:
            assert answer.json()["in_dataset"]["split"] == "test"
        else:
            assert answer.json()["in_dataset"] is None
            assert "database could not be asked" in answer.json()["notes"][0]
        assert api.get("/cases/MPX1008").status_code == 503
    finally:
        service.__exit__(None, None, None)


def test_models_say_why_they_serve(predict_api: httpx.Client) -> None:
    body = predict_api.get("/models").json()
    assert body["training"] is None, "nothing was started"
    assert body["tasks"]["modality"]["reason"] == "the only registered model that answers modality from an image"
    location = body["tasks"]["location"]
    other = {"compact": "fused-location", "fused-location": "compact"}[location["model"]]
    scores = {
        item["card"]["name"]: item["card"]["metrics"]["dev"]["location"]["accuracy"]
        for item in body["items"]
        if item["card"]["name"] in (location["model"], other)
    }
    assert location["reason"] == (
        f"best accuracy on dev, {scores[location['model']]:.3f}, before {other} with {scores[other]:.3f}"
    )
