"""Admission control: limits on in-flight images, bytes and time."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from app.core.exceptions import RETRY_AFTER_S, DeadlineExceededError, UnavailableError

_LATE: Final = "The answer was not ready before the deadline. Try again, or allow more time in X-Request-Timeout."
_WEIGHT: Final = 0.1
# A slow image counts for at most this many times the average: one that takes seconds says little of the others.
_MAX_RATIO: Final = 3.0


class Admission:
    """Counts the in-flight images of one model.

    Args:
        limit: largest number of them.
        seconds_per_image: estimated seconds per image under load.
    """

    def __init__(self, limit: int, seconds_per_image: Callable[[], float]) -> None:
        self._limit = limit
        self._seconds_per_image = seconds_per_image
        self._idle = asyncio.Event()
        self._idle.set()
        self.active = 0

    def check(self, seconds: float, count: int = 1) -> None:
        """Refuse a request that would spend more than half of its time in the queue.

        An idle service refuses nobody, so that an estimate that is too high corrects itself.

        Args:
            seconds: left until the request's deadline.
            count: images in it.

        Raises:
            UnavailableError: says when to try again.
        """
        if not self.active:
            return
        latency = self._seconds_per_image()
        over = self.active + count - self._limit
        if over > 0:
            raise UnavailableError(
                f"The service is at its capacity: {self.active} of {self._limit} images are in flight. "
                "Try again later.",
                retry_after_s=max(1, math.ceil(over * latency)),
            )
        wait = (self.active + count - 1) * latency
        if wait > seconds / 2:
            raise UnavailableError(
                f"The service is overloaded: the answer would begin in about {wait:.1f} s. Try again later.",
                retry_after_s=max(1, math.ceil(wait - seconds / 2)),
            )

    @contextmanager
    def admit(self, seconds: float, count: int = 1) -> Iterator[None]:
        """The same, and count the images as in flight until the end."""
        self.check(seconds, count)
        self.active += count
        self._idle.clear()
        try:
            yield
        finally:
            self.active -= count
            if not self.active:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no image is in flight."""
        await self._idle.wait()


class UploadBudget:
    """Limit on the bytes of uploads held in memory.

    Args:
        limit: largest number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Count bytes as held until the end; a single upload of any size fits.

        Raises:
            UnavailableError: the budget is spent.
        """
        if self._held and self._held + size > self._limit:
            raise UnavailableError(
                f"The service holds {self._held / 1024**2:.0f} MiB of uploads already. Try again shortly.",
                retry_after_s=RETRY_AFTER_S,
            )
        self._held += size
        try:
            yield
        finally:
            self._held -= size


class LatencyEstimator:
    """Moving average of seconds per image that one slow image cannot upset.

    Args:
        seconds: to start with; 0 takes the first image's.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def add(self, seconds: float) -> None:
        """Add the seconds that an image took."""
        before = self.seconds or seconds
        self.seconds = (1 - _WEIGHT) * before + _WEIGHT * min(seconds, _MAX_RATIO * before)


@asynccontextmanager
async def enforce_deadline(deadline: float, detail: str = _LATE) -> AsyncIterator[None]:
    """Cancel the body at a deadline on the clock of ``time.perf_counter``.

    Raises:
        DeadlineExceededError: the deadline passed; with ``detail``.
    """
    try:
        async with asyncio.timeout(deadline - time.perf_counter()):
            yield
    except TimeoutError:
        raise DeadlineExceededError(detail) from None
