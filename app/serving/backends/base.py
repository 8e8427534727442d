"""Where a network runs: PyTorch on CUDA, OpenVINO on the CPU, PyTorch on the CPU where that fails."""

import hashlib
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, Protocol

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.core.cpus import usable_cpus
from app.core.settings import Settings
from ml import models
from ml.dataset.preprocess import Preprocess

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

Precision = Literal["fp32", "bf16", "fp16"]

_HINTS: Final[Mapping[Precision, str]] = {"fp32": "f32", "bf16": "bf16"}
_TYPES: Final[Mapping[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Of CUDA devices: from here on fp16 has units of its own.
_HALF_CAPABILITY: Final = (7, 0)
_GRAPH_FILE: Final = "graph.xml"
_MAX_BATCH: Final = 256


class Backend(Protocol):
    """Runs one network.

    Attributes:
        name: torch or openvino.
        device: cpu or cuda.
        precision: fp32, bf16 or fp16.
    """

    name: str
    device: str
    precision: Precision

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """A batch (N, C, H, W), 0 to 255, to the network's outputs with N rows each."""
        ...


class TorchBackend:
    """PyTorch, on any device."""

    name = "torch"

    def __init__(self, network: nn.Module, device: str, precision: Precision = "fp32") -> None:
        self.device = device
        self.precision = precision
        self._network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # PyTorch rounds the inputs of convolutions to TF32, with 10 bits, unless it is told not to: fp32 is what
        # lower precisions are compared with.
        torch.backends.cudnn.allow_tf32 = False

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        outputs = self.forward(torch.from_numpy(pixels).to(self.device))
        return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    def forward(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """Run a batch that is on the device already; so are the outputs."""
        kind = _TYPES.get(self.precision)
        keep = self.device != "cuda"  # converted weights that autocast keeps could not be recorded as a CUDA graph
        with torch.inference_mode(), torch.autocast(self.device, kind, enabled=kind is not None, cache_enabled=keep):
            outputs: dict[str, Tensor] = self._network(pixels.contiguous(memory_format=torch.channels_last))
            return outputs


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
        with torch.no_grad():
            self.outputs = tuple(network.eval()(example))
        graph = _cached_graph(cache) or _convert(_Ordered(network, self.outputs), example, cache)
        self._compiled = self._compile(graph, streams=1)

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        outputs = self._compiled([pixels], share_inputs=True)
        return {name: np.array(outputs[index]) for index, name in enumerate(self.outputs)}

    def compile(self, streams: int) -> ov.CompiledModel:
        """The same network for so many batches at once, each with its share of the threads.

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
        return ov.Core().read_model(cache / _GRAPH_FILE) if (cache / _GRAPH_FILE).exists() else None
    except RuntimeError:
        logger.warning("the converted graph in %s cannot be read; it is made again", cache)
        return None


def _convert(network: nn.Module, example: Tensor, cache: Path) -> ov.Model:
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    graph = ov.convert_model(program)
    with suppress(OSError, RuntimeError):  # a disk that is full or read-only costs time, not the service
        cache.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache.parent) as folder:
            # compress_to_fp16 would change the weights.
            ov.save_model(graph, Path(folder) / "new" / _GRAPH_FILE, compress_to_fp16=False)
            shutil.rmtree(cache, ignore_errors=True)
            (Path(folder) / "new").rename(cache)
    return graph


def low_precision(device: str) -> Precision | None:
    """What a device computes in faster than in fp32, by itself and not by a detour; None where there is nothing."""
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability() >= _HALF_CAPABILITY else None
    return "bf16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else None


def device_name(device: str) -> str:
    """The maker's name of a device."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME"))


def on_cuda(settings: Settings) -> bool:
    """Whether networks run on a CUDA device."""
    return settings.device != "cpu" and torch.cuda.is_available()


@cache
def software() -> str:
    """Names what runs networks, and the code that they are made of: with equal weights either may change an answer."""
    code = hashlib.sha256()
    for path in sorted(Path(models.__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return f"openvino {ov.__version__} torch {torch.__version__} code {code.hexdigest()}"


def make_backend(
    network: nn.Module, preprocess: Preprocess, settings: Settings, weights: str, precision: Precision = "fp32"
) -> Backend:
    """The fastest backend that this machine has for a network.

    Args:
        network: to run.
        preprocess: says the shape of its input.
        settings: device and cache folder.
        weights: hash of the network's weights, for the cache.
        precision: to compute in; where OpenVINO fails, PyTorch on the CPU does in fp32.

    Returns:
        On CUDA PyTorch, else OpenVINO; ``app.serving.autotune`` may know a way that is faster still.

    Raises:
        RuntimeError: MEDPIX_DEVICE=cuda, and there is no CUDA device.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("MEDPIX_DEVICE=cuda, but PyTorch sees no CUDA device. Use auto or cpu.")
    if on_cuda(settings):
        return TorchBackend(network, "cuda", precision)
    try:
        key = hashlib.sha256(f"{weights} {preprocess.hash} {software()}".encode()).hexdigest()[:32]
        cache = settings.home / "cache" / "openvino" / key
        threads = min(torch.get_num_threads(), usable_cpus())
        return OpenVinoBackend(network, preprocess, threads=threads, cache=cache, precision=precision)
    except Exception:
        logger.warning("OpenVINO cannot run this network; PyTorch does", exc_info=True)
        return TorchBackend(network, "cpu")
