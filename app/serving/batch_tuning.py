"""How many images to run at once: measured, because on a CPU a larger batch may buy nothing."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Array], Mapping[str, Array]]

CPU_SIZES: Final = (1, 2, 4, 8)
_REPEATS: Final = 3
# A smaller batch answers sooner; a larger one must be this much faster per image to be worth it.
_WORTH: Final = 1.05


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How to run a network.

    Attributes:
        size: most images in one run.
        seconds_per_image: in a run of that size.
    """

    size: int
    seconds_per_image: float


def warm_up(run: Run, shape: tuple[int, int, int], sizes: Sequence[int]) -> BatchPlan:
    """Run every batch size that may occur, and choose the largest one to use.

    The first run of a shape compiles it; nobody should wait for that.

    Args:
        run: a batch (N, C, H, W) of uint8 to outputs.
        shape: (C, H, W).
        sizes: candidates, ascending; the smallest one within 5 % of the best images per second wins.
    """
    pace = {size: _seconds(run, shape, size) / size for size in sizes}
    best = min(pace.values())
    chosen = next(size for size in sizes if pace[size] <= best * _WORTH)
    for size in range(1, chosen + 1):
        if size not in pace:
            run(noise(size, shape))
    return BatchPlan(chosen, pace[chosen])


def noise(count: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Images without meaning, (count, C, H, W); the same ones every time."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def _seconds(run: Run, shape: tuple[int, int, int], size: int) -> float:
    pixels = noise(size, shape)
    run(pixels)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        run(pixels)
        times.append(time.perf_counter() - started)
    return min(times)
