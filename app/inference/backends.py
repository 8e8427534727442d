"""Where a network runs: PyTorch on CUDA, OpenVINO on the CPU, PyTorch on the CPU where that fails."""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.config import Settings
from ml.preprocess import Preprocess

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Backend(Protocol):
    """Runs one network.

    Attributes:
        name: torch or openvino.
        device: cpu or cuda.
        precision: fp32 or bf16.
    """

    name: str
    device: str
    precision: str

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """A batch (N, C, H, W), 0 to 255, to the network's outputs with N rows each."""
        ...


class TorchBackend:
    """PyTorch, on any device."""

    name = "torch"
    precision = "fp32"

    def __init__(self, network: nn.Module, device: str) -> None:
        self.device = device
        self._network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)
            outputs: dict[str, Tensor] = self._network(batch.contiguous(memory_format=torch.channels_last))
            return {name: output.float().cpu().numpy() for name, output in outputs.items()}


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
    """OpenVINO on the CPU, in fp32."""

    name = "openvino"
    device = "cpu"
    precision = "fp32"

    def __init__(self, network: nn.Module, preprocess: Preprocess, *, threads: int) -> None:
        example = torch.zeros((2, preprocess.channels, preprocess.size, preprocess.size), dtype=torch.uint8)
        network = network.eval()
        with torch.inference_mode():
            self._names = tuple(network(example))
        graph = ov.convert_model(
            _Ordered(network, self._names),
            example_input=example,
            input=[(ov.PartialShape([-1, *example.shape[1:]]), ov.Type.u8)],
        )
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        self._compiled = ov.Core().compile_model(graph, "CPU", options)

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        outputs = self._compiled([pixels], share_inputs=True)
        return {name: np.array(outputs[index]) for index, name in enumerate(self._names)}


def make_backend(network: nn.Module, preprocess: Preprocess, settings: Settings) -> Backend:
    """The fastest backend that this machine has for a network.

    Raises:
        RuntimeError: MEDPIX_DEVICE=cuda, and there is no CUDA device.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("MEDPIX_DEVICE=cuda, but PyTorch sees no CUDA device. Use auto or cpu.")
    if settings.device != "cpu" and torch.cuda.is_available():
        return TorchBackend(network, "cuda")
    try:
        return OpenVinoBackend(network, preprocess, threads=torch.get_num_threads())
    except Exception:
        logger.warning("OpenVINO cannot run this network; PyTorch does", exc_info=True)
        return TorchBackend(network, "cpu")
