"""Temperature scaling, logit adjustment and confidence thresholds."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score

from ml.dataset.labels import IGNORED, LOCATION, LOCATION_CATEGORY, MODALITY
from ml.evaluation.bootstrap import CaseBootstrap
from ml.evaluation.metrics import Probabilities, Targets, labelled, negative_log_likelihood
from ml.models.base import adjust, softmax
from ml.registry.model_card import NEVER_CONFIDENT

# Meaning of "confident": of the answers that sure and surer at least this share is right, at the lower end of its
# interval.
TARGET_ACCURACY: Final[Mapping[str, float]] = {MODALITY: 0.97, LOCATION: 0.90, LOCATION_CATEGORY: 0.95}
# And no confident answer is less probable by itself: a model that is right about 97 % of all images would else be
# confident of an answer with a probability of 0.51.
LEAST_PROBABILITY: Final = 0.9
# One-sided 95% lower bound.
_LOWER: Final = 0.05
# A bound over fewer cases says nothing: with these all right, one more wrong case would lower it by far.
_LEAST_CASES: Final = 10
TAUS: Final = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)


def fit_temperature(logits: NDArray[np.floating], targets: Targets) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, arXiv 1706.04599).

    Args:
        logits: (N, classes), or log-probabilities.
        targets: (N,); rows with ``IGNORED`` are left out.

    Returns:
        A factor from 0.2 to 5 to divide logits by; 1 without any labelled row.
    """
    keep = targets != IGNORED
    if not keep.any():
        return 1.0

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits[keep], float(np.exp(log_temperature)))
        return negative_log_likelihood(probabilities, targets[keep])

    fitted = minimize_scalar(loss, bounds=(np.log(0.2), np.log(5.0)), method="bounded")
    return float(np.exp(fitted.x))


def decision_threshold(
    probabilities: Probabilities, targets: Targets, cases: NDArray[np.str_], target_accuracy: float
) -> float:
    """The lowest confidence at which answers that sure, or surer, reach a target accuracy with some certainty.

    It is not below ``LEAST_PROBABILITY``. Their accuracy counts at its lower bound: the 5 % quantile over resamples of
    whole cases, because images of one case share their label, and mostly whether the prediction is right.

    Args:
        probabilities: calibrated, (N, classes).
        targets: (N,); rows with ``IGNORED`` are left out.
        cases: case of each row, (N,).
        target_accuracy: wanted share of right answers among the confident ones.

    Returns:
        A probability; ``NEVER_CONFIDENT`` where no share of the answers reaches the target.
    """
    probabilities, targets, cases = labelled(probabilities, targets, cases)
    if not len(targets):
        return NEVER_CONFIDENT
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    confidence = confidence[order]
    bootstrap = CaseBootstrap(cases[order])
    # One column per candidate: the rows down to it.
    included = np.triu(np.ones((len(order), len(order))))
    correct = (probabilities.argmax(axis=1) == targets)[order][:, None] * included
    sums, counts = bootstrap.sums(correct), bootstrap.sums(included)
    weights = bootstrap.weights()
    with np.errstate(invalid="ignore"):  # a resample without any of the confident cases says nothing
        accuracy = (weights @ sums) / (weights @ counts)
    lower = np.nanquantile(accuracy, _LOWER, axis=0)
    # Rows of equal confidence are answered together.
    is_last = np.append(confidence[1:] < confidence[:-1], True)
    enough = (counts > 0).sum(axis=0) >= min(_LEAST_CASES, bootstrap.cases)
    probable = confidence >= LEAST_PROBABILITY
    reached = np.flatnonzero(is_last & enough & probable & (lower >= target_accuracy))
    if not len(reached):
        return NEVER_CONFIDENT
    return float(confidence[reached[-1]])


def choose_tau(logits: NDArray[np.floating], log_prior: NDArray[np.float64], targets: Targets) -> float:
    """How much of the log prior to take off so that rare classes are answered too.

    The largest macro-F1 over the classes present decides, among the values that lose no accuracy; of
    equals the smallest. Not balanced accuracy: it is a mean of recalls, so it rises with every rare
    class that is guessed more often, whatever that costs; F1 counts the false alarms. Not accuracy
    alone: it hardly depends on rare classes. It must not fall, because users of the service see it, and
    likelihood, which chooses weights elsewhere, is always best with the prior left in.

    Args:
        logits: (N, classes), or log-probabilities.
        log_prior: log frequency of the classes in training, (classes,).
        targets: (N,); rows with ``IGNORED`` are left out.

    Returns:
        One of ``TAUS``; 0 without any labelled row.
    """
    logits, targets = labelled(logits, targets)
    present = np.unique(targets).tolist()
    best, best_f1, plain = 0.0, -1.0, 0.0
    for tau in TAUS if present else ():
        predicted = adjust(logits, log_prior, tau).argmax(axis=1)
        accuracy = float((predicted == targets).mean())
        f1 = float(f1_score(targets, predicted, labels=present, average="macro", zero_division=0))
        if tau == 0.0:
            plain = accuracy
        if accuracy >= plain and f1 > best_f1:
            best, best_f1 = tau, f1
    return best
