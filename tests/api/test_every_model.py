"""Every model that sees an image can be served, by all addresses that ask a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from app.api.routes.explain import ExplanationView
from app.api.schemas.predictions import PredictionView
from app.core.settings import Settings
from ml.dataset.records import Record
from ml.models.model_specs import MODEL_SPECS
from ml.registry.registry import Registry
from tests.api.predict_client import CAPTION, ask, ask_many
from tests.service import is_ok, wait_for

Serve = Callable[[Settings], AbstractContextManager[httpx.Client]]

WITHOUT_IMAGE = {"caption-location", "clip-location-caption"}
NAMES = [name for name in MODEL_SPECS if name not in WITHOUT_IMAGE]
TASKS = ("modality", "location")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_sees_an_image_is_served(
    every_model: Settings, serve: Serve, records: list[Record], png: bytes, name: str
) -> None:
    tasks = [task for task in TASKS if task in MODEL_SPECS[name].tasks]
    with serve(every_model.model_copy(update={f"model_{task}": name for task in tasks})) as client:
        assert wait_for(client, "/health/ready", is_ok).status_code == 200
        served = client.get(f"/models/{name}").json()
        assert served["serves"] == sorted(tasks)
        image = records[0].image
        for task in tasks:
            answer = ask(client, f"/predict/{task}", png, CAPTION)
            prediction = PredictionView.model_validate(answer.json())
            assert prediction.model.name == name
            assert {entry.label for entry in prediction.probabilities} == set(served["card"]["tasks"][task])
            inputs = (
                ["image"] if task == "modality" or "caption" not in served["card"]["inputs"] else ["image", "caption"]
            )
            assert prediction.inputs_used == inputs
            batch = ask_many(client, f"/predict/{task}/batch", [png, b"no image", png]).json()
            assert [item["status"] for item in batch["items"]] == [200, 415, 200]
            explained = ask(client, f"/explain/{task}?format=json", png, CAPTION)
            assert ExplanationView.model_validate(explained.json()).explanation.label == prediction.label
            assert ask(client, f"/explain/{task}", png, CAPTION).headers["content-type"] == "image/png"
            for body in (
                ask(client, f"/search/similar?limit=3&task={task}", png),
                client.get(f"/images/{image}/similar?limit=3&task={task}"),
            ):
                assert len(body.json()["items"]) == 3, body.text
        labelled = client.get(f"/images/{image}/predict").json()
        assert [labelled[task]["prediction"]["model"]["name"] for task in tasks] == [name] * len(tasks)


def test_the_models_of_captions_alone_are_the_only_ones_that_see_none(every_model: Settings, ml_database: Any) -> None:
    database = ml_database.client["generated_every_model"]
    cards = list(Registry(database, every_model.model_files_dir).cards())
    assert {card.name for card in cards} == set(MODEL_SPECS)
    assert {card.name for card in cards if "image" not in card.inputs} == WITHOUT_IMAGE
