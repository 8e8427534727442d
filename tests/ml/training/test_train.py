from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database

from app.core.progress import Progress
from app.data import schema
from app.data.seed import seed
from ml.dataset.records import Record, RecordsError, snapshot_hash
from ml.models import dual_encoder_train
from ml.models.model_specs import MODEL_SPECS
from ml.models.predict_records import captions_of, run_captions, run_images
from ml.registry.artifacts import BusyError, exclusive_lock
from ml.registry.registry import Registry, UnknownModelError, load_model, load_reference
from ml.training.context import Options
from ml.training.device import amp_dtype, format_name
from ml.training.train import models_to_train, queue, queued, train_model
from tests.conftest import small_dual_encoder
from tests.ml.conftest import Document


def test_default_models_are_registered_with_whole_cards(
    models_dir: Path, ml_database: Database[Document], train_records: list[Record], dev_records: list[Record]
) -> None:
    card = Registry(ml_database, models_dir).get("compact")
    assert set(card.metrics["dev"]) == {"modality", "location", "location_category"}
    assert card.data.snapshot == snapshot_hash([*train_records, *dev_records])
    assert card.data.cases == {"train": 24, "dev": 8}
    assert card.init == "scratch"
    assert card.environment.precision == format_name(amp_dtype(torch.device("cpu")))
    assert card.parameters > 2_000_000
    assert card.seconds > 0
    assert card.settings["recipe"]["epochs"] == 2
    assert set(card.temperature) == set(card.thresholds) == set(card.tasks)
    assert "diagnosis" in card.intended_use
    assert not (models_dir / ".training" / "compact").exists()


def test_captions_of_the_generated_cases_are_learned(models_dir: Path, ml_database: Database[Document]) -> None:
    registry = Registry(ml_database, models_dir)
    assert (registry.get("caption-location").score("location_category") or 0) > 0.7
    fused = registry.get("fused-location")
    assert (fused.score("location_category") or 0) > 0.7
    assert fused.inputs == ["image", "caption"]
    half = load_reference(registry.get("compact"), models_dir)
    assert half is not None
    assert load_reference(fused, models_dir) is half, "one network, one set of embeddings, held once"


def test_training_runs_end_as_done(models_dir: Path, ml_database: Database[Document]) -> None:
    del models_dir
    runs: dict[str, dict[str, Any]] = {run["_id"]: run for run in ml_database[schema.TRAINING_RUNS].find()}
    for name in ("compact", "caption-location", "fused-location"):
        assert runs[name]["state"] == "done"
        assert runs[name]["fraction"] == 1.0
        assert runs[name]["tasks"] == list(MODEL_SPECS[name].tasks)


def test_dev_scores_are_those_of_the_served_model(
    models_dir: Path, ml_database: Database[Document], dev_records: list[Record]
) -> None:
    from ml.dataset.image_loading import load_images
    from ml.dataset.records import groups, targets
    from ml.evaluation.metrics import scores

    model = Registry(ml_database, models_dir).load("fused-location")
    assert model.preprocess is not None
    outputs = run_images(model, load_images(dev_records, model.preprocess))
    answers = model.combine(outputs, run_captions(model, captions_of(dev_records)))
    for task, probabilities in answers.items():
        scored = scores(probabilities, targets(dev_records, task), groups(dev_records))
        expected = model.card.metrics["dev"][task]
        assert scored["accuracy"] == expected["accuracy"]
        assert scored["nll"] == pytest.approx(expected["nll"], abs=1e-4)


def test_a_task_means_its_default_models(database: Database[Document], tmp_path: Path) -> None:
    def names(*wanted: str) -> list[str]:
        return models_to_train(wanted, database, tmp_path)

    assert names("modality") == ["efficientnet"]
    assert names("location") == ["caption-location", "efficientnet", "fused-efficientnet"]
    assert names("modality", "location") == ["efficientnet", "caption-location", "fused-efficientnet"]
    assert set(names("all")) == set(MODEL_SPECS)
    with pytest.raises(UnknownModelError, match="'colour' is neither a model nor a task; known are: modality"):
        names("colour")


def test_what_is_registered_is_not_trained_again_to_help(
    models_dir: Path, ml_database: Database[Document], tmp_path: Path
) -> None:
    assert models_to_train(["fused-location"], ml_database, models_dir) == ["fused-location"]
    assert models_to_train(["fused-location"], ml_database, tmp_path) == [
        *("compact", "caption-location", "fused-location")
    ], "their files are gone"
    missing = models_to_train(
        [], ml_database, models_dir, missing=["compact", "caption-location", "fused-efficientnet"]
    )
    assert missing == ["efficientnet", "fused-efficientnet"]


def test_what_is_trained_comes_before_what_is_built_on_it(models_dir: Path, ml_database: Database[Document]) -> None:
    names = models_to_train(
        ["fused-modality", "fused-location", "caption-location", "compact"], ml_database, models_dir
    )
    assert names == ["compact", "fused-modality", "caption-location", "fused-location"]


def test_waiting_models_are_noted(database: Database[Document]) -> None:
    queue(["compact"], database)
    run = database[schema.TRAINING_RUNS].find_one({"_id": "compact"})
    assert run is not None
    assert (run["state"], run["tasks"][0]) == ("queued", "modality")


