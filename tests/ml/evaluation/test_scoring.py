import numpy as np
import pytest
from scipy.stats import binomtest

from ml.dataset.labels import IGNORED
from ml.evaluation.metrics import Probabilities
from ml.evaluation.scoring import LabelledPredictions, calibration, compare, confident, describe, measure, short


def predictions(right: list[bool], cases: str, confidence: float = 0.8) -> LabelledPredictions:
    """Answers to a question with three classes, the truth always being class 0."""
    remainder = 1 - confidence
    rows = [[confidence, remainder, 0.0] if ok else [remainder, confidence, 0.0] for ok in right]
    names = np.array([f"image{number}" for number in range(len(right))])
    return LabelledPredictions(
        np.array(rows, dtype=np.float32), np.zeros(len(right), dtype=np.int64), np.array(list(cases)), names
    )


def test_two_cases_have_three_possible_resamples() -> None:
    # Case a is all right, case b half: resamples have 1, 0.75 or 0.5, with chances 1/4, 1/2, 1/4.
    measured = measure(predictions([True, True, True, False], "aabb"))
    assert measured["accuracy"] == 0.75
    assert measured["accuracy_95"] == [0.5, 1.0]
    # Of four single images at most one is right with a chance of 0.051, none with 0.004.
    assert measured["accuracy_95_images"] == [0.25, 1.0]
    assert (measured["n"], measured["cases"], measured["classes_present"]) == (4, 2, 1)
    assert measured["nll"] == pytest.approx(-(3 * np.log(0.8) + np.log(0.2)) / 4, abs=1e-6)
    assert measured["brier"] == pytest.approx((3 * 0.08 + 1.28) / 4, abs=1e-6)
    assert measured["ece"] == pytest.approx(0.05, abs=1e-6)


def test_every_interval_holds_its_score() -> None:
    random = np.random.default_rng(0)
    raw = random.random((300, 4))
    many = LabelledPredictions(
        (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32),
        random.integers(0, 4, 300),
        np.repeat(np.arange(60), 5).astype(str),
        np.arange(300).astype(str),
    )
    measured = measure(many)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "brier"):
        low, high = measured[f"{name}_95"]
        assert low < measured[name] < high, name
    assert measured["ece_95"][0] < measured["ece"] <= measured["ece_95"][1]


def test_the_classes_of_macro_scores_are_the_same_in_every_resample() -> None:
    # Class 1 is in one case alone, always right; a resample without it must not change the mean over classes.
    rows = np.eye(2, dtype=np.float32)[[0] * 9 + [1]]
    cases = np.array(list("abcdefghij"))
    measured = measure(LabelledPredictions(rows, np.array([0] * 9 + [1]), cases, cases))
    exact = binomtest(10, 10).proportion_ci(0.95, "exact")
    assert measured["macro_f1"] == 1.0
    assert measured["macro_f1_95"] == measured["balanced_accuracy_95"] == pytest.approx([exact.low, 1.0])
    # The other class is always wrong: its share of the mean is half in every resample.
    measured = measure(LabelledPredictions(rows[[0] * 10], np.array([0] * 9 + [1]), cases, cases))
    half = (1.0 - exact.low) / 2.0
    assert measured["balanced_accuracy_95"] == pytest.approx([0.5 - half, 0.5 + half])


def test_a_model_does_not_differ_from_itself() -> None:
    own = predictions([True, False, True, False], "aabc")
    share = 1.0 - 0.025 ** (1 / 3)  # three cases without a difference do not show that there is none
    assert compare(own, own) == {
        "n": 4,
        "difference": 0.0,
        "difference_95": pytest.approx([-share, share]),
        "not_better": 1.0,
    }


def test_differences_are_paired_by_case() -> None:
    better, worse = predictions([True, True, True, False], "aabb"), predictions([False, False, True, False], "aabb")
    compared = compare(better, worse)
    assert compared["difference"] == 0.5
    assert compared["difference_95"] == [0.0, 1.0]
    assert compared["not_better"] == pytest.approx(0.25, abs=0.03)  # case b drawn twice
    reverse = compare(worse, better)
    assert (reverse["difference"], reverse["difference_95"]) == (-0.5, [-1.0, 0.0])
    with pytest.raises(ValueError, match="the same images"):
        compare(better, worse.only(np.array([True, True, True, False])))


