"""CUDA graphs: one launch per batch instead of hundreds that Python makes one by one."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from app.serving.backends.base import Floats, Pixels
from app.serving.backends.torch import TorchBackend

_WARM_UP_RUNS: Final = 3


class CudaGraphBackend:
    """Replays a PyTorch network on CUDA, captured once per batch size; a batch is padded to the next size.

    All sizes share their input, their pinned host memory and one pool of device memory: one batch runs at a time, and
    its outputs are copied before the next. Copies are asynchronous, and the host waits once, for the last of them.

    Args:
        backend: runs the network.
        shape: of an image, (C, H, W).
        sizes: batch sizes; a larger batch is run as it comes.
    """

    name = "torch"

    def __init__(self, backend: TorchBackend, shape: tuple[int, int, int], sizes: Sequence[int]) -> None:
        self.device = backend.device
        self.precision = backend.precision
        self._backend = backend
        largest = (max(sizes), *shape)
        self._host_input = torch.zeros(largest, dtype=torch.uint8, pin_memory=True)
        self._input = torch.zeros(largest, dtype=torch.uint8, device=backend.device)
        pool = torch.cuda.graph_pool_handle()
        # The largest first: the others find room in the memory that it took.
        self._graphs = {size: _CapturedGraph(backend, self._input[:size], pool) for size in sorted(sizes, reverse=True)}
        outputs = self._graphs[max(sizes)].outputs
        self._host_outputs = {name: torch.empty(output.shape, pin_memory=True) for name, output in outputs.items()}
        self._copied = torch.cuda.Event(blocking=True)

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch, uint8 (N, C, H, W); see ``Backend``."""
        count = len(pixels)
        size = min((size for size in self._graphs if size >= count), default=None)
        if size is None:
            return self._backend.run(pixels)
        self._host_input[:count].copy_(torch.from_numpy(pixels))
        self._input[:count].copy_(self._host_input[:count], non_blocking=True)
        graph = self._graphs[size]
        graph.replay()
        for name, output in graph.outputs.items():
            self._host_outputs[name][:count].copy_(output[:count], non_blocking=True)
        self._copied.record()
        self._copied.synchronize()
        return {name: np.array(output[:count].numpy()) for name, output in self._host_outputs.items()}


class _CapturedGraph:
    """The graph of one batch size, which reads a static input and writes static outputs, in float32.

    Attributes:
        outputs: of the last replay; any replay of the same pool may overwrite them.
    """

    def __init__(self, backend: TorchBackend, images: Tensor, pool: Any) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):  # libraries choose their kernels in the first runs, which cannot be captured
                backend.forward(images)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may serve another model meanwhile: capture only this thread's calls.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs: Mapping[str, Tensor] = {
                name: output.float() for name, output in backend.forward(images).items()
            }

    def replay(self) -> None:
        """Launch the network on the input."""
        self._graph.replay()
