import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymongo.database import Database

from app.core.progress import Progress
from ml.dataset.records import Record
from ml.evaluation.retrain import Retrainer, Scratch, TrainedModels, provenance, with_needs
from ml.evaluation.scoring import SCORES
from ml.models.compact import CompactSettings
from ml.registry.model_card import ModelCard
from ml.registry.registry import Registry, UnknownModelError
from ml.training.context import Options
from tests.ml.conftest import Document, MakeContext


def test_folders_are_of_records_and_options(train_records: list[Record], tmp_path: Path) -> None:
    scratch, options = Scratch(tmp_path), {"compact": Options()}
    folder = scratch.folder("cv", train_records, options)
    assert scratch.folder("cv", train_records, dict(options)) == folder
    other_folders = {
        scratch.folder("seeds", train_records, options),
        scratch.folder("cv", train_records[1:], options),
        scratch.folder("cv", train_records, {"compact": Options(epochs=1)}),
        scratch.folder("cv", train_records, {"compact": Options(seed=1)}),
    }
    assert len(other_folders | {folder}) == 5


def test_what_was_used_and_what_is_old_is_cleared(train_records: list[Record], tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    used = scratch.folder("cv", train_records, {"compact": Options()})
    old, running, foreign = tmp_path / "retrain-cv-old", tmp_path / "retrain-cv-running", tmp_path / "compact"
    for folder in (used, old, running, foreign):
        (folder / "fold-1").mkdir(parents=True)
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    os.utime(foreign, (month_ago, month_ago))
    scratch.clear()
    assert [folder.exists() for folder in (used, old, running, foreign)] == [False, False, True, True]


def test_models_come_after_what_they_need() -> None:
    assert with_needs(["fused-location", "compact"]) == ["compact", "caption-location", "fused-location"]
    with pytest.raises(UnknownModelError, match="vgg cannot be retrained; known are: efficientnet"):
        with_needs(["vgg"])
    with pytest.raises(UnknownModelError, match="no model 'compact' was trained beside this one"):
        TrainedModels().load("compact")


def test_figures_stand_for_a_model_of_the_same_recipe(make_context: MakeContext, train_records: list[Record]) -> None:
    recipe = CompactSettings().recipe.to_json()

    def draft(**settings: object) -> ModelCard:
        return make_context().draft_card(
            "compact", "compact", tasks=("modality",), inputs=("image",), preprocess=None, settings=settings
        )

    registered, same = draft(recipe=recipe, learned=1), draft(recipe=recipe, learned=2)
    other, started = draft(recipe=recipe | {"epochs": 7}), draft(recipe=recipe)
    started.init = "pretrained"

    def official(card: ModelCard, options: Options) -> bool:
        return bool(provenance(card, registered, train_records, options)["official"])

    assert official(same, Options())
    assert not official(same, Options(epochs=3))
    assert not official(same, Options(members=1))
    assert not official(other, Options())
    assert not official(started, Options())
    recorded = provenance(same, None, train_records, Options(seed=4, weights="scratch"))
    assert (recorded["official"], recorded["images"]) == (False, len(train_records))
    assert recorded["options"] == {"weights": "scratch", "seed": 4, "epochs": None, "members": None}


def test_figures_of_halves_with_another_recipe_do_not_stand_for_a_fused_model(
    ml_database: Database[Document], models_dir: Path, train_records: list[Record], make_context: MakeContext
) -> None:
    registry = Registry(ml_database, models_dir)
    fused = registry.get("fused-location")
    compact = registry.get("compact")
    texture = make_context().draft_card(
        "fused-modality",
        "texture-svm",
        tasks=("modality",),
        inputs=("image",),
        preprocess=None,
        settings={"sum": {"image": 0.8, "texture": 1.0}, "image": {"name": "compact", "settings": compact.settings}},
    )
    neighbours = texture.model_copy(update={"settings": {"descriptors": ["texture"], "neighbours": 5}})

    def official(card: ModelCard, registered: ModelCard) -> bool:
        return bool(provenance(card, registered, train_records, Options())["official"])

    for registered, half in ((fused, ("halves", "image")), (texture, ("image",))):
        same, other = registered.model_copy(deep=True), registered.model_copy(deep=True)
        settings = other.settings
        for key in half:
            settings = settings[key]
        settings["settings"]["recipe"]["epochs"] += 5
        assert official(same, registered)
        assert not official(other, registered)
    learned = fused.model_copy(deep=True)
    learned.settings["fusion"]["location"]["tau"] += 0.15
    assert official(learned, fused), "weights are chosen on dev"
    caption = fused.model_copy(deep=True)
    caption.settings["halves"]["caption"]["settings"]["fit"]["strength"] = 7.0
    assert not official(caption, fused)
    learned = neighbours.model_copy(update={"settings": {"descriptors": ["texture"], "neighbours": 7}})
    assert official(learned, neighbours)
    both = neighbours.model_copy(update={"settings": {"descriptors": ["texture", "colour"], "neighbours": 5}})
    assert not official(both, neighbours)
    resized = neighbours.model_copy(update={"preprocess_hash": "of another size"})
    assert not official(resized, neighbours)


@pytest.fixture
def by_split(
    train_records: list[Record], dev_records: list[Record], test_records: list[Record]
) -> dict[str, list[Record]]:
    return {"train": train_records, "dev": dev_records, "test": test_records}


def retrainer(by_split: dict[str, list[Record]], folder: Path, reports: list[Progress], **options: Any) -> Retrainer:
    quick = Options(epochs=1, members=1, **options)
    return Retrainer(by_split, {}, torch.device("cpu"), Scratch(folder), reports.append, quick)


def test_folds_retrain_models_with_what_they_need(by_split: dict[str, list[Record]], tmp_path: Path) -> None:
    reports: list[Progress] = []
    scored = retrainer(by_split, tmp_path, reports).folds(["fused-location"], 2)
    assert list(scored) == ["compact", "caption-location", "fused-location"]
    records = [record for members in by_split.values() for record in members]
    labelled = sum(record.location is not None for record in records)
    assert scored["fused-location"]["location"]["n"] == labelled < len(records)
    assert scored["compact"]["modality"]["n"] == len(records)
    category = scored["caption-location"]["location_category"]
    assert category["accuracy"] > 0.7
    assert category["folds_mean"] == pytest.approx(sum(category["folds"]) / 2)
    low, high = category["accuracy_95"]
    assert low <= category["accuracy"] <= high
    assert list(tmp_path.rglob("*.safetensors")), "checkpoints stay until the report is written"
    assert {progress.name for progress in reports} >= {"compact, fold 1 of 2", "fused-location, fold 2 of 2"}
    assert reports[-1].state == "done"


def test_mean_and_deviation_are_over_trainings_that_differ(by_split: dict[str, list[Record]], tmp_path: Path) -> None:
    reports: list[Progress] = []
    scored = retrainer(by_split, tmp_path, reports, seed=3).seeds(["compact"], "test", 2)["compact"]["modality"]
    assert (scored["seeds"], scored["n"], list(scored["figures"])) == ([3, 4], len(by_split["test"]), list(SCORES))
    for name, figure in scored["figures"].items():
        assert figure["mean"] == pytest.approx(np.mean(figure["values"])), name
        assert figure["sd"] == pytest.approx(np.std(figure["values"], ddof=1)), name
    first, second = scored["figures"]["nll"]["values"]
    assert first != second
    assert {progress.name for progress in reports} == {"compact, seed 3", "compact, seed 4"}
    assert list(tmp_path.rglob("*.safetensors")), "checkpoints stay until the report is written"
    assert len([progress for progress in reports if "epoch 1/1" in progress.message]) == 2
    # Killed before the report was written and started again, it ends the same without training.
    reports.clear()
    again = retrainer(by_split, tmp_path, reports, seed=3).seeds(["compact"], "test", 2)["compact"]["modality"]
    assert again["figures"] == scored["figures"]
    assert not [progress for progress in reports if "epoch 1/1" in progress.message]
