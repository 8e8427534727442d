"""Scores of predictions, with intervals that respect that images of one case are alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from app.core.exceptions import UserError
from ml.dataset.labels import IGNORED
from ml.evaluation.bootstrap import CaseBootstrap

Probabilities = NDArray[np.float32]
Targets = NDArray[np.int64]
BINS = 15
PROBABILITY_FLOOR = 1e-9  # in logarithms, so that one answer cannot make a mean infinite


class NoLabelsError(UserError):
    """There is nothing to score: no row has a label."""


def labelled(probabilities: Probabilities, targets: Targets, *more: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """The arguments without the rows that have no label: (N, classes), (N,) and any number of (N, ...)."""
    keep = targets != IGNORED
    return (probabilities[keep], targets[keep], *(other[keep] for other in more))


def scores(probabilities: Probabilities, targets: Targets, groups: NDArray[np.str_]) -> dict[str, Any]:
    """The scores that a model card carries.

    Args:
        probabilities: (N, classes).
        targets: (N,); rows with ``IGNORED`` are left out.
        groups: case of each row, (N,).

    Returns:
        n, cases, accuracy with its interval over cases, balanced_accuracy, macro_f1 and weighted_f1
        over the classes present in ``targets``, classes_present, ece, nll.

    Raises:
        NoLabelsError: no row has a label.
    """
    probabilities, targets, groups = labelled(probabilities, targets, groups)
    if not len(targets):
        raise NoLabelsError("nothing can be scored: none of these images has a label for the task")
    predicted = probabilities.argmax(axis=1)
    present = np.unique(targets).tolist()
    correct = (predicted == targets).astype(np.float64)
    (interval,) = CaseBootstrap(groups).estimate_mean(correct).intervals
    f1 = {
        kind: float(f1_score(targets, predicted, labels=present, average=kind, zero_division=0))
        for kind in ("macro", "weighted")
    }
    return {
        "n": len(targets),
        "cases": len(np.unique(groups)),
        "accuracy": float(correct.mean()),
        "accuracy_95": list(interval),
        "balanced_accuracy": balanced_accuracy(predicted, targets),
        "macro_f1": f1["macro"],
        "weighted_f1": f1["weighted"],
        "classes_present": len(present),
        "ece": expected_calibration_error(probabilities, targets),
        "nll": negative_log_likelihood(probabilities, targets),
    }


def balanced_accuracy(predicted: Targets, targets: Targets) -> float:
    """The mean recall, 0 to 1, of the classes present in ``targets``; class indices (N,) both."""
    recalls = [float((predicted[targets == label] == label).mean()) for label in np.unique(targets)]
    return float(np.mean(recalls))


def negative_log_likelihood(probabilities: Probabilities, targets: Targets) -> float:
    """The mean of -log of the probability of the true class, in nats, from (N, classes) and (N,)."""
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float(-np.log(np.clip(chosen, PROBABILITY_FLOOR, 1.0)).mean()) + 0.0  # never -0.0


def brier(probabilities: Probabilities, targets: Targets) -> float:
    """The mean squared distance, 0 to 2, between probabilities (N, classes) and one-hot targets (N,)."""
    one_hot = np.eye(probabilities.shape[1])[targets]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def reliability(probabilities: Probabilities, targets: Targets, bins: int = BINS) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and count of each bin of confidence that is not empty, from (N, classes) and (N,)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == targets
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        (float(confidence[which == b].mean()), float(correct[which == b].mean()), int((which == b).sum()))
        for b in range(bins)
        if (which == b).any()
    ]


def expected_calibration_error(probabilities: Probabilities, targets: Targets, bins: int = BINS) -> float:
    """The mean gap between confidence and accuracy over equal bins (Guo et al. 2017, arXiv 1706.04599), 0 to 1.

    Args:
        probabilities: (N, classes).
        targets: (N,).
        bins: of equal width, over confidences from 0 to 1.
    """
    parts = reliability(probabilities, targets, bins)
    total = sum(count for _, _, count in parts)
    return float(sum(abs(confidence - accuracy) * count for confidence, accuracy, count in parts) / total)


def risk_coverage(probabilities: Probabilities, targets: Targets) -> NDArray[np.float64]:
    """Accuracy when only the most confident share is answered.

    Returns:
        (N, 2): coverage from 1/N to 1, and the accuracy on the answered share.
    """
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    correct = (probabilities.argmax(axis=1) == targets)[order].astype(np.float64)
    count = np.arange(1, len(targets) + 1)
    return np.stack([count / len(targets), np.cumsum(correct) / count], axis=1)


def top_confusions(
    predicted: Targets, targets: Targets, classes: Sequence[str], limit: int = 10
) -> list[tuple[str, str, int]]:
    """The most frequent (truth, answer, count) among the wrong answers."""
    pairs, counts = np.unique(np.stack([targets, predicted], axis=1)[predicted != targets], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    return [(classes[pairs[i][0]], classes[pairs[i][1]], int(counts[i])) for i in order]
