"""OpenVINO on a CPU: one infer request with all threads, or concurrent infer requests, one per stream."""

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
import openvino as ov

from app.serving.backends.base import Floats, NetworkOwner, Pixels, Precision, Run
from ml.dataset.preprocess import Preprocess
from ml.models.base import MAPS

logger = logging.getLogger(__name__)

_HINTS: Final[Mapping[Precision, str]] = {"fp32": "f32", "bf16": "bf16"}
_GRAPH_FILE: Final = "graph.xml"
# Names the outputs in a graph's runtime information: to run the PyTorch network for them would take seconds.
_OUTPUTS: Final = "medpix_outputs"
_MAX_STREAMS: Final = 4
_COMPILED: Final[WeakValueDictionary[tuple[str, str, int, int], ov.CompiledModel]] = WeakValueDictionary()
_COMPILING: Final = Lock()


class OpenVinoBackend:
    """OpenVINO on the CPU.

    Args:
        model: whose network to run; it is asked for only where the cache has no graph.
        preprocess: says the shape of its input.
        threads: to use.
        precision: of the computation; inputs, outputs and weights as stored are fp32 in any case.
        cache: folder that keeps the converted graph, since the conversion takes seconds; a name for
            the network's weights must be a part of it.

    Attributes:
        threads: in use.
        outputs: names, in the order of the graph's.
        has_maps: whether ``feature_maps`` can be asked.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self, model: NetworkOwner, preprocess: Preprocess, *, threads: int, cache: Path, precision: Precision = "fp32"
    ) -> None:
        self.precision = precision
        self.threads = threads
        self._cache = cache
        graph = _cached_graph(cache)
        if graph is None and getattr(model, "is_deferred", False):
            graph = _converted_elsewhere(model, preprocess, cache)
        if graph is None:
            graph = _convert(model, preprocess, cache)
        names = tuple(graph.get_rt_info(_OUTPUTS).astype(str).split())
        self.has_maps = MAPS in names
        self.outputs = tuple(name for name in names if name != MAPS)
        self._maps: ov.CompiledModel | None = None
        self._streamed: ov.CompiledModel | None = None
        self._compiled = self._compiled_for(1, graph)
        self._request = self._compiled.create_infer_request()

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch, uint8 (N, C, H, W); see ``Backend``."""
        return self._infer(self._request, pixels)

    def streams(self, count: int) -> list[Run]:
        """Concurrent infer requests: functions that run a batch, each on its share of the threads.

        Args:
            count: of streams.

        Raises:
            RuntimeError: the network cannot be compiled again.
        """
        self._streamed = compiled = self._compiled_for(count)  # held, so that other models of the network share it
        return [partial(self._infer, compiled.create_infer_request()) for _ in range(count)]

    def _infer(self, request: ov.InferRequest, pixels: Pixels) -> Mapping[str, Floats]:
        outputs = request.infer([pixels], share_inputs=True)
        return {name: np.array(outputs[index]) for index, name in enumerate(self.outputs)}

    def feature_maps(self, pixels: Pixels) -> Floats:
        """The last feature maps of one image (1, C, H, W), in fp32; compiled at the first call.

        Returns:
            (members * views, D, h, w), see ``ServingNetwork.forward_with_maps``.

        Raises:
            RuntimeError: the converted graph is not kept, or has no such output; see ``has_maps``.
        """
        if self._maps is None:
            self._maps = self._compile(_part(self._kept_graph(), (MAPS,)), streams=1, precision="fp32")
        return np.array(self._maps([pixels])[0][0])

    def _compiled_for(self, streams: int, graph: ov.Model | None = None) -> ov.CompiledModel:
        """The network for some concurrent requests; compiled once for all models that run it."""
        with _COMPILING:
            key = str(self._cache), self.precision, self.threads, streams
            compiled = _COMPILED.get(key) or self._compile(_part(graph or self._kept_graph(), self.outputs), streams)
            _COMPILED[key] = compiled
        return compiled

    def _kept_graph(self) -> ov.Model:
        graph = _cached_graph(self._cache)
        if graph is None:
            raise RuntimeError(f"there is no converted graph in {self._cache}")
        return graph

    def _compile(self, graph: ov.Model, streams: int, precision: Precision | None = None) -> ov.CompiledModel:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision or self.precision],
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


def _part(graph: ov.Model, names: tuple[str, ...]) -> ov.Model:
    """The graph of some of the outputs alone."""
    exported = graph.get_rt_info(_OUTPUTS).astype(str).split()
    if exported == list(names):
        return graph
    results = graph.get_results()
    return ov.Model([results[exported.index(name)] for name in names], graph.get_parameters())


def _converted_elsewhere(model: NetworkOwner, preprocess: Preprocess, cache: Path) -> ov.Model | None:
    """Convert in a process of its own, which takes PyTorch and what it allocated with it: a gigabyte and more."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_convert_for_parent, model, preprocess, cache).result()
    except Exception:
        logger.warning(
            "the network could not be converted in another process; it is converted in this one", exc_info=True
        )
        return None
    return _cached_graph(cache)


def _convert_for_parent(model: NetworkOwner, preprocess: Preprocess, cache: Path) -> None:
    _convert(model, preprocess, cache)


def _convert(model: NetworkOwner, preprocess: Preprocess, cache: Path) -> ov.Model:
    from app.serving.backends.torch_export import export_program  # noqa: PLC0415 - imports PyTorch

    assert model.network is not None
    program, outputs = export_program(model.network.eval(), preprocess)
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
