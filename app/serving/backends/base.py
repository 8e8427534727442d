"""The interface of what runs a network."""

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


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
