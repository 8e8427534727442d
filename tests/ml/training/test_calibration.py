from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from ml.dataset.labels import IGNORED, LOCATION, MODALITY
from ml.dataset.records import Record, targets
from ml.evaluation.metrics import Probabilities
from ml.models.base import Floats, Outputs, ServedModel, adjust, has_caption, log, softmax
from ml.models.resnet import ResNetModel, ResNetSettings, train
from ml.registry.model_card import NEVER_CONFIDENT, ModelCard
from ml.training.calibration import LEAST_PROBABILITY, choose_tau, decision_threshold, fit_temperature
from ml.training.context import log_prior
from ml.training.train import calibrate, set_calibration
from tests.ml.conftest import MakeContext


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_temperature_undoes_scaled_logits(true_temperature: float) -> None:
    random = np.random.default_rng(0)
    honest = random.normal(size=(4000, 4)) * 2
    targets = np.array(
        [
            random.choice(4, p=row)
            for row in softmax(honest).astype(np.float64) / softmax(honest).sum(axis=1, keepdims=True, dtype=np.float64)
        ]
    )
    assert fit_temperature(honest * true_temperature, targets) == pytest.approx(true_temperature, rel=0.1)


class TwoHalves(ServedModel):
    """Answers with the logits of the caption, or of the image where there is none, which are calibrated already."""

    def encode_captions(self, captions: Sequence[str | None]) -> Floats:
        raise NotImplementedError

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        assert image_out is not None
        answer = softmax(image_out["image"])
        if caption_out is not None:
            has_text = has_caption(caption_out, len(answer))
            answer[has_text] = softmax(caption_out[has_text], self.card.temperature[MODALITY])
        return {MODALITY: answer}

    def save(self, folder: Path) -> list[str]:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        raise NotImplementedError


def test_the_temperature_of_a_fused_model_is_fitted_on_the_answers_that_it_changes(
    make_context: MakeContext, train_records: list[Record]
) -> None:
    card = make_context().draft_card(
        "two", "none", tasks=(MODALITY,), inputs=("image", "caption"), preprocess=None, settings={}
    )
    random = np.random.default_rng(0)
    honest = random.normal(size=(1000, 2)) * 2
    classes = (random.random(1000) < softmax(honest)[:, 1]).astype(int)
    records = [replace(train_records[0], modality=("CT", "MR")[label]) for label in classes]
    captions = (2.5 * honest).astype(np.float32)
    # Every second image has no caption, and an image half that is as wrong as it is sure.
    captions[::2] = np.nan
    image = {"image": np.where(np.eye(2)[classes] > 0, -4.0, 4.0).astype(np.float32)}
    model = TwoHalves(card)
    set_calibration(model, image, captions, records)
    assert card.temperature[MODALITY] == pytest.approx(2.5, rel=0.15)
    set_calibration(model, image, np.full_like(captions, np.nan), records)
    assert card.temperature[MODALITY] == fit_temperature(log(softmax(image["image"])), classes), "no caption at all"


def test_temperature_of_nothing_is_one() -> None:
    assert fit_temperature(np.zeros((3, 2)), np.full(3, IGNORED)) == 1.0


def two_classes(confidence: NDArray[np.float64]) -> Probabilities:
    """Answers of class 0 with these confidences."""
    return np.stack([confidence, 1.0 - confidence], axis=1).astype(np.float32)


def test_threshold_is_the_lowest_whose_answers_are_right_at_the_lower_bound() -> None:
    # 200 cases, all right down to a confidence of 0.95, every second wrong below it.
    confidence = np.linspace(0.99, 0.91, 200)
    targets = np.where(confidence >= 0.95, 0, np.arange(200) % 2)
    cases = np.arange(200).astype(np.str_)
    threshold = decision_threshold(two_classes(confidence), targets, cases, 0.9)
    sure = confidence >= threshold - 1e-6
    accuracy, count = float((targets[sure] == 0).mean()), int(sure.sum())
    assert threshold < 0.95, "some wrong answers are allowed"
    deviation = np.sqrt(accuracy * (1.0 - accuracy) / count)
    assert accuracy - 1.645 * deviation == pytest.approx(0.9, abs=0.02), "the mean alone would allow more"
    stricter = decision_threshold(two_classes(confidence), targets, cases, 0.97)
    assert stricter > threshold
    assert decision_threshold(two_classes(confidence), 1 - targets, cases, 0.97) > 0.99, "nothing is confident"
    assert decision_threshold(two_classes(confidence), np.full(200, IGNORED), cases, 0.9) == NEVER_CONFIDENT