@pytest.mark.gpu
def test_a_gpu_trains_a_model_for_the_service(
    ml_database: Database[Document], images_dir: Path, tmp_path: Path
) -> None:
    card = train_model(
        "resnet50-modality",
        database=ml_database,
        images_dir=images_dir,
        models_dir=tmp_path,
        device="cuda",
        options=Options(weights="scratch", epochs=1),
    )
    ml_database[schema.MODELS].delete_one({"_id": card.name})
    assert card.environment.device == "cuda:0"
    assert card.environment.precision == format_name(amp_dtype(torch.device("cuda")))
    model = load_model(card, tmp_path)
    assert model.network is not None
    assert {value.device.type for value in model.network.parameters()} == {"cpu"}


def test_what_waits_fails_with_what_it_waited_for(database: Database[Document]) -> None:
    names = ["compact", "caption-location"]

    def work() -> None:
        database[schema.TRAINING_RUNS].update_one({"_id": "compact"}, {"$set": {"state": "done"}})
        raise RecordsError("no images")

    with pytest.raises(RecordsError, match="no images"), queued(names, database):
        work()
    compact, caption = (database[schema.TRAINING_RUNS].find_one({"_id": name}) or {} for name in names)
    assert compact["state"] == "done"
    assert (caption["state"], caption["message"]) == ("failed", "not started: no images")


def test_a_model_is_trained_by_one_process_at_a_time(
    ml_database: Database[Document], images_dir: Path, tmp_path: Path
) -> None:
    def train() -> None:
        train_model("knn-colour", database=ml_database, images_dir=images_dir, models_dir=tmp_path, device="cpu")

    before = ml_database[schema.TRAINING_RUNS].find_one({"_id": "knn-colour"})
    with exclusive_lock("knn-colour is being trained", tmp_path / ".training" / "knn-colour"):
        with pytest.raises(BusyError, match="knn-colour is being trained already"):
            train()
        assert ml_database[schema.TRAINING_RUNS].find_one({"_id": "knn-colour"}) == before
    train()
    ml_database[schema.MODELS].delete_one({"_id": "knn-colour"})


def test_a_failed_run_is_reported_and_registers_nothing(database: Database[Document], tmp_path: Path) -> None:
    reports: list[Progress] = []
    with pytest.raises(RecordsError, match="run `medpix seed` first"):
        train_model("compact", database=database, images_dir=tmp_path, models_dir=tmp_path, reporter=reports.append)
    assert reports[-1].state == "failed"
    run = database[schema.TRAINING_RUNS].find_one({"_id": "compact"})
    assert run is not None
    assert run["state"] == "failed"
    assert "medpix seed" in run["message"]
    assert list(Registry(database, tmp_path).cards()) == []


def test_a_class_with_one_example_and_splits_without_captions_are_trained(
    database: Database[Document], images_dir: Path, tmp_path: Path
) -> None:
    seed(database, images_dir.parent)
    images = database[schema.IMAGES]
    alone = images.find_one({"split": "train", "norm.location": "Spine"}) or {}
    images.update_one({"_id": alone["_id"]}, {"$set": {"norm.location": "Pathology"}})
    images.update_many({"split": {"$ne": "train"}}, {"$set": {"norm.caption": None}})
    for name in ("compact", "caption-location", "fused-location"):
        card = train_model(
            name,
            database=database,
            images_dir=images_dir,
            models_dir=tmp_path,
            device="cpu",
            options=Options(epochs=1, members=1),
        )
        assert "Pathology" in card.tasks["location"]
        assert card.score("location") is not None


def test_a_split_without_labels_is_named_before_training(
    database: Database[Document], images_dir: Path, tmp_path: Path
) -> None:
    seed(database, images_dir.parent)
    database[schema.IMAGES].update_many({"split": "dev"}, {"$set": {"norm.location": None}})
    with pytest.raises(RecordsError, match="none of the 20 dev images has a location"):
        train_model("compact", database=database, images_dir=images_dir, models_dir=tmp_path, device="cpu")
    card = train_model("knn-colour", database=database, images_dir=images_dir, models_dir=tmp_path, device="cpu")
    assert card.score("modality") is not None


def test_unknown_and_unready_models_are_named(
    ml_database: Database[Document], images_dir: Path, tmp_path: Path, database: Database[Document]
) -> None:
    with pytest.raises(UnknownModelError, match="unknown model 'vgg'; known are: efficientnet"):
        train_model("vgg", database=ml_database, images_dir=images_dir, models_dir=tmp_path)
    seed(database, images_dir.parent)
    with pytest.raises(UnknownModelError, match="no model 'compact' is registered"):
        train_model("fused-location", database=database, images_dir=images_dir, models_dir=tmp_path)


def test_clip_from_scratch_is_a_dual_encoder_without_pretrained_images(
    ml_database: Database[Document], images_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual_encoder_train, "DualEncoderSettings", small_dual_encoder)
    card = train_model(
        "clip-location",
        database=ml_database,
        images_dir=images_dir,
        models_dir=tmp_path,
        device="cpu",
        options=Options(weights="scratch", epochs=1),
    )
    assert "none: trained from random weights, as asked for" in card.weights_source
    assert card.init == "scratch"
    assert Registry(ml_database, tmp_path).load("clip-location").inputs == {"image", "caption"}
    ml_database[schema.MODELS].delete_one({"_id": "clip-location"})
