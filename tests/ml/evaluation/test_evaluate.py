import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymongo.database import Database

from app.core.progress import Progress
from app.data import schema
from ml.dataset.image_loading import load_images
from ml.dataset.labels import TASKS
from ml.dataset.records import Record, RecordsError, targets
from ml.evaluation import splits
from ml.evaluation.evaluate import MAJORITY, Results, chosen_cards, covers, evaluate
from ml.evaluation.leaderboard import majority
from ml.evaluation.metrics import NoLabelsError, negative_log_likelihood
from ml.evaluation.published_baselines import PUBLISHED_BASELINES, baselines_for
from ml.evaluation.retrain import Scratch
from ml.evaluation.splits import content_hash
from ml.models.model_specs import MODEL_SPECS
from ml.models.predict_records import captions_of, run_captions, run_images
from ml.registry.artifacts import read_json
from ml.registry.registry import Registry, RegistryError, UnknownModelError, parse_card
from ml.training.context import Options
from tests.ml.conftest import Document


def test_the_figures_are_those_of_the_served_answers(
    results: Results, models_dir: Path, ml_database: Database[Document], test_records: list[Record]
) -> None:
    model = Registry(ml_database, models_dir).load("fused-location")
    assert model.preprocess is not None
    outputs = run_images(model, load_images(test_records, model.preprocess))
    predictions = model.combine(outputs, run_captions(model, captions_of(test_records)))
    for task, probabilities in predictions.items():
        truth = targets(test_records, task)
        figures = results["models"]["fused-location"]["tasks"][task]
        expected = float((probabilities.argmax(axis=1) == truth).mean())
        assert figures["scores"]["accuracy"] == pytest.approx(expected)
        assert figures["scores"]["n"] == len(test_records)
        assert figures["calibration"]["after"]["nll"] == figures["scores"]["nll"]
        assert sum(part["n"] for part in figures["calibration"]["before"]["reliability"]) == len(test_records)
        assert figures["temperature"] == model.card.temperature[task]
        assert figures["dev"] == model.card.metrics["dev"][task]
        assert np.array(figures["confusion"]["matrix"]).trace() == round(expected * len(test_records))


def test_figures_before_temperature_are_those_of_temperature_one(
    results: Results, models_dir: Path, ml_database: Database[Document], test_records: list[Record]
) -> None:
    model = Registry(ml_database, models_dir).load("compact")
    assert model.preprocess is not None
    outputs = run_images(model, load_images(test_records, model.preprocess))
    fitted = dict(model.card.temperature)
    model.card.temperature = dict.fromkeys(fitted, 1.0)
    for task, probabilities in model.combine(outputs, None).items():
        figures = results["models"]["compact"]["tasks"][task]["calibration"]
        expected = negative_log_likelihood(probabilities, targets(test_records, task))
        assert figures["before"]["nll"] == pytest.approx(expected, abs=1e-5)
        assert abs(fitted[task] - 1.0) > 0.01
        assert figures["after"]["nll"] != pytest.approx(expected, abs=1e-5)


def test_every_model_and_task_is_scored_and_compared(results: Results) -> None:
    assert list(results["tasks"]) == list(TASKS)
    assert results["tasks"]["modality"]["models"] == ["compact"]
    location = results["tasks"]["location"]
    assert location["models"] == ["compact", "caption-location", "fused-location"]
    rows = [MAJORITY, *location["models"]]
    compared = {(pair["first"], pair["second"]): pair for pair in location["pairs"]}
    assert set(compared) == {(first, second) for first in rows for second in rows if first != second}
    for (first, second), pair in compared.items():
        scores = {name: results["models"][name]["tasks"]["location"]["scores"] for name in location["models"]}
        accuracy = {name: compared["accuracy"] for name, compared in scores.items()}
        accuracy[MAJORITY] = location["majority"]["accuracy"]
        assert pair["difference"] == pytest.approx(accuracy[first] - accuracy[second])
        assert pair["difference"] == pytest.approx(-compared[second, first]["difference"])
    assert results["models"]["caption-location"]["tasks"]["location"]["ablations"] == {}
    assert results["models"]["compact"]["tasks"]["modality"]["shortcuts"].keys() == {
        "text bands blanked",
        "text bands alone",
    }
    assert results["models"]["fused-location"]["tasks"]["location"]["ablations"].keys() >= {"image only"}


