import logging
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from app.data import schema
from ml.context import Options
from ml.predict import captions_of, run_captions, run_images
from ml.progress import Progress
from ml.records import Record, RecordsError, snapshot_hash
from ml.registry import Registry, UnknownModelError
from ml.train import PLANS, models_to_train, queue, train_model
from tests.ml.conftest import Document


def test_default_models_are_registered_with_whole_cards(
    models_dir: Path, ml_database: Database[Document], train_records: list[Record], dev_records: list[Record]
) -> None:
    card = Registry(ml_database, models_dir).get("compact")
    assert set(card.metrics["dev"]) == {"modality", "location", "location_category"}
    assert card.data.snapshot == snapshot_hash([*train_records, *dev_records])
    assert card.data.cases == {"train": 24, "dev": 8}
    assert card.init == "scratch"
    assert card.parameters > 2_000_000
    assert card.seconds > 0
    assert card.settings["recipe"]["epochs"] == 2
    assert set(card.temperature) == set(card.thresholds) == set(card.tasks)
    assert "diagnosis" in card.intended_use
    assert not (models_dir / ".training" / "compact" / "member-0.safetensors").exists()


def test_captions_of_the_generated_cases_are_learned(models_dir: Path, ml_database: Database[Document]) -> None:
    registry = Registry(ml_database, models_dir)
    assert (registry.get("caption-location").score("location_category") or 0) > 0.7
    fused = registry.get("fused-location")
    assert (fused.score("location_category") or 0) > 0.7
    assert fused.inputs == ["image", "caption"]


def test_training_runs_end_as_done(models_dir: Path, ml_database: Database[Document]) -> None:
    del models_dir
    runs: dict[str, dict[str, Any]] = {run["_id"]: run for run in ml_database[schema.TRAINING_RUNS].find()}
    for name in ("compact", "caption-location", "fused-location"):
        assert runs[name]["state"] == "done"
        assert runs[name]["fraction"] == 1.0
        assert runs[name]["tasks"] == list(PLANS[name].tasks)


def test_dev_scores_are_those_of_the_served_model(
    models_dir: Path, ml_database: Database[Document], dev_records: list[Record]
) -> None:
    from ml.images import load_images
    from ml.metrics import scores
    from ml.records import groups, targets

    model = Registry(ml_database, models_dir).load("fused-location")
    assert model.preprocess is not None
    outputs = run_images(model, load_images(dev_records, model.preprocess))
    answers = model.combine(outputs, run_captions(model, captions_of(dev_records)))
    for task, probabilities in answers.items():
        found = scores(probabilities, targets(dev_records, task), groups(dev_records))
        expected = model.card.metrics["dev"][task]
        assert found["accuracy"] == expected["accuracy"]
        assert found["nll"] == pytest.approx(expected["nll"], abs=1e-4)


def test_a_task_means_its_default_models(database: Database[Document], tmp_path: Path) -> None:
    def names(*wanted: str) -> list[str]:
        return models_to_train(wanted, database, tmp_path)

    assert names("modality") == ["efficientnet"]
    assert names("location") == ["caption-location", "efficientnet", "fused-efficientnet"]
    assert names("modality", "location") == ["efficientnet", "caption-location", "fused-efficientnet"]
    assert set(names("all")) == set(PLANS)
    with pytest.raises(UnknownModelError, match="'colour' is neither a model nor a task; known are: modality"):
        names("colour")


def test_what_is_registered_is_not_trained_again_to_help(models_dir: Path, ml_database: Database[Document]) -> None:
    assert models_to_train(["fused-location"], ml_database, models_dir) == ["fused-location"]


def test_waiting_models_are_noted(database: Database[Document]) -> None:
    queue(["compact"], database)
    run = database[schema.TRAINING_RUNS].find_one({"_id": "compact"})
    assert run is not None
    assert (run["state"], run["tasks"][0]) == ("queued", "modality")


def test_a_failed_run_is_reported_and_registers_nothing(database: Database[Document], tmp_path: Path) -> None:
    heard: list[Progress] = []
    with pytest.raises(RecordsError, match="run `medpix seed` first"):
        train_model("compact", database=database, images_dir=tmp_path, models_dir=tmp_path, reporter=heard.append)
    assert heard[-1].state == "failed"
    run = database[schema.TRAINING_RUNS].find_one({"_id": "compact"})
    assert run is not None
    assert run["state"] == "failed"
    assert "medpix seed" in run["message"]
    assert list(Registry(database, tmp_path).list()) == []


def test_unknown_and_unready_models_are_named(
    ml_database: Database[Document], images_dir: Path, tmp_path: Path, database: Database[Document]
) -> None:
    with pytest.raises(UnknownModelError, match="unknown model 'vgg'; known are: efficientnet"):
        train_model("vgg", database=ml_database, images_dir=images_dir, models_dir=tmp_path)
    from app.data.seed import seed

    seed(database, images_dir.parent)
    with pytest.raises(UnknownModelError, match="no model 'compact' is registered"):
        train_model("fused-location", database=database, images_dir=images_dir, models_dir=tmp_path)


def test_without_weights_scratch_is_trained_aloud(
    ml_database: Database[Document], images_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    card = train_model(
        "clip-location",
        database=ml_database,
        images_dir=images_dir,
        models_dir=tmp_path,
        weights="scratch",
        device="cpu",
        options=Options(epochs=1),
    )
    assert card.weights_source == "none: trained from random weights, as asked for"
    assert Registry(ml_database, tmp_path).load("clip-location").inputs == {"image", "caption"}
    ml_database[schema.MODELS].delete_one({"_id": "clip-location"})