def test_images_of_one_case_do_not_make_a_threshold_certain() -> None:
    confidence = np.linspace(0.99, 0.93, 200)
    targets = np.where(np.arange(200) % 20 == 19, 1, 0)  # 95 % right everywhere
    single = np.arange(200).astype(np.str_)
    grouped = np.where(targets == 1, "wrong", (np.arange(200) // 5).astype(np.str_))
    assert decision_threshold(two_classes(confidence), targets, single, 0.92) == pytest.approx(0.93, abs=1e-6)
    assert decision_threshold(two_classes(confidence), targets, grouped, 0.92) > 0.97


def test_an_improbable_answer_is_never_confident() -> None:
    confidence = np.linspace(0.999, 0.51, 200)
    right, cases = np.zeros(200, dtype=np.int64), np.arange(200).astype(np.str_)
    threshold = decision_threshold(two_classes(confidence), right, cases, 0.97)
    assert threshold == pytest.approx(LEAST_PROBABILITY, abs=0.003), "all are right, those below it by chance"
    assert threshold >= LEAST_PROBABILITY - 1e-6


def test_answers_of_the_same_confidence_are_confident_together() -> None:
    confidence = np.array([0.9] * 30 + [0.7] * 30)
    targets = np.array([0] * 30 + [0] * 15 + [1] * 15)
    assert decision_threshold(two_classes(confidence), targets, np.arange(60).astype(np.str_), 0.9) == pytest.approx(
        0.9
    )


def test_adjustment_favours_rare_classes() -> None:
    prior = np.log(np.array([0.9, 0.1]))
    even = np.log(np.array([[0.5, 0.5]]))
    assert adjust(even, prior, 0.0).argmax() == 0
    assert adjust(even, prior, 1.0).argmax() == 1


def test_tau_rises_while_it_costs_no_accuracy() -> None:
    prior = np.log(np.array([0.9, 0.1]))
    frequent = [[3.0, 0.0]] * 8
    # The rare class is second by a little: half of the prior is enough to bring it up.
    logits = np.array([*frequent, [1.0, 0.0], [1.0, 0.0]])
    targets = np.array([0] * 8 + [1, 1])
    assert choose_tau(logits, prior, targets) == 0.5
    # The same for a wrong example of the frequent class: what is won is lost.
    assert choose_tau(np.array([*logits, *[[1.0, 0.0]] * 3]), prior, np.array([*targets, 0, 0, 0])) == 0.0
    assert choose_tau(logits, prior, np.full(10, IGNORED)) == 0.0


def test_an_adjusted_model_is_chosen_and_served_with_its_tau(
    make_context: MakeContext, resnet_file: Path, tmp_path: Path
) -> None:
    context = make_context(weights=str(resnet_file), epochs=1)
    settings = ResNetSettings()
    small = replace(settings, preprocess=replace(settings.preprocess, size=32))
    model = train(context, LOCATION, small)
    tail = model.card.settings["adjust"][LOCATION]
    assert tail["tau"] == 0.0
    assert tail["log_prior"] == log_prior(context.train, LOCATION).tolist()
    pixels = context.images(context.dev, small.preprocess)
    plain = model.combine(model.encode_images(pixels), None)[LOCATION]
    tail["tau"] = 0.5
    expected = softmax(adjust(np.log(plain), np.array(tail["log_prior"]), 0.5))
    assert model.combine(model.encode_images(pixels), None)[LOCATION] == pytest.approx(expected, abs=1e-5)
    tail["tau"] = 0.0
    calibrate(model, context)
    assert tail["tau"] == choose_tau(np.log(plain), np.array(tail["log_prior"]), targets(context.dev, LOCATION))
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    loaded = ResNetModel.load(tmp_path / "saved", ModelCard.model_validate(model.card.model_dump(mode="json")))
    before, after = (m.combine(m.encode_images(pixels), None)[LOCATION] for m in (model, loaded))
    assert np.allclose(before, after, atol=1e-5)
