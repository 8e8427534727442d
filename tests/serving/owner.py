from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Owner:
    """A model of which only the network matters."""

    network: nn.Module
