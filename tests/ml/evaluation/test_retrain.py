import os
import time
from pathlib import Path

import pytest

from ml.dataset.records import Record
from ml.evaluation.retrain import Scratch, TrainedModels, provenance, with_needs
from ml.models.compact import CompactSettings
from ml.registry.model_card import ModelCard
from ml.registry.registry import UnknownModelError
from ml.training.context import Options
from tests.ml.conftest import MakeContext


def test_folders_are_of_records_and_options(train_records: list[Record], tmp_path: Path) -> None:
    scratch, options = Scratch(tmp_path), {"compact": Options()}
    known = scratch.folder("cv", train_records, options)
    assert scratch.folder("cv", train_records, dict(options)) == known
    others = {
        scratch.folder("seeds", train_records, options),
        scratch.folder("cv", train_records[1:], options),
        scratch.folder("cv", train_records, {"compact": Options(epochs=1)}),
        scratch.folder("cv", train_records, {"compact": Options(seed=1)}),
    }
    assert len(others | {known}) == 5


def test_what_was_used_and_what_is_old_is_cleared(train_records: list[Record], tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    used = scratch.folder("cv", train_records, {"compact": Options()})
    old, running, foreign = tmp_path / "anew-cv-old", tmp_path / "anew-cv-running", tmp_path / "compact"
    for folder in (used, old, running, foreign):
        (folder / "fold-1").mkdir(parents=True)
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    os.utime(foreign, (month_ago, month_ago))
    scratch.clear()
    assert [folder.exists() for folder in (used, old, running, foreign)] == [False, False, True, True]


def test_models_come_after_what_they_need() -> None:
    assert with_needs(["fused-location", "compact"]) == ["compact", "caption-location", "fused-location"]
    with pytest.raises(UnknownModelError, match="vgg cannot be trained anew; known are: efficientnet"):
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
    found = provenance(same, None, train_records, Options(seed=4, weights="scratch"))
    assert (found["official"], found["images"]) == (False, len(train_records))
    assert found["options"] == {"weights": "scratch", "seed": 4, "epochs": None, "members": None, "thorough": False}
