import math

import pytest

from benchmarks.load import Load
from benchmarks.serve import CLIENTS
from benchmarks.serve_goals import AT, Goal, Measured, goals
from benchmarks.serve_models import Bare

BARE = Bare(50.0, 20.0, "fp32")


def _load(rate: float, ms: float, refused_ms: float | None = None) -> Load:
    times = {200: [ms / 1000] * round(10 * rate)}
    if refused_ms is not None:
        times[503] = [refused_ms / 1000] * 20
    return Load(seconds=10.0, times=times, live=[0.002] * 50)


def _measured(rate: float, alone_ms: float = 22.0) -> Measured:
    return Measured({1: _load(rate / 2, alone_ms), AT: _load(rate, 16_000 / rate)}, first_ms=30.0)


def _reached(measured: dict[str, Measured], model: str = "resnet50-modality") -> dict[str, bool]:
    return {goal.words: goal.is_met for goal in goals(model, BARE, measured)}


def test_every_goal_is_checked() -> None:
    service = _measured(45.0)
    service.overload, service.growth = _load(40.0, 300.0, refused_ms=8.0), 0.01
    reached = _reached({"service": service, "plain": _measured(14.0), "litserve": _measured(16.0)})
    assert len(reached) == 9
    assert [words for words, met in reached.items() if not met] == ["times litserve, 16 clients"]


def test_the_compact_model_has_a_goal_of_its_own() -> None:
    assert _reached({"service": _measured(31.0), "plain": _measured(30.0)}, "compact")[
        "times the bare loop, 16 clients"
    ]
    assert not _reached({"service": _measured(29.0)}, "compact")["times the bare loop, 16 clients"]


def test_what_went_wrong_under_load_is_no_pass() -> None:
    service = Measured(overload=_load(40.0, 300.0, refused_ms=80.0), growth=0.06)
    assert service.overload is not None
    service.overload.add(504, 4.0)
    assert set(_reached({"service": service}).values()) == {False, True}
    assert [words for words, met in _reached({"service": service}).items() if met] == [
        "ms of /health/live, p99, 120 % load"
    ]


def test_a_line_says_pass_or_fail_and_the_limit() -> None:
    assert Goal("x", 1.234, most=1.5).describe() == "pass   x: 1.23, at most 1.5"
    assert Goal("x", 2.9, least=3.0).describe() == "FAIL   x: 2.90, at least 3"
    assert not Goal("x", math.nan, most=1.5).is_met
    assert goals("compact", BARE, {"plain": _measured(1.0)}) == []


@pytest.mark.parametrize("clients", [1, AT])
def test_the_clients_of_the_goals_are_measured(clients: int) -> None:
    assert clients in CLIENTS
