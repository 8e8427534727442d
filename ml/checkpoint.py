"""What a training run needs to go on after it was killed, in one safetensors file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ml.files import DamagedFileError, read_tensors, replaced, write_tensors

State = dict[str, Tensor]


class Checkpoint:
    """Weights, moving average and optimizer state after a number of epochs.

    Args:
        path: the file; None for a run that keeps none.
        settings: what makes this run this run; a file with other settings is refused.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def save(self, epochs: int, network: nn.Module, average: State, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after ``epochs`` epochs; a kill meanwhile leaves the former file.

        Raises:
            OSError: the disk is full or failed.
        """
        if self.path is None:
            return
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in average.items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        with replaced(self.path) as path:
            write_tensors(path, tensors, {"epochs": epochs, "settings": self._settings})

    def restore(self, network: nn.Module, average: State, optimizer: torch.optim.Optimizer) -> int:
        """Load the state into the arguments.

        Returns:
            The finished epochs; 0 where there is no file, and everything is as it was.

        Raises:
            DamagedFileError: the file is of another run or damaged.
        """
        if self.path is None or not self.path.exists():
            return 0
        tensors, metadata = read_tensors(self.path)
        if metadata.get("settings") != self._settings:
            raise DamagedFileError(
                f"{self.path.name} belongs to a run with other settings; train without --resume or delete it"
            )
        network.load_state_dict(_part(tensors, "network."))
        for name, value in _part(tensors, "average.").items():
            average[name].copy_(value)
        states: dict[int, State] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(metadata["epochs"])

    def delete(self) -> None:
        """Remove the file, once the model is registered."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _part(tensors: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
