import asyncio

import pytest

from app.core.exceptions import UnavailableError
from app.serving.admission import Admission, LatencyEstimator, UploadBudget


def _refusal(admission: Admission, seconds: float, count: int = 1) -> tuple[str, str]:
    with pytest.raises(UnavailableError) as caught:
        admission.check(seconds, count)
    return caught.value.detail, caught.value.headers["Retry-After"]


def test_an_idle_service_takes_in_whatever_comes() -> None:
    admission = Admission(4, lambda: 100.0)
    admission.check(1.0, 32)
    with admission.admit(1.0, 32):
        assert admission.active == 32
    assert admission.active == 0


def test_who_would_wait_too_long_is_told_when_to_come_again() -> None:
    admission = Admission(100, lambda: 0.5)
    with admission.admit(10.0, 5):
        admission.check(10.0, 6)  # waits 5 s of 10
        detail, wait = _refusal(admission, 10.0, 16)
        assert "in about 10.0 s" in detail
        assert wait == "5"
    admission.check(10.0, 16)


def test_a_full_service_says_how_long_it_will_take_to_have_room() -> None:
    admission = Admission(100, lambda: 0.5)
    with admission.admit(600.0, 100):
        detail, wait = _refusal(admission, 600.0, 20)
        assert "100 of 100" in detail
        assert wait == "10"


def test_places_are_given_back_after_an_error_and_idle_is_told() -> None:
    async def scenario() -> None:
        admission, free = Admission(10, lambda: 0.1), asyncio.Event()

        async def fail() -> None:
            with admission.admit(1.0):
                await free.wait()
                raise ZeroDivisionError

        failing = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(admission.idle())
        await asyncio.sleep(0)
        assert (admission.active, waiting.done()) == (1, False)
        free.set()
        with pytest.raises(ZeroDivisionError):
            await failing
        await waiting
        assert admission.active == 0

    asyncio.run(scenario())


def test_room_is_shared_and_given_back() -> None:
    upload_budget = UploadBudget(10)
    with upload_budget.reserve(50):  # alone, anything fits
        with pytest.raises(UnavailableError) as caught, upload_budget.reserve(1):
            pass
        assert caught.value.headers["Retry-After"]
    with upload_budget.reserve(6), upload_budget.reserve(4):
        pass
    with upload_budget.reserve(10):
        pass


def test_one_slow_image_does_not_upset_the_pace() -> None:
    pace = LatencyEstimator(0.01)
    pace.add(10.0)
    assert pace.seconds == pytest.approx(0.012)
    for _ in range(100):
        pace.add(1.0)
    assert pace.seconds == pytest.approx(1.0, rel=0.05)
    for _ in range(60):
        pace.add(0.01)
    assert pace.seconds < 0.02
    first = LatencyEstimator()
    first.add(2.0)
    assert first.seconds == 2.0