def test_the_majority_row_always_says_the_commonest_class_of_training(
    train_records: list[Record], test_records: list[Record], results: Results
) -> None:
    baseline = majority(train_records, test_records)["modality"]
    names = [record.modality for record in train_records]
    commonest = max(sorted(set(names)), key=names.count)
    expected = [record.modality for record in test_records].count(commonest) / len(test_records)
    assert baseline.correct.mean() == pytest.approx(expected)
    row = results["tasks"]["modality"]["majority"]
    assert (row["class"], row["accuracy"]) == (commonest, pytest.approx(expected))


def test_foreign_figures_are_marked() -> None:
    rows = {row.name: row for row in PUBLISHED_BASELINES}
    assert not rows["clip-location"].comparable
    assert "not a test figure" in rows["clip-location"].note
    assert rows["RN50x16 + BioBERT, prompts"].task == "location_category"
    assert (rows["resnet50-location"].accuracy, rows["resnet50-location"].macro_f1) == (0.57, 0.31)


def test_foreign_figures_stand_beside_the_published_test_split_alone(
    database: Database[Document],
    images_dir: Path,
    own_models: Path,
    test_records: list[Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def quoted(split: str) -> list[Document]:
        evaluated = evaluate(
            database, images_dir, own_models, ["caption-location"], split=split, device="cpu", register=False
        )
        return list(evaluated["tasks"]["location"]["quoted"])

    assert quoted("test") == [], "a dataset that is not MedPix 2.0"
    database[schema.SEED_RUNS].update_one({}, {"$set": {"published": True}})
    monkeypatch.setattr(splits, "TEST_CONTENT_SHA256", content_hash(test_records))
    assert quoted("test") == baselines_for("location")
    assert quoted("dev") == []


def test_models_that_are_not_registered_are_rows_of_the_leaderboard(results: Results) -> None:
    for task, figures in results["tasks"].items():
        names = {row["name"] for row in figures["untrained"]} | set(figures["models"])
        assert names == {name for name, plan in MODEL_SPECS.items() if task in plan.tasks}


def test_a_split_without_labels_is_named(database: Database[Document], images_dir: Path, own_models: Path) -> None:
    database[schema.IMAGES].update_many({"split": "test"}, {"$set": {"norm.location": None}})
    with pytest.raises(NoLabelsError, match=r"no image of the split 'test' has a label for location, so compact"):
        evaluate(database, images_dir, own_models, ["compact"], device="cpu")


def test_a_damaged_model_is_named_before_any_is_asked(
    database: Database[Document], images_dir: Path, own_models: Path
) -> None:
    reports: list[Progress] = []
    path = next((own_models / "fused-location").rglob("network.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(RegistryError, match=r"fused-location: network\.safetensors is not what was registered"):
        evaluate(database, images_dir, own_models, ["all"], device="cpu", reporter=reports.append)
    assert not [progress for progress in reports if "predicting with" in progress.message]


def test_an_evaluation_covers_the_models_data_and_code_it_was_made_of(
    results: Results, ml_database: Database[Document], models_dir: Path
) -> None:
    cards = list(Registry(ml_database, models_dir).cards())
    version = results["split"]["dataset_version"]
    assert version is not None
    assert covers(results, cards, version)
    assert not covers(results, cards[1:], version)
    assert not covers(results, [cards[0].model_copy(update={"version": "another"}), *cards[1:]], version)
    assert not covers(results, cards, "another")
    assert not covers(results | {"code": {"version": "0", "sha256": ""}}, cards, version)
    assert not covers(results | {"split": results["split"] | {"split": "dev"}}, cards, version)
    assert not covers({}, cards, version)
    assert not covers({"split": None}, cards, version)


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
    assert parse_card(read_json(own_models / "compact" / card.version / "card.json")) == card
    assert "test" not in registry.get("fused-location").metrics


def test_without_register_and_on_dev_no_card_changes(
    database: Database[Document], images_dir: Path, own_models: Path
) -> None:
    before = list(database[schema.MODELS].find())
    evaluate(database, images_dir, own_models, ["caption-location"], device="cpu", register=False)
    evaluated = evaluate(database, images_dir, own_models, ["caption-location"], device="cpu", split="dev")
    assert list(database[schema.MODELS].find()) == before
    scores = evaluated["models"]["caption-location"]["tasks"]["location"]
    assert scores["scores"]["accuracy"] == scores["dev"]["accuracy"]
    assert evaluated["split"]["split"] == "dev"


def test_folds_and_seeds_go_on_the_card_and_into_later_evaluations(
    database: Database[Document], images_dir: Path, own_models: Path, tmp_path: Path
) -> None:
    scratch = Scratch(tmp_path / "scratch")

    def run(**more: Any) -> Results:
        return evaluate(database, images_dir, own_models, ["caption-location"], device="cpu", scratch=scratch, **more)

    first = run(cv=True, seeds=2, options=Options(seed=3))
    card = Registry(database, own_models).get("caption-location")
    folds, seeds = card.metrics["cv"]["location"], card.metrics["seeds"]["location"]
    assert len(folds["folds"]) == 5
    assert folds["run"]["images"] == database[schema.IMAGES].count_documents({})
    assert (folds["run"]["official"], folds["run"]["options"]["seed"]) == (True, 3)
    assert seeds["seeds"] == [3, 4]
    assert first["cv"]["caption-location"]["location"] == folds
    assert first["seeds"]["caption-location"]["location"] == seeds
    later = run()
    assert (later["cv"], later["seeds"]) == (first["cv"], first["seeds"])
    assert run(split="dev")["seeds"] == {}, "they were scored on test"
    image = database[schema.IMAGES].find_one({"split": "train"})
    assert image is not None
    database[schema.IMAGES].update_one({"_id": image["_id"]}, {"$set": {"norm.caption": "other data"}})
    assert (run()["cv"], run()["seeds"]) == ({}, {}), "of other data"


def test_quick_tries_go_on_no_card(database: Database[Document], images_dir: Path, own_models: Path) -> None:
    before = Registry(database, own_models).get("caption-location")
    evaluated = evaluate(
        database,
        images_dir,
        own_models,
        ["caption-location"],
        device="cpu",
        cv=True,
        seeds=2,
        options=Options(epochs=1),
    )
    card = Registry(database, own_models).get("caption-location")
    assert card.metrics.keys() - before.metrics.keys() == {"test"}
    assert card.version == before.version
    for kind in ("cv", "seeds"):
        run = evaluated[kind]["caption-location"]["location"]["run"]
        assert (run["official"], run["options"]["epochs"]) == (False, 1)


def test_retrained_models_begin_as_the_registered_model_did(
    database: Database[Document], images_dir: Path, own_models: Path
) -> None:
    def weights(**more: Any) -> str:
        evaluated = evaluate(
            database, images_dir, own_models, ["caption-location"], device="cpu", seeds=2, register=False, **more
        )
        return str(evaluated["seeds"]["caption-location"]["location"]["run"]["options"]["weights"])

    assert weights() == "scratch"
    database[schema.MODELS].update_one({"_id": "caption-location"}, {"$set": {"init": "pretrained"}})
    assert weights() == "pretrained"
    assert weights(options=Options(weights="scratch")) == "scratch"


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
    reports: list[Progress] = []
    with pytest.raises(UnknownModelError, match=r"no model is registered yet; .*`medpix train --missing`"):
        evaluate(database, images_dir, tmp_path, ["all"], reporter=reports.append)
    assert reports[-1].state == "failed"


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
