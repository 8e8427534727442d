"""Bootstrap over cases of all the scores at once: a resample is a row of weights on the cases."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.evaluation.metrics import BINS, Interval, Probabilities, Targets

RESAMPLES: Final = 2000
Floats = NDArray[np.float64]


class CaseBootstrap:
    """Resamples of whole cases, the same ones for every model, so that differences are paired.

    Args:
        groups: case of each row, (N,); row numbers as text for the naive bootstrap over images.
        count: number of resamples.
        seed: of the resampling.
    """

    def __init__(self, groups: NDArray[np.str_], *, count: int = RESAMPLES, seed: int = 0) -> None:
        names, self._inverse = np.unique(groups, return_inverse=True)
        self.cases = len(names)
        drawn = np.random.default_rng(seed).integers(0, self.cases, (count, self.cases))
        offsets = self.cases * np.arange(count)[:, None]
        counted = np.bincount((drawn + offsets).ravel(), minlength=count * self.cases)
        self._weights: Floats = counted.reshape(count, self.cases).astype(np.float64)

    def sums(self, values: NDArray[Any]) -> Floats:
        """Sums over the rows of each resample: (N, ...) to (resamples, ...)."""
        flat = values.reshape(len(values), -1).astype(np.float64)
        per_case = np.zeros((self.cases, flat.shape[1]))
        np.add.at(per_case, self._inverse, flat)
        return np.asarray((self._weights @ per_case).reshape(-1, *values.shape[1:]), dtype=np.float64)

    def means(self, values: NDArray[Any]) -> Floats:
        """Means over the rows of each resample: (N,) to (resamples,)."""
        return self.sums(values) / self.sums(np.ones(len(values)))


def interval(samples: Floats) -> Interval:
    """The 95% percentile interval of resampled values."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return Interval(float(low), float(high))


@dataclass(frozen=True, slots=True)
class Resampled:
    """Scores in each resample, all of shape (resamples,).

    Attributes:
        accuracy: share of right answers.
        balanced_accuracy: mean recall of the classes present in the resample.
        macro_f1: mean F1 of the classes present in the resample.
        ece: expected calibration error.
        nll: mean negative log-likelihood in nats.
        brier: mean squared distance to the one-hot truth.
    """

    accuracy: Floats
    balanced_accuracy: Floats
    macro_f1: Floats
    ece: Floats
    nll: Floats
    brier: Floats


def resample_scores(probabilities: Probabilities, targets: Targets, bootstrap: CaseBootstrap) -> Resampled:
    """Every score in every resample.

    Args:
        probabilities: (N, classes).
        targets: (N,), without ``IGNORED``.
        bootstrap: over the cases of the same N rows.
    """
    classes = probabilities.shape[1]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float64)
    true, answered = np.eye(classes)[targets], np.eye(classes)[predicted]
    support, claimed = bootstrap.sums(true), bootstrap.sums(answered)
    hits = bootstrap.sums(true * answered)
    present = support > 0
    shown = present.sum(axis=1)
    correct = (predicted == targets).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = bootstrap.sums(np.eye(BINS)[bins] * (confidence - correct)[:, None])
    total = support.sum(axis=1)
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return Resampled(
        accuracy=hits.sum(axis=1) / total,
        balanced_accuracy=np.where(present, hits / np.maximum(support, 1), 0).sum(axis=1) / shown,
        macro_f1=np.where(present, 2 * hits / np.maximum(support + claimed, 1), 0).sum(axis=1) / shown,
        ece=np.abs(gaps).sum(axis=1) / total,
        nll=bootstrap.means(-np.log(np.clip(chosen, 1e-9, 1.0))),
        brier=bootstrap.means(((probabilities - true) ** 2).sum(axis=1)),
    )
