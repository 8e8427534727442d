import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from ml.evaluation.bootstrap import CaseBootstrap, Floats, Interval

CASES = np.array(["a", "a", "a", "b", "c", "c", "d", "e", "e", "e"])


def test_a_resample_is_whole_cases_drawn_with_repeats() -> None:
    case_bootstrap = CaseBootstrap(CASES, count=200)
    weights = case_bootstrap.weights()
    assert weights.shape == (200, case_bootstrap.cases) == (200, 5)
    assert (weights.sum(axis=1) == 5).all()
    assert set(np.unique(weights)) >= {0.0, 1.0, 2.0}
    assert weights.mean(axis=0) == pytest.approx(np.ones(5), abs=0.2)


def test_rows_are_added_up_by_case() -> None:
    assert CaseBootstrap(CASES).sums(np.arange(10.0)).tolist() == [3.0, 3.0, 9.0, 6.0, 24.0]
    assert CaseBootstrap(CASES).sums(np.eye(10)).sum(axis=1).tolist() == [3.0, 1.0, 2.0, 1.0, 3.0]


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    (own,) = CaseBootstrap(np.arange(40).astype(str).astype(np.str_), seed=5).estimate_mean(values).intervals
    order = np.argsort(np.arange(40).astype(str))  # cases are sorted by name
    expected = bootstrap(
        (values[order],), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert own == pytest.approx((expected.low, expected.high))
    assert own.high - values.mean() > values.mean() - own.low, "skewed like the values"


def test_several_values_are_estimated_at_once() -> None:
    values = np.random.default_rng(1).random(10)
    case_bootstrap = CaseBootstrap(CASES, count=500)
    totals, sizes = case_bootstrap.sums(values), case_bootstrap.sums(np.ones(10))

    def both(weights: Floats) -> Floats:
        mean = weights @ totals / (weights @ sizes)
        return np.stack([mean, -mean])

    first, second = case_bootstrap.estimate(both).intervals
    assert [first] == case_bootstrap.estimate_mean(values).intervals
    assert second == pytest.approx((-first.high, -first.low), abs=1e-3)


def test_a_statistic_that_noise_alone_raises_has_no_interval_above_it() -> None:
    random = np.random.default_rng(2)
    values = random.normal(size=60)
    case_bootstrap = CaseBootstrap(np.arange(60).astype(np.str_))
    per_bin = case_bootstrap.sums(np.eye(15)[random.integers(0, 15, 60)] * values[:, None])
    estimate = case_bootstrap.estimate(lambda weights: np.abs(weights @ per_bin).sum(axis=1) / 60)
    whole = np.abs(per_bin.sum(axis=0)).sum() / 60
    low, high = estimate.intervals[0]
    percentile_low = np.percentile(estimate.samples, 2.5)
    assert low < whole < high
    assert low < percentile_low, "resamples alone lie too high"


def test_answers_that_are_all_right_have_the_exact_interval_of_a_proportion() -> None:
    (interval,) = CaseBootstrap(CASES).estimate_mean(np.ones(10)).intervals
    assert interval == pytest.approx(tuple(binomtest(5, 5).proportion_ci(0.95, "exact"))), "five cases, not ten rows"
    (interval,) = CaseBootstrap(CASES).estimate_mean(np.zeros(10)).intervals
    assert interval == pytest.approx(tuple(binomtest(0, 5).proportion_ci(0.95, "exact")))


def test_one_case_says_next_to_nothing() -> None:
    one = CaseBootstrap(np.array(["a", "a"]))
    (interval,) = one.estimate_mean(np.array([0.0, 1.0])).intervals
    assert interval == pytest.approx((0.0125, 0.9875))
    (interval,) = one.estimate_mean(np.zeros(2), Interval(-1.0, 1.0)).intervals
    assert interval == pytest.approx((-0.975, 0.975)), "a difference of two accuracies"


def test_the_same_seed_draws_the_same_cases() -> None:
    values = np.arange(10.0)
    first, again, other = (
        CaseBootstrap(CASES, count=50, seed=seed).estimate_mean(values).samples for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
