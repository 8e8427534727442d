"""Autotuning: alternative ways to run a network, taken where they are measured to be faster on this machine."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from app.serving.backends.base import Backend, Pixels
from app.serving.backends.openvino import AsyncOpenVinoBackend, OpenVinoBackend, stream_count
from app.serving.batch_tuning import CPU_SIZES, CUDA_SIZES, BatchPlan, noise, warm_up

logger = logging.getLogger(__name__)

_REPEATS: Final = 5
# Outputs are log-probabilities and embeddings; sums in another order move them by far less.
_TOLERANCE: Final = 1e-2
_FASTER: Final = 0.95
_SLOWER: Final = 1.05

Shape = tuple[int, int, int]

# By graph and batch sizes: how many streams and which batch size were the fastest.
_TUNED: Final[dict[tuple[object, ...], tuple[int, BatchPlan]]] = {}


def tune(backend: Backend, shape: Shape, sizes: Sequence[int]) -> tuple[Backend, BatchPlan]:
    """The fastest variant of a backend and its batch size; measured once for all models that run one graph.

    Args:
        backend: of the device and precision that were chosen.
        shape: of an image, (C, H, W).
        sizes: candidates for the batch size, ascending.

    Raises:
        torch.OutOfMemoryError: there is no memory for the smallest one; or MemoryError.
    """
    key = (*backend.graph_key, *sizes) if isinstance(backend, OpenVinoBackend) else ()
    if isinstance(backend, OpenVinoBackend) and key in _TUNED:
        streams, plan = _TUNED[key]
        chosen: Backend = AsyncOpenVinoBackend(backend, streams) if streams > 1 else backend
        for size in range(1, plan.size + 1):  # its own requests have not run yet
            chosen.run(noise(size, shape))
        return chosen, plan
    chosen = autotune(backend, shape)
    plan = warm_up(chosen.run, shape, sizes)
    if key:
        _TUNED[key] = chosen.streams if isinstance(chosen, AsyncOpenVinoBackend) else 1, plan
    return chosen, plan


def autotune(backend: Backend, shape: Shape) -> Backend:
    """The fastest variant of a backend on this machine: as it is, with asynchronous requests, or as CUDA graphs.

    Args:
        backend: of the device and precision that were chosen.
        shape: of an image, (C, H, W).
    """
    if backend.device == "cuda":
        from app.serving.backends.cuda_graphs import CudaGraphBackend  # noqa: PLC0415 - imports PyTorch
        from app.serving.backends.torch import TorchBackend  # noqa: PLC0415 - imports PyTorch

        if isinstance(backend, TorchBackend):
            ends = CUDA_SIZES[0], CUDA_SIZES[-1]
            return choose(backend, lambda: CudaGraphBackend(backend, shape), shape, ends)
    if isinstance(backend, OpenVinoBackend) and (streams := stream_count(backend.threads)) > 1:
        sizes = [size for size in CPU_SIZES if size >= streams]
        return choose(backend, lambda: AsyncOpenVinoBackend(backend, streams), shape, sizes)
    return backend


def choose(plain: Backend, make: Callable[[], Backend], shape: Shape, sizes: Sequence[int]) -> Backend:
    """An alternative backend, if it gives the same outputs and is faster.

    Args:
        plain: the backend that is known to work.
        make: makes the alternative; may fail.
        shape: of an image, (C, H, W).
        sizes: batch sizes to try: the alternative must give the same outputs with all, be slower with none, and
            faster with one.
    """
    try:
        other = make()
        seconds: list[tuple[float, float]] = []
        for size in sizes:
            pixels = noise(size, shape)
            expected, actual = plain.run(pixels), other.run(pixels)
            if not all(np.allclose(actual[name], value, atol=_TOLERANCE) for name, value in expected.items()):
                logger.warning("%s gives other outputs than the plain backend, which serves", type(other).__name__)
                return plain
            seconds.append(_seconds(plain, other, pixels))
    except Exception:
        logger.warning("the alternative backend failed; the plain one serves", exc_info=True)
        return plain
    logger.info("%s: seconds per batch of %s, plain and other: %s", type(other).__name__, sizes, seconds)
    faster = any(new < _FASTER * old for old, new in seconds) and all(new < _SLOWER * old for old, new in seconds)
    return other if faster else plain


def _seconds(plain: Backend, other: Backend, pixels: Pixels) -> tuple[float, float]:
    """The shortest of some runs of each, in turn: what else the machine does meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS):
        for backend, own in zip((plain, other), times, strict=True):
            started = time.perf_counter()
            backend.run(pixels)
            own.append(time.perf_counter() - started)
    return min(times[0]), min(times[1])
