"""Autotuning: alternative ways to run a network, taken where they are measured to be faster on this machine."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from app.serving.backends.base import Backend, Floats, Pixels, Run
from app.serving.backends.openvino import OpenVinoBackend, stream_count
from app.serving.batch_tuning import CUDA_SIZES, BatchPlan, noise, powers_of_two, warm_up

logger = logging.getLogger(__name__)

_REPEATS: Final = 5
# Outputs are log-probabilities and embeddings; sums in another order move them by far less.
_TOLERANCE: Final = 1e-2
_FASTER: Final = 0.95
_SLOWER: Final = 1.05
_STREAM_SIZES: Final = (2, 4)

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Tuned:
    """How a network is run on this machine.

    Attributes:
        backend: runs a batch with all cores, or on the GPU.
        plan: the batch size, of the streams where there are any.
        streams: concurrent infer requests, see ``OpenVinoBackend.streams``; empty where ``backend.run`` runs every
            batch.
    """

    backend: Backend
    plan: BatchPlan
    streams: Sequence[Run] = ()


def tune(backend: Backend, shape: Shape, sizes: Sequence[int]) -> Tuned:
    """The fastest way to run a network.

    OpenVINO runs batches in concurrent infer requests, one per stream. That is not measured at every start: beside
    decoding and HTTP it is as fast as one stream or faster, which a measurement of the network alone, or one beside a
    training, does not show.

    Args:
        backend: of the device and precision that were chosen.
        shape: of an image, (C, H, W).
        sizes: candidates for the batch size, ascending.

    Raises:
        torch.OutOfMemoryError: there is no memory for the smallest one; or MemoryError.
    """
    backend = with_cuda_graphs(backend, shape, sizes)
    streams = _streams(backend, shape) if isinstance(backend, OpenVinoBackend) else ()
    if not streams:
        return Tuned(backend, warm_up([backend.run], shape, sizes))
    # Two images a run halve the switches between threads; more than four exceed the cache and are slower.
    few = [size for size in sizes if size in _STREAM_SIZES] or sizes[:1]
    return Tuned(backend, warm_up(streams, shape, few), streams)


def _streams(backend: OpenVinoBackend, shape: Shape) -> Sequence[Run]:
    """Streams that answer as the backend does; empty where there is one thread, or where they fail."""
    count = stream_count(backend.threads)
    if count == 1:
        return ()
    pixels = noise(1, shape)
    expected = backend.run(pixels)
    try:
        streams = backend.streams(count)
        if all(_alike(expected, run(pixels)) for run in streams):
            return streams
        logger.warning("OpenVINO gives other outputs in %d streams; one serves", count)
    except Exception:
        logger.warning("%d streams failed; one serves", count, exc_info=True)
    return ()


def with_cuda_graphs(backend: Backend, shape: Shape, sizes: Sequence[int] = CUDA_SIZES) -> Backend:
    """The backend with its network captured as CUDA graphs, where it runs on CUDA and is faster so.

    Args:
        backend: of the device and precision that were chosen.
        shape: of an image, (C, H, W).
        sizes: candidates for the batch size; graphs are captured for powers of two up to the largest, and for that.
    """
    if backend.device == "cuda":
        from app.serving.backends.cuda_graphs import CudaGraphBackend  # noqa: PLC0415 - imports PyTorch
        from app.serving.backends.torch import TorchBackend  # noqa: PLC0415 - imports PyTorch

        if isinstance(backend, TorchBackend):
            captured = powers_of_two(max(sizes))
            ends = sorted({captured[0], captured[-1]})
            return choose(backend, lambda: CudaGraphBackend(backend, shape, captured), shape, ends)
    return backend


def choose(baseline: Backend, make: Callable[[], Backend], shape: Shape, sizes: Sequence[int]) -> Backend:
    """An alternative backend, if it gives the same outputs and is faster.

    Args:
        baseline: the backend that is known to work.
        make: makes the alternative; may fail.
        shape: of an image, (C, H, W).
        sizes: batch sizes to try: the alternative must give the same outputs with all, be slower with none, and
            faster with one.
    """
    try:
        candidate = make()
        seconds: list[tuple[float, float]] = []
        for size in sizes:
            pixels = noise(size, shape)
            expected, actual = baseline.run(pixels), candidate.run(pixels)
            if not _alike(expected, actual):
                logger.warning("%s gives other outputs than the baseline, which serves", type(candidate).__name__)
                return baseline
            seconds.append(_seconds(baseline, candidate, pixels))
    except Exception:
        logger.warning("the alternative backend failed; the baseline serves", exc_info=True)
        return baseline
    logger.info("%s: seconds per batch of %s, baseline and candidate: %s", type(candidate).__name__, sizes, seconds)
    faster = any(new < _FASTER * old for old, new in seconds) and all(new < _SLOWER * old for old, new in seconds)
    return candidate if faster else baseline


def _alike(expected: Mapping[str, Floats], actual: Mapping[str, Floats]) -> bool:
    return all(np.allclose(actual[name], value, atol=_TOLERANCE) for name, value in expected.items())


def _seconds(baseline: Backend, candidate: Backend, pixels: Pixels) -> tuple[float, float]:
    """The shortest of some runs of each, in turn: what else the machine does meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS):
        for backend, own in zip((baseline, candidate), times, strict=True):
            started = time.perf_counter()
            backend.run(pixels)
            own.append(time.perf_counter() - started)
    return min(times[0]), min(times[1])
