import numpy as np
import pytest

from ml.evaluation.bootstrap import CaseBootstrap, interval, resample_scores
from ml.evaluation.metrics import Probabilities, Targets, brier, scores

CASES = np.array(["a", "a", "a", "b", "c", "c", "d", "e", "e", "e"])


@pytest.fixture
def answers() -> tuple[Probabilities, Targets]:
    random = np.random.default_rng(3)
    raw = random.random((10, 4)) ** 3
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32), random.integers(0, 4, 10)


def test_a_resample_is_whole_cases_drawn_with_repeats() -> None:
    bootstrap = CaseBootstrap(CASES, count=200)
    sums = bootstrap.sums(np.eye(10))
    assert bootstrap.cases == 5
    for name in np.unique(CASES):
        counts = sums[:, np.array(name == CASES)]
        assert (counts == counts[:, :1]).all()
    draws = sums[:, [0, 3, 4, 6, 7]]
    assert (draws.sum(axis=1) == 5).all()
    assert set(np.unique(draws)) >= {0.0, 1.0, 2.0}
    assert draws.mean(axis=0) == pytest.approx(np.ones(5), abs=0.2)


def test_every_score_is_that_of_the_repeated_rows(answers: tuple[Probabilities, Targets]) -> None:
    probabilities, targets = answers
    bootstrap = CaseBootstrap(CASES, count=20, seed=1)
    found = resample_scores(probabilities, targets, bootstrap)
    for number, times in enumerate(bootstrap.sums(np.eye(10)).astype(int)):
        rows = np.repeat(np.arange(10), times)
        expected = scores(probabilities[rows], targets[rows], CASES[rows])
        expected["brier"] = brier(probabilities[rows], targets[rows])
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "brier"):
            assert getattr(found, name)[number] == pytest.approx(expected[name], abs=1e-6), name


def test_the_same_seed_draws_the_same_cases() -> None:
    values = np.arange(10.0)
    first, again, other = (CaseBootstrap(CASES, count=50, seed=seed).means(values) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_interval_leaves_out_a_fortieth_at_each_end() -> None:
    found = interval(np.arange(1001.0))
    assert (found.low, found.high) == (25.0, 975.0)
