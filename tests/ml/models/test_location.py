from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymongo.database import Database

from ml.dataset.labels import LOCATION, LOCATION_CATEGORY
from ml.dataset.records import Record, RecordsError
from ml.models.base import InputError, ServedModel, softmax
from ml.models.caption import CaptionModel, CaptionSettings, fit_text_model, training_texts
from ml.models.fusion import FusedModel, FusionWeights, choose_weights, fuse
from ml.registry.registry import Registry
from tests.ml.conftest import Document

CAPTIONS = ["Axial MR shows a tear of the anterior cruciate ligament of the knee.", None]


@pytest.fixture
def registry(ml_database: Database[Document], models_dir: Path) -> Registry:
    return Registry(ml_database, models_dir)


@pytest.fixture
def caption_model(registry: Registry) -> CaptionModel:
    model = registry.load("caption-location")
    assert isinstance(model, CaptionModel)
    return model


@pytest.fixture
def fused_model(registry: Registry) -> FusedModel:
    model = registry.load("fused-location")
    assert isinstance(model, FusedModel)
    return model


@pytest.fixture
def image_out(fused_model: ServedModel) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 1, 128, 128), dtype=np.uint8)
    outputs = fused_model.encode_images(pixels)
    assert outputs is not None
    return outputs


Outputs = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]


def test_a_caption_alone_names_the_location(caption_model: CaptionModel) -> None:
    answer = caption_model.combine(None, caption_model.encode_captions(CAPTIONS))
    classes = caption_model.tasks[LOCATION]
    assert classes[answer[LOCATION][0].argmax()] == "Musculoskeletal"
    assert caption_model.tasks[LOCATION_CATEGORY][answer[LOCATION_CATEGORY][0].argmax()] == "Spine and Muscles"


def test_without_caption_the_frequencies_answer(caption_model: CaptionModel) -> None:
    encoded = caption_model.encode_captions(CAPTIONS)
    assert np.isnan(encoded[1]).all()
    assert not np.isnan(encoded[0]).any()
    prior = np.array(caption_model.card.settings["log_prior"][LOCATION])
    answer = caption_model.combine(None, encoded)[LOCATION][1]
    assert answer == pytest.approx(softmax(prior, caption_model.card.temperature[LOCATION]), abs=1e-6)
    with pytest.raises(InputError, match="caption-location needs a caption"):
        caption_model.combine(None, None)


def test_long_and_odd_captions_are_answered(caption_model: CaptionModel) -> None:
    odd = ["knee " * 25_000, "\u0000\ud7ff \U0001f9e0", "   \n", "." * 100]
    encoded = caption_model.encode_captions(odd)
    assert np.isnan(encoded).all(axis=1).tolist() == [False, True, True, True]


def test_the_fused_model_uses_what_there_is(fused_model: FusedModel, image_out: Outputs) -> None:
    encoded = fused_model.encode_captions(CAPTIONS)
    both = fused_model.combine(image_out, encoded)
    image_only = fused_model.combine(image_out, None)
    assert not np.allclose(both[LOCATION][0], image_only[LOCATION][0])
    assert np.array_equal(both[LOCATION][1], image_only[LOCATION][1])
    for probabilities in both.values():
        assert probabilities.sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
    with pytest.raises(InputError, match="fused-location needs an image"):
        fused_model.combine(None, encoded)


def test_the_image_half_is_the_compact_model(registry: Registry, fused_model: FusedModel, image_out: Outputs) -> None:
    compact = registry.load("compact")
    expected = compact.combine(image_out, None)
    assert np.array_equal(fused_model.combine(image_out, None)[LOCATION], expected[LOCATION])
    assert fused_model.card.files[0].sha256 == compact.card.files[0].sha256
    assert fused_model.cam_layer is not None


def test_weights_of_one_half_leave_the_other_out() -> None:
    image = np.array([[0.7, 0.3]])
    caption = np.log(np.array([[0.2, 0.8]]))
    prior = np.log(np.array([0.5, 0.5]))
    only_image = softmax(fuse(image, caption, prior, FusionWeights(1.0, 0.0, 0.0)))
    only_caption = softmax(fuse(image, caption, prior, FusionWeights(0.0, 1.0, 0.0)))
    assert only_image[0].tolist() == pytest.approx([0.7, 0.3], abs=1e-6)
    assert only_caption[0].tolist() == pytest.approx([0.2, 0.8], abs=1e-6)


def test_weights_follow_the_better_half() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 400)
    right = np.full((400, 3), 0.1)
    right[np.arange(400), truth] = 0.8
    noise = random.dirichlet(np.ones(3), 400)
    prior = np.log(np.full(3, 1 / 3))
    trusts_image = choose_weights(right, np.log(noise), prior, truth)
    trusts_caption = choose_weights(noise, np.log(right), prior, truth)
    assert trusts_image.image > trusts_image.caption
    assert trusts_caption.caption > trusts_caption.image


def test_without_captions_the_default_weights_hold() -> None:
    nothing, prior = np.empty((0, 3)), np.log(np.full(3, 1 / 3))
    assert choose_weights(nothing, nothing, prior, np.empty(0, dtype=np.int64)) == FusionWeights()


def test_captions_without_words_are_named(train_records: list[Record]) -> None:
    mute = [replace(record, caption="", report=("...",)) for record in train_records]
    with pytest.raises(RecordsError, match=f"of the {len(mute)} training images have no words to learn from"):
        fit_text_model(mute, CaptionSettings())


def test_training_texts_weigh_cases_and_add_reports(train_records: list[Record]) -> None:
    plain = CaptionSettings(case_weight=1.0, report_weight=0.0)
    texts, targets, weights = training_texts(train_records, plain)
    assert len(texts) == len(train_records) == len(targets[LOCATION]) == len(weights)
    per_case = dict.fromkeys({record.u_id for record in train_records}, 0.0)
    for record, weight in zip(train_records, weights, strict=True):
        per_case[record.u_id] += weight
    assert max(per_case.values()) == pytest.approx(min(per_case.values()))
    more, task_targets, heavier = training_texts(train_records, CaptionSettings(report_weight=0.3))
    assert len(more) > len(texts)
    assert len(more) == len(task_targets[LOCATION]) == len(heavier)
    assert set(heavier[len(texts) :]) == {0.3}
