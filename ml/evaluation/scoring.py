"""The figures of one set of answers: scores with intervals, classes, confusions, curves."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ml.evaluation.bootstrap import CaseBootstrap, interval, resample_scores
from ml.evaluation.metrics import (
    Interval,
    Probabilities,
    Targets,
    brier,
    labelled,
    reliability,
    risk_coverage,
    scores,
    top_confusions,
)


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model said about one task, rows without a label left out.

    Attributes:
        probabilities: (N, classes).
        targets: (N,).
        groups: case of each row, (N,).
        images: image name of each row, (N,).
    """

    probabilities: Probabilities
    targets: Targets
    groups: NDArray[np.str_]
    images: NDArray[np.str_]

    @classmethod
    def of(
        cls, probabilities: Probabilities, targets: Targets, groups: NDArray[np.str_], images: NDArray[np.str_]
    ) -> "Answers":
        """The answers to the rows that have a label."""
        return cls(*labelled(probabilities, targets, groups, images))

    def only(self, chosen: NDArray[np.bool_]) -> "Answers":
        """The answers to some of the rows, chosen by a mask (N,)."""
        return Answers(self.probabilities[chosen], self.targets[chosen], self.groups[chosen], self.images[chosen])

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The index of the most probable class, (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def correct(self) -> NDArray[np.float64]:
        """1 where the most probable class is the true one, else 0, (N,)."""
        return np.asarray(self.predicted == self.targets, dtype=np.float64)


def pair(found: Interval) -> list[float]:
    """An interval as a JSON value."""
    return [found.low, found.high]


def measure(answers: Answers) -> dict[str, Any]:
    """Every score with its 95% interval over cases, and that of accuracy over images.

    Returns:
        What ``ml.evaluation.metrics.scores`` gives, brier, and ``<score>_95`` beside each score.
    """
    resampled = resample_scores(answers.probabilities, answers.targets, CaseBootstrap(answers.groups))
    found = scores(answers.probabilities, answers.targets, answers.groups)
    found["brier"] = brier(answers.probabilities, answers.targets)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "brier"):
        found[f"{name}_95"] = pair(interval(getattr(resampled, name)))
    naive = CaseBootstrap(np.arange(len(answers.targets)).astype(np.str_))
    found["accuracy_95_images"] = pair(interval(naive.means(answers.correct)))
    return found


def short(answers: Answers) -> dict[str, Any]:
    """n, cases, accuracy and its interval over cases; None for the last two where there is no row."""
    count = len(answers.targets)
    if not count:
        return {"n": 0, "cases": 0, "accuracy": None, "accuracy_95": None}
    bootstrap = CaseBootstrap(answers.groups)
    return {
        "n": count,
        "cases": bootstrap.cases,
        "accuracy": float(answers.correct.mean()),
        "accuracy_95": pair(interval(bootstrap.means(answers.correct))),
    }


def confident(answers: Answers, threshold: float) -> dict[str, Any]:
    """How many answers reach a model's threshold of confidence, and how good these are.

    Returns:
        threshold, coverage (the share of the images), and n, cases, accuracy and interval of them.
    """
    sure = answers.probabilities.max(axis=1) >= threshold
    return {"threshold": threshold, "coverage": float(sure.mean())} | short(answers.only(sure))


def calibration(before: Answers, after: Answers) -> dict[str, Any]:
    """NLL, Brier, ECE with intervals and the reliability curve, before and after temperature."""
    found: dict[str, Any] = {}
    for name, answers in (("before", before), ("after", after)):
        resampled = resample_scores(answers.probabilities, answers.targets, CaseBootstrap(answers.groups))
        whole = scores(answers.probabilities, answers.targets, answers.groups)
        found[name] = {
            "nll": whole["nll"],
            "nll_95": pair(interval(resampled.nll)),
            "brier": brier(answers.probabilities, answers.targets),
            "brier_95": pair(interval(resampled.brier)),
            "ece": whole["ece"],
            "ece_95": pair(interval(resampled.ece)),
            "reliability": [
                {"confidence": confidence, "accuracy": accuracy, "n": count}
                for confidence, accuracy, count in reliability(answers.probabilities, answers.targets)
            ],
        }
    return found


def describe(answers: Answers, classes: tuple[str, ...]) -> dict[str, Any]:
    """Per-class table, confusion matrix, top confusions and the risk-coverage curve."""
    predicted = answers.predicted
    every = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        answers.targets, predicted, labels=every, zero_division=0
    )
    matrix = confusion_matrix(answers.targets, predicted, labels=every)
    curve = risk_coverage(answers.probabilities, answers.targets)
    return {
        "per_class": [
            {
                "class": name,
                "support": int(support[k]),
                "answered": int(matrix[:, k].sum()),
                "precision": float(precision[k]) if matrix[:, k].any() else None,
                "recall": float(recall[k]) if support[k] else None,
                "f1": float(f1[k]) if support[k] else None,
            }
            for k, name in enumerate(classes)
            if support[k] or matrix[:, k].any()
        ],
        "confusion": {"classes": list(classes), "matrix": matrix.tolist()},
        "top_confusions": [
            {"truth": truth, "answer": answer, "n": count}
            for truth, answer, count in top_confusions(predicted, answers.targets, classes)
        ],
        "risk_coverage": [[float(coverage), float(accuracy)] for coverage, accuracy in curve],
    }


def compare(first: Answers, second: Answers) -> dict[str, Any]:
    """How much more accurate the first is than the second on the same images, resampling cases.

    Args:
        first: answers to the images that both were asked about.
        second: answers to the same images in the same order.

    Returns:
        n, difference of accuracies, its 95% interval, and the share of resamples in which the first
        is not better.

    Raises:
        ValueError: the images differ.
    """
    if not np.array_equal(first.images, second.images):
        raise ValueError("a paired comparison needs answers to the same images")
    gain = first.correct - second.correct
    samples = CaseBootstrap(first.groups).means(gain)
    return {
        "n": len(gain),
        "difference": float(gain.mean()),
        "difference_95": pair(interval(samples)),
        "not_better": float((samples <= 0).mean()),
    }
