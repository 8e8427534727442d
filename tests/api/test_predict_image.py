import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database

from app.api.routes.predict_image import LabelledPrediction
from app.core.settings import Settings
from app.data.schema import MODELS
from app.data.seed import seed
from ml.dataset.records import Record
from tests.api.predict_client import ask, is_problem, stages
from tests.service import wait_for

Document = dict[str, Any]
Serve = Callable[[Settings], AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="module")
def record(records: list[Record]) -> Record:
    return next(record for record in records if record.split == "test" and record.caption)


def test_an_image_of_the_dataset_is_predicted_beside_its_labels(predict_api: httpx.Client, record: Record) -> None:
    answer = predict_api.get(f"/images/{record.image.lower()}/predict")
    assert answer.status_code == 200, answer.text
    assert "wait" in stages(answer)
    body = LabelledPrediction.model_validate(answer.json())
    stored = predict_api.get(f"/images/{record.image}").json()
    assert (body.image, body.u_id, body.split) == (record.image, record.u_id, "test")
    assert body.truth.model_dump() == {name: stored[name] for name in ("modality", "location", "location_category")}
    assert body.caption == stored["caption"]
    for task, result in (("modality", body.modality), ("location", body.location)):
        alone = ask(predict_api, f"/predict/{task}", record.path.read_bytes(), stored["caption"]).json()
        assert result.prediction is not None
        assert result.prediction.label == alone["label"]
        assert result.prediction.inputs_used == alone["inputs_used"]
        assert result.truth == stored[task]
        assert result.correct == (alone["label"] == stored[task])


def test_the_caption_can_be_left_out(predict_api: httpx.Client, record: Record) -> None:
    body = predict_api.get(f"/images/{record.image}/predict?caption=false").json()
    assert body["caption"] is None
    assert body["location"]["prediction"]["inputs_used"] == ["image"]


def test_the_modality_is_known_again_from_an_upload(predict_api: httpx.Client, record: Record) -> None:
    assert predict_api.get(f"/images/{record.image}/predict").status_code == 200
    assert ask(predict_api, "/predict/modality", record.path.read_bytes()).headers["x-cache"] == "hit"


def test_a_training_image_says_that_it_proves_nothing(predict_api: httpx.Client, records: list[Record]) -> None:
    image = next(record.image for record in records if record.split == "train")
    notes = predict_api.get(f"/images/{image}/predict").json()["modality"]["prediction"]["notes"]
    assert any("means little" in note for note in notes)


def test_an_image_that_is_not_there_is_said(predict_api: httpx.Client) -> None:
    is_problem(predict_api.get("/images/MPX9999_synpic11/predict"), 404)
    is_problem(predict_api.get("/images/knee/predict"), 422)


def test_a_model_in_training_does_not_hide_the_other(
    settings: Settings,
    serve: Serve,
    database: Database[Document],
    ml_database: Database[Document],
    models_dir: Path,
    generated_dataset: Path,
    record: Record,
) -> None:
    seed(database, generated_dataset)
    compact = ml_database[MODELS].find_one({"_id": "compact"})
    assert compact is not None
    card = json.loads(json.dumps(compact, default=str)) | {"created_at": compact["created_at"]}
    card["tasks"] = {"modality": card["tasks"]["modality"]}
    database[MODELS].insert_one(card)
    update = {"models_dir": models_dir, "data_dir": generated_dataset}
    with serve(settings.model_copy(update=update)) as client:
        wait_for(client, "/models", lambda answer: answer.json()["tasks"]["modality"]["state"] == "serving")
        body = client.get(f"/images/{record.image}/predict").json()
    assert body["modality"]["status"] == 200
    assert (body["location"]["status"], body["location"]["prediction"]) == (503, None)
    assert "medpix train location" in body["location"]["problem"]["detail"]
