"""Bootstrap over cases: images of one case are alike, so whole cases are resampled, never single images."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

RESAMPLES: Final = 2000
LEVEL: Final = 0.95
Floats = NDArray[np.float64]
# From how often each case was drawn, (resamples, cases), to one value, or a row of K values, of each resample:
# (resamples,) or (K, resamples).
Statistic = Callable[[Floats], Floats]


class Interval(NamedTuple):
    """A 95% confidence interval."""

    low: float
    high: float


PROPORTION: Final = Interval(0.0, 1.0)


class Estimate(NamedTuple):
    """What the bootstrap says of a statistic of K values.

    Attributes:
        intervals: one per value.
        samples: the values in each resample, (K, resamples).
    """

    intervals: list[Interval]
    samples: Floats


class CaseBootstrap:
    """Resamples whole cases; the same seed draws the same cases, so that differences of models are paired.

    Args:
        groups: case of each row, (N,); row numbers as text for the naive bootstrap over images.
        count: number of resamples.
        seed: random seed of the resampling.
    """

    def __init__(self, groups: NDArray[np.str_], *, count: int = RESAMPLES, seed: int = 0) -> None:
        names, self._inverse = np.unique(groups, return_inverse=True)
        self.cases = len(names)
        self._count, self._seed = count, seed

    def sums(self, values: NDArray[Any]) -> Floats:
        """Sums over the rows of each case: (N, ...) to (cases, ...)."""
        total = np.zeros((self.cases, *values.shape[1:]))
        np.add.at(total, self._inverse, values)
        return total

    def weights(self) -> Floats:
        """How often each resample draws each case, (resamples, cases)."""
        drawn = np.random.default_rng(self._seed).integers(0, self.cases, (self._count, self.cases))
        return _counts(drawn, self.cases)

    def estimate(self, statistic: Statistic, limits: Sequence[Interval] = (PROPORTION,)) -> Estimate:
        """BCa intervals of a statistic (Efron 1987), which correct for its bias and skewness.

        Statistics that only grow with noise, as the calibration error, are larger in most resamples than in the
        data; the percentile interval lies too high for them.

        Where BCa is not defined because all resamples are on one side of the value, the interval is the reflected
        ("basic") one, cut off at the extremes of the resamples. Where all resamples are equal, as with one case or with
        answers that are all right, they say nothing of the uncertainty: the interval then reaches the share
        1 - 0.025 ** (1 / cases) of the way to each limit, which for a proportion of 0 or 1 is the exact interval
        (Clopper and Pearson 1934).

        Args:
            statistic: see ``Statistic``.
            limits: the least and the greatest possible value, of each of the K values or one for all.
        """
        observed = np.atleast_1d(statistic(np.ones((1, self.cases))))[..., 0].reshape(-1)
        bounds = list(limits) * (len(observed) // len(limits))
        if self.cases == 1:
            one_case = zip(observed.tolist(), bounds, strict=True)
            return Estimate([self._degenerate(*value) for value in one_case], observed[:, None])

        def on_indices(index: NDArray[np.int64], axis: int = -1) -> Floats:
            del axis  # scipy puts the cases of a resample on the last axis
            values = np.atleast_2d(statistic(_counts(index.reshape(-1, index.shape[-1]), self.cases)))
            return values.reshape(len(values), *index.shape[:-1])

        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", DegenerateDataWarning)
            result = bootstrap(
                (np.arange(self.cases),),
                on_indices,
                n_resamples=self._count,
                vectorized=True,
                confidence_level=LEVEL,
                method="BCa",
                rng=np.random.default_rng(self._seed),
            )
        samples = np.asarray(result.bootstrap_distribution, dtype=np.float64).reshape(len(observed), -1)
        pairs = zip(np.ravel(result.confidence_interval.low), np.ravel(result.confidence_interval.high), strict=True)
        intervals = []
        for (low, high), value, bound, row in zip(pairs, observed.tolist(), bounds, samples, strict=True):
            if np.allclose(row, value, rtol=0.0, atol=1e-12):
                intervals.append(self._degenerate(value, bound))
            elif np.isfinite([low, high]).all():
                intervals.append(Interval(float(low), float(high)))
            else:
                intervals.append(_reflected(value, row))
        return Estimate(intervals, samples)

    def estimate_mean(self, values: NDArray[Any], limits: Interval = PROPORTION) -> Estimate:
        """The estimate of the mean over rows, (N,) within ``limits``; a case weighs as much as it has rows."""
        totals, sizes = self.sums(values.astype(np.float64)), self.sums(np.ones(len(values)))

        def mean(weights: Floats) -> Floats:
            return np.asarray((weights @ totals) / (weights @ sizes), dtype=np.float64)

        return self.estimate(mean, [limits])

    def _degenerate(self, value: float, limits: Interval) -> Interval:
        """The interval of a value that is the same in all resamples."""
        share = 1.0 - ((1.0 - LEVEL) / 2.0) ** (1.0 / self.cases)
        return Interval(value - share * (value - limits.low), value + share * (limits.high - value))


def _counts(drawn: NDArray[np.int64], cases: int) -> Floats:
    """How often each row of (resamples, draws) has each case, (resamples, cases)."""
    offsets = cases * np.arange(len(drawn))[:, None]
    counted = np.bincount((drawn + offsets).ravel(), minlength=len(drawn) * cases)
    return np.asarray(counted.reshape(len(drawn), cases), dtype=np.float64)


def _reflected(value: float, samples: Floats) -> Interval:
    low, high = np.percentile(samples, [50.0 - 50.0 * LEVEL, 50.0 + 50.0 * LEVEL])
    least, most = min(value, float(samples.min())), max(value, float(samples.max()))
    return Interval(max(least, 2.0 * value - float(high)), min(most, 2.0 * value - float(low)))
