"""Batch tuning: the batch size is measured, because on a CPU a larger one may not be faster."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.serving.backends.base import Run, is_out_of_memory

logger = logging.getLogger(__name__)

CPU_SIZES: Final = (1, 2, 4, 8)
CUDA_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
_REPEATS: Final = 3
# A smaller batch has the lower latency; a larger one must be this much faster per image.
_MIN_SPEEDUP: Final = 1.05


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batch size of a network.

    Attributes:
        size: largest number of images in one run.
        seconds_per_image: in runs of that size.
    """

    size: int
    seconds_per_image: float


def warm_up(runs: Sequence[Run], shape: tuple[int, int, int], sizes: Sequence[int]) -> BatchPlan:
    """Measure the batch sizes, choose one, and run smaller ones once: all up to 8, beyond that powers of two.

    The first run of a shape compiles it; no request should wait for that. To run every size up to 256 would take
    minutes on a CPU, though: what is left out is compiled when it comes.

    Args:
        runs: of one network, on a batch (N, C, H, W) of uint8; measured while they run concurrently.
        shape: (C, H, W).
        sizes: candidates, ascending; the smallest one within 5 % of the best images per second wins. Those from the
            first one for which there is no memory are left out.

    Raises:
        torch.OutOfMemoryError: there is no memory for the smallest one; or MemoryError.
    """
    latency: dict[int, float] = {}
    for size in sizes:
        try:
            latency[size] = _seconds(runs, shape, size) / (size * len(runs))
        except Exception as error:
            if not latency or not is_out_of_memory(error):
                raise
            logger.warning("there is no memory for batches of %d", size)
            break
    best = min(latency.values())
    chosen = next(size for size in latency if latency[size] <= best * _MIN_SPEEDUP)
    few = range(1, min(chosen, CPU_SIZES[-1]) + 1)
    for size in sorted({*few, *powers_of_two(chosen)} - latency.keys()):
        for run in runs:
            run(noise(size, shape))
    return BatchPlan(chosen, latency[chosen])


def powers_of_two(largest: int) -> tuple[int, ...]:
    """The powers of two below a batch size, ascending, and the size itself."""
    return (*(2**exponent for exponent in range((largest - 1).bit_length())), largest)


def noise(count: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Uniform noise, (count, C, H, W), from a fixed seed."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def _seconds(runs: Sequence[Run], shape: tuple[int, int, int], size: int) -> float:
    """The shortest time in which each of the runs has run a batch."""
    pixels = noise(size, shape)
    times = []
    with ThreadPoolExecutor(len(runs)) as pool:
        for _ in range(1 + _REPEATS):  # the first one compiles
            started = time.perf_counter()
            for done in [pool.submit(run, pixels) for run in runs]:
                done.result()
            times.append(time.perf_counter() - started)
    return min(times[1:])
