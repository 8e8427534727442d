"""Moving average of seconds per image."""

from typing import Final

_WEIGHT: Final = 0.1
# No single image is taken for more: one that takes seconds says little of the others.
_MOST: Final = 3.0


class LatencyEstimator:
    """A moving mean of seconds per image that one slow image cannot upset.

    Args:
        seconds: to start with; 0 takes the first image's.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def add(self, seconds: float) -> None:
        """Take in how long an image took, in seconds."""
        before = self.seconds or seconds
        self.seconds = (1 - _WEIGHT) * before + _WEIGHT * min(seconds, _MOST * before)
