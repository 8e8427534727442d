"""The time that a request has."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from app.core.exceptions import DeadlineExceededError

_LATE: Final = "The answer was not ready before the deadline. Try again, or allow more time in X-Request-Timeout."


@asynccontextmanager
async def until(deadline: float, detail: str = _LATE) -> AsyncIterator[None]:
    """Cancel what runs inside at a deadline on the clock of ``time.perf_counter``.

    Raises:
        DeadlineExceededError: the deadline passed; with ``detail``.
    """
    try:
        async with asyncio.timeout(deadline - time.perf_counter()):
            yield
    except TimeoutError:
        raise DeadlineExceededError(detail) from None
