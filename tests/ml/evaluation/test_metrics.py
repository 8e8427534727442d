import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, log_loss

from ml.dataset.labels import IGNORED
from ml.evaluation import metrics
from ml.evaluation.bootstrap import CaseBootstrap
from ml.evaluation.metrics import Probabilities, Targets


@pytest.fixture
def predictions() -> tuple[Probabilities, Targets]:
    random = np.random.default_rng(0)
    logits = random.normal(size=(300, 5)).astype(np.float32)
    targets = random.integers(0, 4, 300)
    logits[np.arange(300), targets] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, targets


def test_scores_agree_with_scikit_learn(predictions: tuple[Probabilities, Targets]) -> None:
    probabilities, targets = predictions
    cases = np.arange(300).astype(str)
    scores = metrics.scores(probabilities, targets, cases)
    predicted = probabilities.argmax(axis=1)
    assert scores["accuracy"] == pytest.approx((predicted == targets).mean())
    macro = f1_score(targets, predicted, labels=[0, 1, 2, 3], average="macro")
    assert scores["macro_f1"] == pytest.approx(macro)
    assert scores["classes_present"] == 4
    assert scores["nll"] == pytest.approx(log_loss(targets, probabilities, labels=range(5)), abs=1e-5)
    keep = predicted < 4  # scikit-learn warns about answers that are no target
    expected = balanced_accuracy_score(targets[keep], predicted[keep])
    assert metrics.balanced_accuracy(predicted[keep], targets[keep]) == pytest.approx(expected)


def test_rows_without_label_are_left_out(predictions: tuple[Probabilities, Targets]) -> None:
    probabilities, targets = predictions
    cases = np.arange(300).astype(str)
    partly = targets.copy()
    partly[100:] = IGNORED
    expected = metrics.scores(probabilities[:100], targets[:100], cases[:100])
    assert metrics.scores(probabilities, partly, cases) == expected


def test_brier_of_two_classes_is_twice_that_of_one(predictions: tuple[Probabilities, Targets]) -> None:
    two = predictions[0][:, :2] / predictions[0][:, :2].sum(axis=1, keepdims=True)
    truth = predictions[1] % 2
    assert metrics.brier(two, truth) == pytest.approx(2 * brier_score_loss(truth, two[:, 1]), abs=1e-6)


def test_calibration_error_of_known_bins() -> None:
    confident = np.full((10, 2), (0.9, 0.1), dtype=np.float32)
    targets = np.array([0] * 6 + [1] * 4)
    assert metrics.expected_calibration_error(confident, targets) == pytest.approx(0.3, abs=1e-6)
    (only,) = metrics.reliability(confident, targets)
    assert only == pytest.approx((0.9, 0.6, 10), abs=1e-6)


def test_risk_coverage_ends_at_the_accuracy() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.3, 0.7]], dtype=np.float32)
    curve = metrics.risk_coverage(probabilities, np.array([1, 0, 1]))
    assert curve.tolist() == [[pytest.approx(1 / 3), 1.0], [pytest.approx(2 / 3), 1.0], [1.0, pytest.approx(2 / 3)]]


def test_the_bootstrap_over_cases_is_wider_than_over_images() -> None:
    random = np.random.default_rng(1)
    cases = np.repeat(np.arange(40), 10)
    right = np.repeat(random.random(40) < 0.7, 10).astype(np.float64)
    by_case = CaseBootstrap(cases.astype(np.str_)).estimate_mean(right).intervals[0]
    by_image = CaseBootstrap(np.arange(400).astype(np.str_)).estimate_mean(right).intervals[0]
    assert by_case.high - by_case.low > 2 * (by_image.high - by_image.low)
    assert by_case.low < right.mean() < by_case.high
    rows = random.integers(0, 40, (2000, 40))[:, :, None] * 10 + np.arange(10)
    low, high = np.percentile(right[rows].mean(axis=(1, 2)), [2.5, 97.5])
    assert (by_case.low, by_case.high) == pytest.approx((low, high), abs=0.02)


def test_top_confusions_are_sorted() -> None:
    targets, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 2, 1, 2])
    assert metrics.top_confusions(predicted, targets, ("x", "y", "z")) == [("x", "y", 2), ("y", "z", 1)]


def test_rows_without_any_label_are_refused_in_words() -> None:
    rows = np.full((2, 2), 0.5, dtype=np.float32)
    with pytest.raises(metrics.NoLabelsError, match="none of these images has a label"):
        metrics.scores(rows, np.full(2, IGNORED), np.array(["a", "b"]))


def test_the_loss_of_sure_and_right_answers_has_no_sign() -> None:
    sure = np.array([[1.0000001, 0.0]], dtype=np.float32)
    assert str(metrics.negative_log_likelihood(sure, np.array([0]))) == "0.0"
