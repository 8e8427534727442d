"""PyTorch networks as exported programs that OpenVINO converts."""

from typing import Final

import torch
from torch import Tensor, nn

from ml.dataset.preprocess import Preprocess
from ml.models.network import MultiTaskNetwork, ServingNetwork

_MAX_BATCH: Final = 256


class _Ordered(nn.Module):
    """A network whose outputs come as a tuple, in a fixed order, as an exported graph needs them."""

    def __init__(self, network: nn.Module, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._network = network
        self.names = names

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self.outputs(pixels)
        return tuple(outputs[name] for name in self.names)

    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """By name; with the last feature maps where the network is known to give class activation maps."""
        # A subclass may answer otherwise than by its members' heads.
        if type(self._network) is ServingNetwork and all(
            isinstance(member, MultiTaskNetwork) for member in self._network.members
        ):
            return self._network.forward_with_maps(pixels)
        outputs: dict[str, Tensor] = self._network(pixels)
        return outputs


def export_program(network: nn.Module, preprocess: Preprocess) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """A network as a program for batches of 1 to 256 images of uint8.

    Args:
        network: in evaluation mode.
        preprocess: says the shape of its input.

    Returns:
        The program, and the names of its outputs in order.
    """
    example = torch.zeros((2, preprocess.channels, preprocess.size, preprocess.size), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    with torch.no_grad():
        ordered = _Ordered(network)
        ordered.names = tuple(ordered.outputs(example))
        program = torch.export.export(ordered, (example,), dynamic_shapes=({0: batch},))
    return program, ordered.names
