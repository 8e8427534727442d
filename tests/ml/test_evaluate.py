import shutil
from pathlib import Path

import numpy as np
import pytest
from pymongo.database import Database

from app.data import schema
from app.data.seed import seed
from ml.context import Options
from ml.evaluate import MAJORITY, Results, chosen_cards, evaluate, majority
from ml.evaluation.quoted import QUOTED
from ml.images import load_images
from ml.labels import TASKS
from ml.predict import captions_of, run_captions, run_images
from ml.progress import Progress
from ml.records import Record, RecordsError, targets
from ml.registry import Registry, RegistryError, UnknownModelError, read_card
from tests.ml.conftest import Document


@pytest.fixture
def own_models(
    database: Database[Document],
    ml_database: Database[Document],
    generated_dataset: Path,
    models_dir: Path,
    tmp_path: Path,
) -> Path:
    """Copies of the trained models, registered in a seeded database of the test's own."""
    seed(database, generated_dataset)
    names = {"$in": ["compact", "caption-location", "fused-location"]}
    database[schema.MODELS].insert_many(list(ml_database[schema.MODELS].find({"_id": names})))
    return Path(shutil.copytree(models_dir, tmp_path / "models"))


def test_the_figures_are_those_of_the_served_answers(
    results: Results, models_dir: Path, ml_database: Database[Document], test_records: list[Record]
) -> None:
    model = Registry(ml_database, models_dir).load("fused-location")
    assert model.preprocess is not None
    outputs = run_images(model, load_images(test_records, model.preprocess))
    answers = model.combine(outputs, run_captions(model, captions_of(test_records)))
    for task, probabilities in answers.items():
        truth = targets(test_records, task)
        found = results["models"]["fused-location"]["tasks"][task]
        expected = float((probabilities.argmax(axis=1) == truth).mean())
        assert found["scores"]["accuracy"] == pytest.approx(expected)
        assert found["scores"]["n"] == len(test_records)
        assert found["calibration"]["after"]["nll"] == found["scores"]["nll"]
        assert sum(part["n"] for part in found["calibration"]["before"]["reliability"]) == len(test_records)
        assert found["temperature"] == model.card.temperature[task]
        assert found["dev"] == model.card.metrics["dev"][task]
        assert np.array(found["confusion"]["matrix"]).trace() == round(expected * len(test_records))


def test_every_model_and_task_is_scored_and_compared(results: Results) -> None:
    assert list(results["tasks"]) == list(TASKS)
    assert results["tasks"]["modality"]["models"] == ["compact"]
    location = results["tasks"]["location"]
    assert location["models"] == ["compact", "caption-location", "fused-location"]
    rows = [MAJORITY, *location["models"]]
    found = {(pair["first"], pair["second"]): pair for pair in location["pairs"]}
    assert set(found) == {(first, second) for first in rows for second in rows if first != second}
    for (first, second), pair in found.items():
        scores = {name: results["models"][name]["tasks"]["location"]["scores"] for name in location["models"]}
        accuracy = {name: found["accuracy"] for name, found in scores.items()}
        accuracy[MAJORITY] = location["majority"]["accuracy"]
        assert pair["difference"] == pytest.approx(accuracy[first] - accuracy[second])
        assert pair["difference"] == pytest.approx(-found[second, first]["difference"])
    assert results["models"]["caption-location"]["tasks"]["location"]["ablations"] == {}
    assert results["models"]["compact"]["tasks"]["modality"]["shortcuts"].keys() == {
        "text bands blanked",
        "text bands alone",
    }
    assert results["models"]["fused-location"]["tasks"]["location"]["ablations"].keys() >= {"image only"}


def test_the_majority_row_always_says_the_commonest_class_of_training(
    train_records: list[Record], test_records: list[Record], results: Results
) -> None:
    found = majority(train_records, test_records)["modality"]
    names = [record.modality for record in train_records]
    commonest = max(sorted(set(names)), key=names.count)
    expected = [record.modality for record in test_records].count(commonest) / len(test_records)
    assert found.correct.mean() == pytest.approx(expected)
    row = results["tasks"]["modality"]["majority"]
    assert (row["class"], row["accuracy"]) == (commonest, pytest.approx(expected))


def test_foreign_figures_are_marked() -> None:
    rows = {row.name: row for row in QUOTED}
    assert not rows["clip-location"].comparable
    assert "not a test figure" in rows["clip-location"].note
    assert rows["RN50x16 + BioBERT, prompts"].task == "location_category"
    assert (rows["resnet50-location"].accuracy, rows["resnet50-location"].macro_f1) == (0.57, 0.31)


