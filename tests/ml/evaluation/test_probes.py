from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from PIL import Image

from ml import labels
from ml.card import ModelCard
from ml.evaluation.asking import Asked, Pictures, as_answers
from ml.evaluation.probes import (
    ablations,
    age_band,
    blank_bands,
    caption_of_another_case,
    only_bands,
    shortcuts,
    subgroups,
)
from ml.models.base import Floats, InputError, Outputs, ServedModel
from ml.preprocess import Preprocess
from ml.records import Record
from tests.ml.conftest import MakeContext


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
def asked(make_context: MakeContext, records: list[Record]) -> Asked:
    card = make_context().draft_card(
        "reader",
        "none",
        tasks=(labels.LOCATION_CATEGORY,),
        inputs=("image", "caption"),
        preprocess=Preprocess(size=32),
        settings={},
    )
    return Asked.ask(Reader(card), records, Pictures())


def test_bands_are_blanked_or_kept() -> None:
    white = Image.new("L", (5, 128), 255)
    rows = np.asarray(blank_bands(white).convert("L"))[:, 0]
    assert (rows == 0).nonzero()[0].tolist() == [*range(10), *range(114, 128)]
    assert (np.asarray(only_bands(white).convert("L"))[:, 0] == 255 - rows).all()


def test_ablations_of_a_model_that_reads(asked: Asked) -> None:
    found = ablations(asked)[labels.LOCATION_CATEGORY]
    assert found["image and caption"]["accuracy"] == pytest.approx(5 / 6)
    assert found["image and caption"]["both_is_better_by"]["difference"] == 0
    assert found["image only"]["accuracy"] == pytest.approx(2 / 6)
    assert found["image only"]["both_is_better_by"]["difference"] == pytest.approx(3 / 6)
    assert (found["caption only"]["accuracy"], found["caption only"]["n"]) == (1.0, 5)
    assert found["image, caption of another case"]["accuracy"] < 5 / 6


def test_a_model_with_one_input_has_no_ablation(asked: Asked) -> None:
    assert ablations(replace(asked, caption_out=None)) == {}
    assert shortcuts(replace(asked, image_out=None), Pictures()) == {}


def test_the_shortcut_probe_shows_edited_images(asked: Asked) -> None:
    found = shortcuts(asked, Pictures())[labels.LOCATION_CATEGORY]
    assert set(found) == {"text bands blanked", "text bands alone"}
    assert found["text bands blanked"]["accuracy"] == pytest.approx(5 / 6)
    assert found["text bands blanked"]["whole_is_better_by"]["difference"] == 0
    whole = asked.image_out
    assert whole is not None
    for edit, brighter in ((blank_bands, True), (only_bands, False)):
        edited = Asked.ask(asked.model, asked.records, Pictures(), edit).image_out
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


def test_subgroups_split_the_rows_and_score_each(asked: Asked, records: list[Record]) -> None:
    changed = [replace(record, plane="Transverse", sex=None, modality="CT") for record in records]
    changed[0] = replace(changed[0], plane="Coronal", modality="MR")
    found = subgroups(asked.answers()[labels.LOCATION_CATEGORY], changed)
    for values in found.values():
        assert sum(value["n"] for value in values.values()) == 6
    assert {plane: value["n"] for plane, value in found["plane"].items()} == {"Axial": 5, "Coronal": 1}
    assert found["modality"]["MR"]["accuracy"] == 1.0
    assert found["modality"]["CT"]["accuracy"] == pytest.approx(4 / 5)
    assert found["sex"].keys() == {"unknown"}
    assert found["caption"]["placeholder"] == {"n": 1, "cases": 1, "accuracy": 0.0, "accuracy_95": [0.0, 0.0]}


def test_answers_before_temperature_are_those_of_temperature_one(asked: Asked) -> None:
    asked.model.card.temperature = {labels.LOCATION_CATEGORY: 3.0}
    before = asked.before_temperature()[labels.LOCATION_CATEGORY]
    assert asked.model.card.temperature == {labels.LOCATION_CATEGORY: 3.0}
    expected = as_answers(asked.model.combine(asked.image_out, asked.caption_out), asked.records)
    assert np.array_equal(before.probabilities, expected[labels.LOCATION_CATEGORY].probabilities)
