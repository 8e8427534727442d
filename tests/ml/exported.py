"""Runs a network the way the service does on a CPU: exported by PyTorch, compiled by OpenVINO."""

from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class _Ordered(nn.Module):
    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(pixels)
        return tuple(outputs[name] for name in self.names)


def run_openvino(network: nn.Module, pixels: Tensor) -> dict[str, NDArray[Any]]:
    """The outputs of a network by name."""
    with torch.no_grad():
        names = tuple(network(pixels))
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(_Ordered(network, names), (pixels,), dynamic_shapes=({0: batch},))
    compiled = openvino.compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled([pixels.numpy()])
    return {name: np.array(outputs[index]) for index, name in enumerate(names)}
