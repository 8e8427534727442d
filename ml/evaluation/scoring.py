"""The figures of one set of answers: scores with intervals, classes, confusions, curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ml.evaluation.bootstrap import PROPORTION, CaseBootstrap, Floats, Interval
from ml.evaluation.metrics import (
    BINS,
    PROBABILITY_FLOOR,
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
class LabelledPredictions:
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
    ) -> "LabelledPredictions":
        """The answers to the rows that have a label, from (N, classes) and three arrays (N,)."""
        return cls(*labelled(probabilities, targets, groups, images))

    @classmethod
    def concatenate(cls, parts: Sequence["LabelledPredictions"]) -> "LabelledPredictions":
        """The answers of several parts, as of folds, one after the other; at least one part."""
        names = ("probabilities", "targets", "groups", "images")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def only(self, chosen: NDArray[np.bool_]) -> "LabelledPredictions":
        """The answers to some of the rows, chosen by a mask (N,)."""
        return LabelledPredictions(
            self.probabilities[chosen], self.targets[chosen], self.groups[chosen], self.images[chosen]
        )

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The index of the most probable class, (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def correct(self) -> NDArray[np.float64]:
        """1 where the most probable class is the true one, else 0, (N,)."""
        return np.asarray(self.predicted == self.targets, dtype=np.float64)


SCORES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "brier")


def score_intervals(predictions: LabelledPredictions) -> dict[str, Interval]:
    """The 95% interval of each of ``SCORES``, cases being resampled.

    Balanced accuracy and macro F1 are means over the classes that occur in ``predictions``, in every resample the same:
    a class that a resample lacks keeps its value of the whole set there.
    """
    bootstrap = CaseBootstrap(predictions.groups)
    probabilities, targets = predictions.probabilities, predictions.targets
    present = np.unique(targets)
    confidence = probabilities.max(axis=1).astype(np.float64)
    true, answered = (np.eye(probabilities.shape[1])[rows][:, present] for rows in (targets, predictions.predicted))
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    squares = ((probabilities - np.eye(probabilities.shape[1])[targets]) ** 2).sum(axis=1)
    per_case = {
        "n": np.ones(len(targets)),
        "support": true,
        "answered": answered,
        "hits": true * answered,
        "correct": predictions.correct,
        "gaps": np.eye(BINS)[bins] * (confidence - predictions.correct)[:, None],
        "nll": -np.log(np.clip(chosen, PROBABILITY_FLOOR, 1.0)),
        "brier": squares,
    }
    sums = {name: bootstrap.sums(values) for name, values in per_case.items()}

    def by_class(weights: Floats) -> tuple[Floats, Floats, Floats]:
        support, hits = weights @ sums["support"], weights @ sums["hits"]
        f1 = 2.0 * hits / np.maximum(support + weights @ sums["answered"], 1.0)
        return support, hits / np.maximum(support, 1.0), f1

    _, whole_recall, whole_f1 = by_class(np.ones((1, bootstrap.cases)))

    def statistic(weights: Floats) -> Floats:
        total = weights @ sums["n"]
        support, recall, f1 = by_class(weights)
        return np.stack(
            [
                weights @ sums["correct"] / total,
                np.where(support > 0, recall, whole_recall).mean(axis=1),
                np.where(support > 0, f1, whole_f1).mean(axis=1),
                np.abs(weights @ sums["gaps"]).sum(axis=1) / total,
                weights @ sums["nll"] / total,
                weights @ sums["brier"] / total,
            ]
        )

    limits = [PROPORTION] * 4 + [Interval(0.0, -math.log(PROBABILITY_FLOOR)), Interval(0.0, 2.0)]
    return dict(zip(SCORES, bootstrap.estimate(statistic, limits).intervals, strict=True))


def measure(predictions: LabelledPredictions) -> dict[str, Any]:
    """Every score with its 95% interval over cases, and that of accuracy over images.

    Returns:
        The values of ``ml.evaluation.metrics.scores``, brier, and ``<score>_95`` beside each score.
    """
    measured = scores(predictions.probabilities, predictions.targets, predictions.groups)
    measured["brier"] = brier(predictions.probabilities, predictions.targets)
    measured |= {f"{name}_95": list(interval) for name, interval in score_intervals(predictions).items()}
    over_images = CaseBootstrap(np.arange(len(predictions.targets)).astype(np.str_)).estimate_mean(predictions.correct)
    return measured | {"accuracy_95_images": list(over_images.intervals[0])}


def short(predictions: LabelledPredictions) -> dict[str, Any]:
    """n, cases, accuracy and its interval over cases; None for the last two where there is no row."""
    count = len(predictions.targets)
    if not count:
        return {"n": 0, "cases": 0, "accuracy": None, "accuracy_95": None}
    bootstrap = CaseBootstrap(predictions.groups)
    return {
        "n": count,
        "cases": bootstrap.cases,
        "accuracy": float(predictions.correct.mean()),
        "accuracy_95": list(bootstrap.estimate_mean(predictions.correct).intervals[0]),
    }


def confident(
    predictions: LabelledPredictions,
    threshold: float,
    out_of_distribution: NDArray[np.bool_] | None = None,
    *,
    image_only: NDArray[np.bool_] | None = None,
    threshold_image_only: float | None = None,
) -> dict[str, Any]:
    """How many answers are confident by the thresholds of the model's card, and how good these are.

    The service makes some of these uncertain by rules that are not those of the card, and are not counted here: where
    the pixels cannot be those of a CT or MR image, or a DICOM header says another modality
    (``app.serving.input_heuristics``, ``app.serving.predictor``). No image of the dataset fails the former.

    Args:
        predictions: calibrated.
        threshold: of confidence, from the model's card.
        out_of_distribution: which rows are out of distribution by the card's threshold, (N,), and so never confident;
            None for a model without this rule.
        image_only: which rows were answered without a caption, (N,).
        threshold_image_only: threshold of these rows, where it is another.

    Returns:
        threshold, threshold_image_only, out_of_distribution (rows that the second rule keeps from being confident),
        coverage (the share of the images), and n, cases, accuracy and interval of the confident ones.
    """
    thresholds = np.full(len(predictions.targets), threshold)
    if image_only is not None and threshold_image_only is not None:
        thresholds[image_only] = threshold_image_only
    sure = predictions.probabilities.max(axis=1) >= thresholds
    confident_rows = sure if out_of_distribution is None else sure & ~out_of_distribution
    return {
        "threshold": threshold,
        "threshold_image_only": threshold_image_only,
        "out_of_distribution": int(sure.sum() - confident_rows.sum()),
        "coverage": float(confident_rows.mean()),
    } | short(predictions.only(confident_rows))


def calibration(
    before: LabelledPredictions, after: LabelledPredictions, measured_after: Mapping[str, Any]
) -> dict[str, Any]:
    """NLL, Brier, ECE with intervals and the reliability curve, before and after temperature.

    Args:
        before: the answers at a temperature of 1.
        after: the answers at that of the card.
        measured_after: what ``measure`` says of ``after``.
    """
    by_name: dict[str, Any] = {}
    for name, predictions, measured in (("before", before, measure(before)), ("after", after, measured_after)):
        by_name[name] = {
            **{key: measured[key] for score in ("nll", "brier", "ece") for key in (score, f"{score}_95")},
            "reliability": [
                {"confidence": confidence, "accuracy": accuracy, "n": count}
                for confidence, accuracy, count in reliability(predictions.probabilities, predictions.targets)
            ],
        }
    return by_name


def describe(predictions: LabelledPredictions, classes: tuple[str, ...]) -> dict[str, Any]:
    """Per-class table, confusion matrix, top confusions and the risk-coverage curve."""
    predicted = predictions.predicted
    every = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.targets, predicted, labels=every, zero_division=0
    )
    matrix = confusion_matrix(predictions.targets, predicted, labels=every)
    curve = risk_coverage(predictions.probabilities, predictions.targets)
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
            for truth, answer, count in top_confusions(predicted, predictions.targets, classes)
        ],
        "risk_coverage": [[float(coverage), float(accuracy)] for coverage, accuracy in curve],
    }


def compare(first: LabelledPredictions, second: LabelledPredictions) -> dict[str, Any]:
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
    estimate = CaseBootstrap(first.groups).estimate_mean(gain, Interval(-1.0, 1.0))
    return {
        "n": len(gain),
        "difference": float(gain.mean()),
        "difference_95": list(estimate.intervals[0]),
        "not_better": float((estimate.samples <= 0).mean()),
    }
