from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from PIL import Image
from pymongo.database import Database

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record
from ml.evaluation import robustness as probes
from ml.evaluation.model_outputs import ImageCache, ModelOutputs
from ml.evaluation.robustness import (
    ablations,
    age_band,
    as_grey,
    as_rgb,
    blank_bands,
    caption_of_another_case,
    file_modes,
    mirror,
    only_bands,
    shortcuts,
    subgroups,
    with_alpha,
)
from ml.models.base import Floats, InputError, Outputs, ServedModel
from ml.models.network import ServingNetwork
from ml.registry.model_card import ModelCard
from ml.registry.registry import Registry
from tests.ml.conftest import Document, MakeContext


class Reader(ServedModel):
    """Knows the category from the first word of a caption; without caption it always says the first class."""

    def encode_images(self, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> dict[str, Floats]:
        return {"light": pixels.reshape(len(pixels), -1).mean(axis=1, keepdims=True).astype(np.float32)}

    def encode_captions(self, captions: Sequence[str | None]) -> Floats:
        classes = labels.LOCATION_CATEGORIES
        rows = [np.eye(5)[classes.index(text)] if text else np.full(5, np.nan) for text in captions]
        return np.array(rows, dtype=np.float32)

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        if caption_out is None:
            assert image_out is not None
            caption_out = np.full((len(image_out["light"]), 5), np.nan, dtype=np.float32)
        answer = np.where(np.isnan(caption_out), np.eye(5, dtype=np.float32)[0], caption_out)
        if image_out is not None:
            answer[image_out["light"][:, 0] == 0] = np.eye(5)[4]  # nothing to see
        elif np.isnan(caption_out).any():
            raise InputError("needs something")
        return {labels.LOCATION_CATEGORY: answer.astype(np.float32)}

    def save(self, folder: Path) -> list[str]:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        raise NotImplementedError


@pytest.fixture
def records(train_records: list[Record]) -> list[Record]:
    """Six records of six cases of two categories; the last one lacks its caption."""
    first = {record.u_id: record for record in train_records if record.caption}
    places = ("Abdomen", "Abdomen", "Head", "Head", "Head", "Head")
    chosen = [
        replace(record, location_category=place, caption=place)
        for record, place in zip(first.values(), places, strict=False)
    ]
    return [*chosen[:-1], replace(chosen[-1], caption="")]


@pytest.fixture
def outputs(make_context: MakeContext, records: list[Record]) -> ModelOutputs:
    card = make_context().draft_card(
        "reader",
        "none",
        tasks=(labels.LOCATION_CATEGORY,),
        inputs=("image", "caption"),
        preprocess=Preprocess(size=32),
        settings={},
    )
    return ModelOutputs.compute(Reader(card), records, ImageCache())


def test_bands_are_blanked_or_kept() -> None:
    white = Image.new("L", (5, 128), 255)
    rows = np.asarray(blank_bands(white).convert("L"))[:, 0]
    assert (rows == 0).nonzero()[0].tolist() == [*range(10), *range(114, 128)]
    assert (np.asarray(only_bands(white).convert("L"))[:, 0] == 255 - rows).all()


def test_ablations_of_a_model_that_reads(outputs: ModelOutputs) -> None:
    kinds = ablations(outputs)[labels.LOCATION_CATEGORY]
    assert kinds["image and caption"]["accuracy"] == pytest.approx(5 / 6)
    assert kinds["image and caption"]["both_is_better_by"]["difference"] == 0
    assert kinds["image only"]["accuracy"] == pytest.approx(2 / 6)
    assert kinds["image only"]["both_is_better_by"]["difference"] == pytest.approx(3 / 6)
    assert (kinds["caption only"]["accuracy"], kinds["caption only"]["n"]) == (1.0, 5)
    assert kinds["image, caption of another case"]["accuracy"] < 5 / 6


def test_a_model_with_one_input_has_no_ablation(outputs: ModelOutputs) -> None:
    assert ablations(replace(outputs, caption_out=None)) == {}
    assert shortcuts(replace(outputs, image_out=None), ImageCache()) == {}


def test_what_cannot_be_asked_is_left_out(outputs: ModelOutputs, records: list[Record]) -> None:
    none = [replace(record, caption="") for record in records]
    kinds = ablations(ModelOutputs.compute(outputs.model, none, ImageCache()))[labels.LOCATION_CATEGORY]
    assert set(kinds) == {"image and caption", "image only", "image, caption of another case"}
    one_case = [replace(record, u_id="MPX1") for record in records]
    kinds = ablations(ModelOutputs.compute(outputs.model, one_case, ImageCache()))[labels.LOCATION_CATEGORY]
    assert set(kinds) == {"image and caption", "image only", "caption only"}


def test_file_modes_change_the_mode_and_nothing_else() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for image in (Image.fromarray(colours), Image.fromarray(colours).convert("P"), Image.fromarray(colours[..., 0])):
        plain = np.asarray(image.convert("RGB"))
        assert (as_rgb(image).mode, as_grey(image).mode, with_alpha(image).mode) == ("RGB", "L", "RGBA")
        assert (np.asarray(as_rgb(image)) == plain).all()
        assert (np.asarray(with_alpha(image)) == np.dstack([plain, np.full((8, 8), 255)])).all()


def test_file_modes_change_no_answer_of_a_model_that_sees_pixels(outputs: ModelOutputs) -> None:
    for kind in file_modes(outputs, ImageCache())[labels.LOCATION_CATEGORY].values():
        assert (kind["changed_inputs"], kind["changed_answers"], kind["largest_change"]) == (0, 0, 0.0)
        assert kind["accuracy"] == pytest.approx(5 / 6)


def test_file_modes_show_a_model_that_sees_something_else(
    outputs: ModelOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def black(image: Image.Image) -> Image.Image:
        return Image.new("L", image.size)

    monkeypatch.setattr(probes, "FILE_MODES", {"black": black})
    modes = file_modes(outputs, ImageCache())[labels.LOCATION_CATEGORY]["black"]
    assert (modes["changed_inputs"], modes["changed_answers"], modes["largest_change"]) == (6, 6, 1.0)
    assert modes["accuracy"] == 0.0
    assert file_modes(replace(outputs, image_out=None), ImageCache()) == {}


def test_the_mirror_is_measured_against_one_view(
    ml_database: Database[Document], models_dir: Path, test_records: list[Record]
) -> None:
    registry = Registry(ml_database, models_dir)
    for name in ("compact", "fused-location"):
        model = registry.load(name)
        network = model.network
        assert isinstance(network, ServingNetwork)
        whole = ModelOutputs.compute(model, test_records, ImageCache())
        figures = mirror(whole, ImageCache())
        assert network.flip, "the model is as it was"
        network.flip = False
        once = ModelOutputs.compute(model, test_records, ImageCache())
        for task, predictions in once.predictions().items():
            assert not np.array_equal(predictions.probabilities, whole.predictions()[task].probabilities)
            assert figures[task]["without_mirror"]["accuracy"] == predictions.correct.mean()
            assert figures[task]["with_mirror"]["accuracy"] == whole.predictions()[task].correct.mean()
        assert mirror(once, ImageCache()) == {}, "it looks once"


def test_a_model_without_views_has_no_mirror(outputs: ModelOutputs) -> None:
    assert mirror(outputs, ImageCache()) == {}


def test_the_shortcut_probe_shows_edited_images(outputs: ModelOutputs) -> None:
    figures = shortcuts(outputs, ImageCache())[labels.LOCATION_CATEGORY]
    assert set(figures) == {"text bands blanked", "text bands alone"}
    assert figures["text bands blanked"]["accuracy"] == pytest.approx(5 / 6)
    assert figures["text bands blanked"]["whole_is_better_by"]["difference"] == 0
    whole = outputs.image_out
    assert whole is not None
    for edit, brighter in ((blank_bands, True), (only_bands, False)):
        edited = ModelOutputs.compute(outputs.model, outputs.records, ImageCache(), edit).image_out
        assert edited is not None
        assert (edited["light"] > whole["light"] / 2).all() == brighter


def test_a_caption_never_comes_from_the_own_case() -> None:
    groups = np.array(["a"] * 30 + ["b"] * 5 + ["c"])
    drawn = caption_of_another_case(groups, seed=3)
    assert (groups[drawn] != groups).all()
    assert set(groups[drawn[:30]]) == {"b", "c"}
    assert np.array_equal(drawn, caption_of_another_case(groups, seed=3))
    with pytest.raises(ValueError, match="two cases"):
        caption_of_another_case(np.array(["a", "a"]))


def test_age_bands_meet_without_gap() -> None:
    ages = (None, 0, 17, 18, 39, 40, 64, 65, 92)
    bands = ("unknown", "0-17", "0-17", "18-39", "18-39", "40-64", "40-64", "65+", "65+")
    assert tuple(map(age_band, ages)) == bands


def test_subgroups_split_the_rows_and_score_each(outputs: ModelOutputs, records: list[Record]) -> None:
    changed = [replace(record, plane="Transverse", sex=None, modality="CT") for record in records]
    changed[0] = replace(changed[0], plane="Coronal", modality="MR")
    groups = subgroups(outputs.predictions()[labels.LOCATION_CATEGORY], changed)
    given = [*records[:-1], replace(records[-1], caption="a")]
    empty = subgroups(outputs.predictions()[labels.LOCATION_CATEGORY], given)["caption"]["placeholder"]
    assert empty == {"n": 0, "cases": 0, "accuracy": None, "accuracy_95": None}
    for values in groups.values():
        assert sum(value["n"] for value in values.values()) == 6
    assert {plane: value["n"] for plane, value in groups["plane"].items()} == {"Axial": 5, "Coronal": 1}
    assert groups["modality"]["MR"]["accuracy"] == 1.0
    assert groups["modality"]["CT"]["accuracy"] == pytest.approx(4 / 5)
    assert groups["sex"].keys() == {"unknown"}
    assert groups["caption"]["placeholder"] == {"n": 1, "cases": 1, "accuracy": 0.0, "accuracy_95": [0.0, 0.975]}