def test_parts_are_put_one_after_the_other() -> None:
    first, second = predictions([True, False], "ab"), predictions([True], "c", 0.6)
    both = LabelledPredictions.concatenate([first, second])
    assert both.probabilities.tolist() == [*first.probabilities.tolist(), *second.probabilities.tolist()]
    assert (both.correct.tolist(), both.groups.tolist()) == ([1.0, 0.0, 1.0], ["a", "b", "c"])
    assert both.images.tolist() == ["image0", "image1", "image0"]
    assert both.targets.tolist() == [0, 0, 0]


def test_rows_without_a_label_are_left_out() -> None:
    probabilities: Probabilities = np.full((3, 2), 0.5, dtype=np.float32)
    labelled = LabelledPredictions.of(
        probabilities, np.array([0, IGNORED, 1]), np.array(["a", "b", "c"]), np.array(["x", "y", "z"])
    )
    assert labelled.images.tolist() == ["x", "z"]
    assert labelled.correct.tolist() == [1.0, 0.0]


def test_no_rows_have_no_accuracy() -> None:
    none = predictions([True], "a").only(np.array([False]))
    assert short(none) == {"n": 0, "cases": 0, "accuracy": None, "accuracy_95": None}


def test_classes_and_confusions_of_known_answers() -> None:
    described = describe(predictions([True, True, True, False], "aabb"), ("CT", "MR", "PET"))
    ct, mr = described["per_class"]
    assert ct == {
        "class": "CT",
        "support": 4,
        "answered": 3,
        "precision": 1.0,
        "recall": 0.75,
        "f1": pytest.approx(6 / 7),
    }
    assert (mr["support"], mr["answered"], mr["precision"], mr["recall"], mr["f1"]) == (0, 1, 0.0, None, None)
    assert described["confusion"] == {"classes": ["CT", "MR", "PET"], "matrix": [[3, 1, 0], [0, 0, 0], [0, 0, 0]]}
    assert described["top_confusions"] == [{"truth": "CT", "answer": "MR", "n": 1}]
    assert described["risk_coverage"][-1] == [1.0, 0.75]


def test_calibration_before_and_after() -> None:
    right = [True, True, True, False]
    after = predictions(right, "aabb", 0.75)
    curves = calibration(predictions(right, "aabb", 0.95), after, measure(after))
    assert curves["before"]["ece"] == pytest.approx(0.2, abs=1e-6)
    assert curves["after"]["ece"] == pytest.approx(0.0, abs=1e-6)
    assert curves["after"]["nll"] < curves["before"]["nll"]
    alone = measure(predictions(right, "aabb", 0.95))
    assert [curves["before"][name] for name in ("nll", "nll_95", "brier_95", "ece_95")] == [
        alone[name] for name in ("nll", "nll_95", "brier_95", "ece_95")
    ]
    sentinel = dict.fromkeys(("nll", "nll_95", "brier", "brier_95", "ece", "ece_95"), 7.0)
    assert calibration(after, after, sentinel)["after"].items() >= sentinel.items(), "taken over, not computed again"
    (only,) = curves["before"]["reliability"]
    assert only == {"confidence": pytest.approx(0.95), "accuracy": 0.75, "n": 4}


def test_confident_answers_reach_the_threshold() -> None:
    mixed = predictions([True, True, False, False], "abcd")
    mixed.probabilities[:3] = mixed.probabilities[:3] * 0.5 + np.array([0, 0, 0.5], dtype=np.float32)
    mixed.probabilities[0] = (0.9, 0.1, 0.0)
    figures = confident(mixed, 0.8)
    assert (figures["n"], figures["coverage"], figures["accuracy"], figures["threshold"]) == (2, 0.5, 0.5, 0.8)
    ood = np.array([True, False, True, False])
    served = confident(mixed, 0.8, ood)
    assert (served["n"], served["coverage"], served["out_of_distribution"]) == (1, 0.25, 1)
    stricter = confident(mixed, 0.8, image_only=np.array([False, False, False, True]), threshold_image_only=1.01)
    without = confident(mixed, 0.8)["n"] - int(mixed.probabilities[3].max() >= 0.8)
    assert (stricter["n"], stricter["threshold_image_only"]) == (without, 1.01)
    assert confident(mixed, 1.0) == {
        "threshold": 1.0,
        "threshold_image_only": None,
        "out_of_distribution": 0,
        "coverage": 0.0,
        "n": 0,
        "cases": 0,
        "accuracy": None,
        "accuracy_95": None,
    }
