import numpy as np
import pytest

from ml.calibrate import adjust, decision_threshold, fit_temperature
from ml.labels import IGNORED
from ml.models.base import softmax


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
    assert decision_threshold(probabilities, targets, 0.75) == pytest.approx(0.7)
    assert decision_threshold(probabilities, targets, 1.0) == pytest.approx(0.9)
    assert decision_threshold(probabilities, 1 - targets, 1.0) > 0.95
    assert decision_threshold(probabilities, np.full(5, IGNORED), 1.0) == 0.5


def test_adjustment_favours_rare_classes() -> None:
    prior = np.log(np.array([0.9, 0.1]))
    even = np.log(np.array([[0.5, 0.5]]))
    assert adjust(even, prior, 0.0).argmax() == 0
    assert adjust(even, prior, 1.0).argmax() == 1
