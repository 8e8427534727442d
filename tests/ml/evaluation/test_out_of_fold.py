from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database

from app.data.schema import MODELS
from ml.dataset.labels import LOCATION, LOCATION_CATEGORY, TASKS
from ml.dataset.records import Record
from ml.evaluation.duplicate_patients import patients
from ml.evaluation.folds import make_folds
from ml.evaluation.out_of_fold import (
    METRICS,
    Pooled,
    calibrate_out_of_fold,
    needs_calibration,
    predict_folds,
    recalibrate,
)
from ml.evaluation.retrain import Scratch
from ml.models.fusion import FusedModel
from ml.registry.artifacts import BusyError, exclusive_lock
from ml.registry.model_card import NEVER_CONFIDENT
from ml.registry.registry import Registry, load_reference
from ml.training.context import Options
from ml.training.progress import silent
from tests.ml.conftest import Document

NAMES = ("compact", "caption-location", "fused-location")


@pytest.fixture
def registry(database: Database[Document], own_models: Path) -> Registry:
    """The trained models of the session in a database and a folder of this test."""
    return Registry(database, own_models)


def test_models_are_registered_again_with_other_calibration_and_the_same_weights(
    registry: Registry, database: Database[Document], images_dir: Path
) -> None:
    before = {name: registry.get(name) for name in NAMES}
    assert set(needs_calibration(list(registry.cards()))) == set(NAMES)
    cards = calibrate_out_of_fold(NAMES, database, images_dir, registry.models_dir, device="cpu", epochs=1)
    assert {card.name for card in cards} == set(NAMES)
    for card in cards:
        former = before[card.name]
        assert card.version != former.version
        assert card.created_at == former.created_at
        assert {file.sha256 for file in card.files} == {file.sha256 for file in former.files}
        assert card.calibrated_on == "out-of-fold"
        assert card.metrics["dev"].keys() == former.metrics["dev"].keys()
        figures = card.metrics[METRICS]
        assert figures.keys() == card.tasks.keys()
        images = database["Image_Descriptions"].count_documents({"split": {"$in": ["train", "dev"]}})
        assert all(0 < own["n"] <= images for own in figures.values())
        assert (load_reference(card, registry.models_dir) is None) == (card.name == "caption-location")
    assert needs_calibration(list(registry.cards())) == []
    fused = registry.load("fused-location")
    assert isinstance(fused, FusedModel)
    # Its image half is calibrated as the image model is: answers without a caption are this half's.
    image = registry.get("compact").temperature
    assert fused.image_model.card.temperature == image
    assert fused.card.settings["halves"]["image"]["temperature"] == image
    assert fused.card.thresholds_image_only.keys() == {LOCATION, LOCATION_CATEGORY}
    assert list((registry.models_dir / ".training").glob("retrain-oof-*")) == []


def test_a_model_that_was_retrained_meanwhile_is_left_alone(
    registry: Registry, database: Database[Document], images_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict_and_replace(*arguments: object) -> dict[str, Pooled]:
        database[MODELS].update_one({"_id": "caption-location"}, {"$set": {"version": "20990101T000000Z-00000000"}})
        return predict_folds(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr("ml.evaluation.out_of_fold.predict_folds", predict_and_replace)
    names = ("caption-location",)
    assert calibrate_out_of_fold(names, database, images_dir, registry.models_dir, device="cpu") == []
    assert registry.get("caption-location").calibrated_on == "dev"


def test_one_process_at_a_time_calibrates_and_the_error_says_so(
    registry: Registry,
    database: Database[Document],
    images_dir: Path,
    train_records: list[Record],
    dev_records: list[Record],
) -> None:
    names = ("caption-location",)
    options = {name: Options(weights=registry.get(name).init) for name in names}
    folder = Scratch(registry.models_dir / ".training").folder("oof", [*train_records, *dev_records], options)
    with (
        exclusive_lock("another process", folder),
        pytest.raises(BusyError, match="the models are being calibrated out of fold already, by process"),
    ):
        calibrate_out_of_fold(names, database, images_dir, registry.models_dir, device="cpu")


def test_every_image_is_predicted_once_by_a_model_that_never_saw_its_patient(
    train_records: list[Record], dev_records: list[Record], tmp_path: Path
) -> None:
    records = [*train_records, *dev_records]
    folds = list(make_folds(records, 3, 0))
    pooled = predict_folds(
        ["caption-location"], folds, {"caption-location": Options()}, torch.device("cpu"), tmp_path, silent
    )["caption-location"]
    assert sorted(record.image for record in pooled.records) == sorted(record.image for record in records)
    assert pooled.outputs is None
    assert pooled.encoded is not None
    assert len(pooled.encoded) == len(pooled.fold) == len(records)
    owner = dict(zip([record.image for record in records], patients(records).tolist(), strict=True))
    for number, fold in enumerate(folds, start=1):
        held_out = {owner[record.image] for record in pooled.only(pooled.fold == number).records}
        assert held_out.isdisjoint(owner[record.image] for record in (*fold.train, *fold.dev))


def test_a_threshold_that_fails_on_other_patients_is_withdrawn(
    registry: Registry, train_records: list[Record], dev_records: list[Record], tmp_path: Path
) -> None:
    folds = list(make_folds([*train_records, *dev_records], 3, 0))
    options = {"caption-location": Options()}
    pooled = predict_folds(["caption-location"], folds, options, torch.device("cpu"), tmp_path, silent)
    model = registry.load("caption-location")

    def confident(target: float) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ml.evaluation.out_of_fold.TARGET_ACCURACY", dict.fromkeys(TASKS, target))
            patch.setattr("ml.training.train.TARGET_ACCURACY", dict.fromkeys(TASKS, 0.0))
            patch.setattr("ml.training.calibration.LEAST_PROBABILITY", 0.0)
            recalibrate(model, pooled["caption-location"])
        own: dict[str, Any] = model.card.metrics[METRICS][LOCATION]["confident"]
        return own

    kept = confident(0.0)
    assert kept["n"] > 0
    assert model.card.threshold(LOCATION, with_caption=True) < 1.0
    withdrawn = confident(kept["accuracy"] + 0.001)
    assert withdrawn == {
        "coverage": 0.0,
        "n": 0,
        "cases": 0,
        "accuracy": None,
        "accuracy_95": None,
        "withdrawn": kept,
    }
    assert model.card.threshold(LOCATION, with_caption=True) == NEVER_CONFIDENT
