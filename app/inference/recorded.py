"""Networks recorded as CUDA graphs: one launch per batch instead of hundreds, each of which Python must make."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from app.inference.backends import Backend, Floats, Pixels, TorchBackend
from app.inference.calibrate import noise

logger = logging.getLogger(__name__)

SIZES: Final = (1, 2, 4, 8, 16, 32)
_WARM_RUNS: Final = 3
_REPEATS: Final = 5
# Outputs are log-probabilities and embeddings; sums in another order move them by far less.
_TOLERANCE: Final = 1e-2


class RecordedBackend:
    """A PyTorch network on CUDA, recorded once per batch size; a batch is padded to the next size.

    Args:
        backend: runs the network.
        shape: of an image, (C, H, W).
        sizes: batch sizes, ascending; a larger batch is run as it comes.
    """

    name = "torch"

    def __init__(self, backend: TorchBackend, shape: tuple[int, int, int], sizes: Sequence[int] = SIZES) -> None:
        self.device = backend.device
        self.precision = backend.precision
        self._backend = backend
        self._recordings = {size: _Recording(backend, (size, *shape)) for size in reversed(sizes)}

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        size = min((size for size in self._recordings if size >= len(pixels)), default=None)
        if size is None:
            return self._backend.run(pixels)
        return self._recordings[size].run(pixels)


class _Recording:
    """One batch size: a graph that reads from and writes to memory of its own."""

    def __init__(self, backend: TorchBackend, shape: tuple[int, ...]) -> None:
        self._input = torch.zeros(shape, dtype=torch.uint8, device=backend.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_RUNS):  # libraries choose their kernels in the first runs, which cannot be recorded
                backend.forward(self._input)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may serve another model meanwhile: only this one's calls are recorded.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs: Mapping[str, Tensor] = backend.forward(self._input)

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        count = len(pixels)
        self._input[:count].copy_(torch.from_numpy(pixels))
        self._graph.replay()
        return {name: output[:count].float().cpu().numpy() for name, output in self._outputs.items()}


def recorded(backend: Backend, shape: tuple[int, int, int]) -> Backend:
    """A backend on CUDA recorded, if that works, answers alike and is faster here; any other backend as it is."""
    if not isinstance(backend, TorchBackend) or backend.device != "cuda":
        return backend
    return choose(backend, lambda: RecordedBackend(backend, shape), shape)


def choose(
    plain: Backend, make: Callable[[], Backend], shape: tuple[int, int, int], sizes: Sequence[int] = (1, SIZES[-1])
) -> Backend:
    """A quicker way to run the same network, if it is one.

    Args:
        plain: the way that is known to work.
        make: makes the other one; may fail.
        shape: of an image, (C, H, W).
        sizes: batch sizes to try: the other way must answer alike with all, be slower with none, and faster
            with one.
    """
    try:
        other = make()
        pace: list[tuple[float, float]] = []
        for size in sizes:
            pixels = noise(size, shape)
            expected, got = plain.run(pixels), other.run(pixels)
            if not all(np.allclose(got[name], value, atol=_TOLERANCE) for name, value in expected.items()):
                logger.warning("the recorded network answers otherwise than the plain one; the plain one serves")
                return plain
            pace.append((_seconds(plain, pixels), _seconds(other, pixels)))
    except Exception:
        logger.warning("the network cannot be recorded; it is run as it comes", exc_info=True)
        return plain
    logger.info("seconds per batch of %s, plain and recorded: %s", sizes, pace)
    faster = any(new < 0.95 * old for old, new in pace) and all(new < 1.05 * old for old, new in pace)
    return other if faster else plain


def _seconds(backend: Backend, pixels: Pixels) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        backend.run(pixels)
        times.append(time.perf_counter() - started)
    return min(times)
