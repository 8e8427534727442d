"""OpenVINO on a CPU: one request with all threads, or asynchronous requests side by side."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from app.serving.backends.base import Floats, Pixels, Precision
from ml.dataset.preprocess import Preprocess

logger = logging.getLogger(__name__)

_HINTS: Final[Mapping[Precision, str]] = {"fp32": "f32", "bf16": "bf16"}
_GRAPH_FILE: Final = "graph.xml"
# Names the outputs in a graph's runtime information: to run the PyTorch network for them would take seconds.
_OUTPUTS: Final = "medpix_outputs"
_MAX_BATCH: Final = 256
_MAX_STREAMS: Final = 4


class _Ordered(nn.Module):
    """A network whose outputs come as a tuple, in a fixed order, as an exported graph needs them."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self._network = network
        self._names = names

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self._network(pixels)
        return tuple(outputs[name] for name in self._names)


class OpenVinoBackend:
    """OpenVINO on the CPU.

    Args:
        network: to run.
        preprocess: says the shape of its input.
        threads: to use.
        precision: of the computation; inputs, outputs and weights as stored are fp32 in any case.
        cache: folder that keeps the converted graph, since the conversion takes seconds; a name for
            the network's weights must be a part of it.

    Attributes:
        threads: in use.
        outputs: names, in the order of the graph's.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, *, threads: int, cache: Path, precision: Precision = "fp32"
    ) -> None:
        self.precision = precision
        self.threads = threads
        self._cache = cache
        example = torch.zeros((2, preprocess.channels, preprocess.size, preprocess.size), dtype=torch.uint8)
        graph = _cached_graph(cache) or _convert(network.eval(), example, cache)
        self.outputs = tuple(graph.get_rt_info(_OUTPUTS).astype(str).split())
        self._compiled = self._compile(graph, streams=1)

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        outputs = self._compiled([pixels], share_inputs=True)
        return {name: np.array(outputs[index]) for index, name in enumerate(self.outputs)}

    def compile(self, streams: int) -> ov.CompiledModel:
        """Compile the same network for some concurrent requests, each with its share of the threads.

        Raises:
            RuntimeError: the converted graph is not kept.
        """
        graph = _cached_graph(self._cache)
        if graph is None:
            raise RuntimeError(f"there is no converted graph in {self._cache}")
        return self._compile(graph, streams)

    def _compile(self, graph: ov.Model, streams: int) -> ov.CompiledModel:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": streams,
        }
        return ov.Core().compile_model(graph, "CPU", options)


def _cached_graph(cache: Path) -> ov.Model | None:
    try:
        graph = ov.Core().read_model(cache / _GRAPH_FILE) if (cache / _GRAPH_FILE).exists() else None
    except RuntimeError:
        logger.warning("the converted graph in %s cannot be read; it is made again", cache)
        return None
    return graph if graph is not None and graph.has_rt_info(_OUTPUTS) else None


def _convert(network: nn.Module, example: Tensor, cache: Path) -> ov.Model:
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    with torch.no_grad():
        outputs = tuple(network(example))
        program = torch.export.export(_Ordered(network, outputs), (example,), dynamic_shapes=({0: batch},))
    graph = ov.convert_model(program)
    graph.set_rt_info(" ".join(outputs), _OUTPUTS)
    with suppress(OSError, RuntimeError):  # a disk that is full or read-only costs time, not the service
        cache.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache.parent) as folder:
            # compress_to_fp16 would change the weights.
            ov.save_model(graph, Path(folder) / "new" / _GRAPH_FILE, compress_to_fp16=False)
            shutil.rmtree(cache, ignore_errors=True)
            (Path(folder) / "new").rename(cache)
    return graph


def stream_count(threads: int) -> int:
    """Number of streams to try with a number of threads."""
    return min(threads, _MAX_STREAMS)


class AsyncOpenVinoBackend:
    """Runs the parts of a batch as asynchronous requests, each in a stream with its share of the threads.

    A batch of fewer images than streams runs as one request with all threads, which has the lower latency.
    The requests are started and awaited one by one: ``ov.AsyncInferQueue`` is not faster, and after one failed
    request it raises that error for every later one.

    Args:
        backend: runs a batch with all threads.
        streams: parts of a batch.

    Raises:
        RuntimeError: the network cannot be compiled again.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, backend: OpenVinoBackend, streams: int) -> None:
        self.precision = backend.precision
        self.streams = streams
        self._backend = backend
        compiled = backend.compile(streams)
        self._requests = [compiled.create_infer_request() for _ in range(streams)]

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        if len(pixels) < self.streams:
            return self._backend.run(pixels)
        parts = np.array_split(pixels, self.streams)
        for request, part in zip(self._requests, parts, strict=True):
            request.start_async([part], share_inputs=True)
        errors = []
        for request in self._requests:  # await all of them: one that still runs could not be started again
            try:
                request.wait()
            except RuntimeError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return {
            name: np.concatenate([request.get_output_tensor(index).data for request in self._requests])
            for index, name in enumerate(self._backend.outputs)
        }
