"""The interface of what runs a network."""

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

# A batch (N, ...) to the outputs of a network with N rows each.
Run = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


class NetworkOwner(Protocol):
    """A model: what asks it for its network may make it read weights and import PyTorch."""

    @property
    def network(self) -> "nn.Module | None":
        """The network to run."""
        ...


class Backend(Protocol):
    """Runs one network.

    Attributes:
        name: torch or openvino.
        device: cpu or cuda.
        precision: fp32, tf32, bf16 or fp16.
    """

    name: str
    device: str
    precision: Precision

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """A batch (N, C, H, W), 0 to 255, to the network's outputs with N rows each."""
        ...


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or the machine has no memory for a batch."""
    torch = sys.modules.get("torch")  # what was never imported raised nothing
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def is_fatal(error: Exception) -> bool:
    """Whether the driver failed so that no later call of this process to the device succeeds."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError) and "out of memory" not in str(error)
