"""CUDA graphs: one launch per batch instead of hundreds that Python makes one by one."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from app.serving.backends.base import Floats, Pixels
from app.serving.backends.torch import TorchBackend

SIZES: Final = (1, 2, 4, 8, 16, 32)
_WARM_UP_RUNS: Final = 3


class CudaGraphBackend:
    """Replays a PyTorch network on CUDA, captured once per batch size; a batch is padded to the next size.

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
        self._graphs = {size: _CapturedGraph(backend, (size, *shape)) for size in reversed(sizes)}

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        size = min((size for size in self._graphs if size >= len(pixels)), default=None)
        if size is None:
            return self._backend.run(pixels)
        return self._graphs[size].run(pixels)


class _CapturedGraph:
    """The graph of one batch size, with static input and output memory."""

    def __init__(self, backend: TorchBackend, shape: tuple[int, ...]) -> None:
        self._input = torch.zeros(shape, dtype=torch.uint8, device=backend.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):  # libraries choose their kernels in the first runs, which cannot be captured
                backend.forward(self._input)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may serve another model meanwhile: capture only this thread's calls.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs: Mapping[str, Tensor] = backend.forward(self._input)

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        count = len(pixels)
        self._input[:count].copy_(torch.from_numpy(pixels))
        self._graph.replay()
        return {name: output[:count].float().cpu().numpy() for name, output in self._outputs.items()}