def test_the_figures_go_on_the_cards_and_replace_former_ones(
    database: Database[Document], images_dir: Path, own_models: Path, results: Results
) -> None:
    registry = Registry(database, own_models)
    assert "test" not in registry.get("compact").metrics
    registry.set_metrics(registry.get("compact"), "test", {"location": {"accuracy": -1.0}, "old": {"accuracy": 1.0}})
    evaluate(database, images_dir, own_models, ["compact"], device="cpu")
    card = registry.get("compact")
    expected = {task: own["scores"] for task, own in results["models"]["compact"]["tasks"].items()}
    assert card.metrics["test"].keys() == expected.keys()
    for task, scores in expected.items():
        assert card.score(task, "test") == scores["accuracy"]
        assert card.metrics["test"][task]["accuracy_95"] == scores["accuracy_95"]
    assert read_card(own_models / "compact" / card.version) == card
    assert "test" not in registry.get("fused-location").metrics


def test_without_register_and_on_dev_no_card_changes(
    database: Database[Document], images_dir: Path, own_models: Path
) -> None:
    before = list(database[schema.MODELS].find())
    evaluate(database, images_dir, own_models, ["caption-location"], device="cpu", register=False)
    found = evaluate(database, images_dir, own_models, ["caption-location"], device="cpu", split="dev")
    assert list(database[schema.MODELS].find()) == before
    scores = found["models"]["caption-location"]["tasks"]["location"]
    assert scores["scores"]["accuracy"] == scores["dev"]["accuracy"]
    assert found["split"]["split"] == "dev"


def test_cross_validation_goes_on_the_card(database: Database[Document], images_dir: Path, own_models: Path) -> None:
    found = evaluate(database, images_dir, own_models, ["caption-location"], device="cpu", cv=True, options=Options())
    assert found["cv"]["folds"] == 5
    assert found["cv"]["images"] == database[schema.IMAGES].count_documents({})
    card = Registry(database, own_models).get("caption-location")
    assert card.metrics["cv"]["location"]["folds"] == found["cv"]["models"]["caption-location"]["location"]["folds"]
    assert len(card.metrics["cv"]["location"]["folds"]) == 5


def test_models_are_named_by_task_or_name(ml_database: Database[Document], models_dir: Path) -> None:
    registry = Registry(ml_database, models_dir)

    def names(*wanted: str) -> list[str]:
        return [card.name for card in chosen_cards(wanted, registry)]

    assert names("modality") == ["compact"]
    assert names("fused-location", "fused-location") == ["fused-location"]
    assert set(names("location")) == set(names("all")) == {"compact", "caption-location", "fused-location"}
    with pytest.raises(
        UnknownModelError, match=r"resnet50-location is not registered; train it with `medpix train resnet50-location`"
    ):
        names("resnet50-location")
    with pytest.raises(UnknownModelError, match="'vgg' is neither a model nor a task; known are: modality"):
        names("vgg")


def test_no_model_says_how_to_train(database: Database[Document], images_dir: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    with pytest.raises(UnknownModelError, match=r"no model is registered yet; .*`medpix train --missing`"):
        evaluate(database, images_dir, tmp_path, ["all"], reporter=heard.append)
    assert heard[-1].state == "failed"


def test_an_empty_or_partial_database_is_named(
    database: Database[Document], images_dir: Path, own_models: Path, test_records: list[Record]
) -> None:
    torn = next(record for record in test_records if [r.u_id for r in test_records].count(record.u_id) > 1)
    database[schema.IMAGES].delete_one({"_id": torn.image})
    with pytest.raises(RecordsError, match=f"partial: 1 images that their cases list are not there .{torn.image}"):
        evaluate(database, images_dir, own_models, ["compact"], device="cpu")
    database[schema.IMAGES].delete_many({})
    with pytest.raises(RecordsError, match=r"has no train images .* run `medpix seed` first"):
        evaluate(database, images_dir, own_models, ["compact"], device="cpu")


def test_missing_model_files_are_named(database: Database[Document], images_dir: Path, own_models: Path) -> None:
    shutil.rmtree(own_models / "compact")
    with pytest.raises(RegistryError, match=r"compact: network\.safetensors is missing"):
        evaluate(database, images_dir, own_models, ["compact"], device="cpu")
