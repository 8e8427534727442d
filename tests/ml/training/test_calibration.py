from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ml.dataset.labels import IGNORED, LOCATION
from ml.dataset.records import targets
from ml.models.base import adjust, softmax
from ml.models.resnet import ResNetModel, ResNetSettings, train_location
from ml.registry.model_card import ModelCard
from ml.training.calibration import choose_tau, decision_threshold, fit_temperature
from ml.training.context import log_prior
from ml.training.train import calibrate
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


def test_temperature_of_nothing_is_one() -> None:
    assert fit_temperature(np.zeros((3, 2)), np.full(3, IGNORED)) == 1.0


def test_threshold_reaches_the_target_on_the_answered_share() -> None:
    confidence = np.array([0.95, 0.9, 0.8, 0.7, 0.6], dtype=np.float32)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    targets = np.array([0, 0, 1, 0, 1])
    cases = np.array(["a", "b", "c", "d", "e"])
    assert decision_threshold(probabilities, targets, cases, 0.75) == pytest.approx(0.7)
    assert decision_threshold(probabilities, targets, cases, 1.0) == pytest.approx(0.9)
    assert decision_threshold(probabilities, 1 - targets, cases, 1.0) > 0.95
    assert decision_threshold(probabilities, np.full(5, IGNORED), cases, 1.0) == 0.5


def test_a_case_counts_once_for_the_threshold() -> None:
    confidence = np.array([0.99, 0.98, 0.97, 0.9, 0.8, 0.7], dtype=np.float32)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    targets = np.array([1, 1, 1, 0, 0, 0])
    assert decision_threshold(probabilities, targets, np.array(list("aaabcd")), 0.75) == pytest.approx(0.7)
    assert decision_threshold(probabilities, targets, np.array(list("abcdef")), 0.75) > 0.99


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
    model = train_location(context, small)
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
