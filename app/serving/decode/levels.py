"""Rescales grey levels of more than 8 bits to 8, between a low and a high percentile."""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml.dataset.preprocess import strips

_PERCENTILES: Final = (0.5, 99.5)
_CHUNK: Final = 2**20


class ValueRange(NamedTuple):
    """The values between which an image is stretched.

    Attributes:
        low, high: of the range.
        name: what they are, for a note.
    """

    low: float
    high: float
    name: str


NOTHING: Final = ValueRange(0.0, 0.0, "no value at all")


def percentile_range(
    values: NDArray[Any], transform: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray
) -> ValueRange | None:
    """The values between which an image is stretched.

    Args:
        values: of any shape; what is not finite is left out.
        transform: from a part of the values to those that count.

    Returns:
        The low and the high percentile of about a million values; the extremes of all where these are equal;
        None where no value is left.
    """
    flat = values.reshape(-1)
    sample = _finite(transform(flat[:: max(1, math.ceil(flat.size / _CHUNK))]))
    if sample.size:
        low, high = (float(value) for value in np.percentile(sample, _PERCENTILES))
        if low < high:
            return ValueRange(low, high, f"its {_PERCENTILES[0]}th to its {_PERCENTILES[1]}th percentile")
    parts = (_finite(transform(flat[at : at + _CHUNK])) for at in range(0, flat.size, _CHUNK))
    extremes = [(float(part.min()), float(part.max())) for part in parts if part.size]
    if not extremes:
        return None
    return ValueRange(min(low for low, _ in extremes), max(high for _, high in extremes), "its lowest to highest value")


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    floats = np.asarray(values, dtype=np.float64)
    return floats[np.isfinite(floats)]


def linear(values: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    """Values of any shape from ``low`` to ``high`` as 0 to 255, clipped; all 0 where these are equal."""
    span = high - low
    if span <= 0:
        return np.zeros(values.shape)
    with np.errstate(invalid="ignore"):
        scaled = np.clip((np.asarray(values, dtype=np.float64) - low) / span, 0.0, 1.0) * 255
    return np.nan_to_num(scaled)


def stretch_to_uint8(values: NDArray[Any], visible: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """An image of any depth as uint8; all channels are stretched alike, or colours would change.

    Args:
        values: (H, W) or (H, W, C).
        visible: (H, W), the pixels that make the range; all by default, and where there are none.
    """
    counted = values if visible is None or visible.all() or not visible.any() else values[visible]
    low, high, _ = percentile_range(counted) or NOTHING
    levels = np.empty(values.shape, dtype=np.uint8)
    for rows in strips(values):
        levels[rows] = linear(values[rows], low, high).round()
    return levels
