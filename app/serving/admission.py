"""Admission control: limits on in-flight images and bytes."""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.core.exceptions import RETRY_AFTER_S, UnavailableError


class Admission:
    """Counts the images that one model has in work.

    Args:
        limit: most of them.
        seconds_per_image: how long one takes when there are many.
    """

    def __init__(self, limit: int, seconds_per_image: Callable[[], float]) -> None:
        self._limit = limit
        self._seconds_per_image = seconds_per_image
        self._idle = asyncio.Event()
        self._idle.set()
        self.active = 0

    def check(self, seconds: float, count: int = 1) -> None:
        """Refuse what would spend more than half of its time waiting for its turn.

        Nobody is refused by an idle service: an estimate that is too high can then mend.

        Args:
            seconds: that the request has left.
            count: images in it.

        Raises:
            UnavailableError: says when to try again.
        """
        if not self.active:
            return
        pace = self._seconds_per_image()
        over = self.active + count - self._limit
        if over > 0:
            raise UnavailableError(
                f"The service is at its capacity: {self.active} of {self._limit} images are in work. Try again later.",
                retry_after_s=max(1, math.ceil(over * pace)),
            )
        wait = (self.active + count - 1) * pace
        if wait > seconds / 2:
            raise UnavailableError(
                f"The service has too much to do: the answer would begin in about {wait:.1f} s. Try again later.",
                retry_after_s=max(1, math.ceil(wait - seconds / 2)),
            )

    @contextmanager
    def admit(self, seconds: float, count: int = 1) -> Iterator[None]:
        """The same, and count the images as in work until the end."""
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
        """Wait until nothing is in work."""
        await self._idle.wait()


class UploadBudget:
    """Limit on the bytes of uploads held in memory.

    Args:
        limit: most bytes at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Count bytes as held until the end; alone, an upload of any size fits.

        Raises:
            UnavailableError: there is no room.
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
