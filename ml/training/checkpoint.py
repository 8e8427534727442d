"""Checkpoints of a training run, one safetensors file per part of the run."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.core.exceptions import UserError
from app.core.files import atomic_write
from ml.models.base import sub_state
from ml.registry.artifacts import DamagedFileError, read_tensors, write_tensors
from ml.training.progress import Run, silent

State = dict[str, Tensor]
_LOG = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint could not be written; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class CheckpointPath:
    """The checkpoint file of a part of a run, and the run.

    Attributes:
        path: the file; None for a part that keeps none.
        run: the run, whose history and time are kept with it.
    """

    path: Path | None = None
    run: Run = field(default_factory=lambda: Run("", (), silent))


class TrainState(NamedTuple):
    """The state of a training: all that changes with each step.

    Attributes:
        network: the network.
        ema: the moving average of its weights; empty where there is none.
        optimizer: its optimizer.
        scaler: of the gradients; only float16 needs one.
    """

    network: nn.Module
    ema: State
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None


def digest(tensors: Iterable[Tensor]) -> str:
    """The sha256 over type, shape and content of tensors, in hexadecimal."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


class Checkpoint:
    """The training state after a number of epochs, and the progress of its run by then.

    Args:
        path: file and run.
        state: what is saved and restored.
        identity: all that decides how the training ends, as JSON values by name: data, seed, recipe
            and the weights that it starts from.
        epochs: that the part will have.
    """

    def __init__(self, path: CheckpointPath, state: TrainState, identity: Mapping[str, Any], epochs: int) -> None:
        self._path, self._state, self._epochs = path, state, epochs
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))

    def save(self, epochs: int) -> None:
        """Write the state after ``epochs`` epochs; a kill meanwhile leaves the former file.

        Raises:
            CheckpointError: the disk is full or failed.
        """
        path, state = self._path.path, self._state
        if path is None:
            return
        tensors = {f"network.{name}": value for name, value in state.network.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in state.ema.items()}
        for index, moments in state.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        metadata = {
            "epochs": epochs,
            "identity": self._identity,
            "run": self._path.run.state_dict(),
            "scaler": state.scaler.state_dict() if state.scaler is not None else {},
        }
        try:
            with atomic_write(path) as temporary:
                write_tensors(temporary, tensors, metadata)
        except OSError as error:
            resumes = f"from epoch {epochs - 1}" if path.exists() else "from the start of this part"
            raise CheckpointError(
                f"the checkpoint could not be written to {path.parent}: {error}. Make room there, about "
                f"{_megabytes(tensors)} MB, and start the training again: it goes on {resumes}. "
                "Models that are registered stay in use"
            ) from error

    def restore(self) -> int:
        """Load the state from the file, and the progress into the run.

        A file of another run, or a damaged one, is left alone, with a warning: this run starts from the beginning
        and replaces it after its first epoch.

        Returns:
            The finished epochs; 0 where there is nothing to go on from, and everything is as it was.
        """
        path, state, run = self._path.path, self._state, self._path.run
        if path is None or not path.exists():
            return 0
        try:
            tensors, metadata = read_tensors(path)
        except DamagedFileError as error:
            _LOG.warning("%s; this part is trained from the start, as with --fresh", error)
            return 0
        saved = metadata.get("identity", {})
        changed = [name for name, value in self._identity.items() if saved.get(name) != value]
        if changed:
            _LOG.warning(
                "The checkpoint %s is of a run with other %s: this part is trained from the start, as with --fresh, "
                "and replaces it after its first epoch. To go on with the former run, stop now and repeat its command.",
                path,
                ", ".join(changed),
            )
            return 0
        state.network.load_state_dict(sub_state(tensors, "network."))
        for name, value in sub_state(tensors, "ema.").items():
            state.ema[name].copy_(value)
        states: dict[int, State] = {}
        for name, value in sub_state(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = value
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": states, "param_groups": groups})
        if state.scaler is not None and metadata["scaler"]:
            state.scaler.load_state_dict(metadata["scaler"])
        epochs = int(metadata["epochs"])
        run.load_state_dict(metadata["run"])
        run.update(epochs / self._epochs, f"resumes after epoch {epochs}", epoch=epochs, epochs=self._epochs)
        return epochs


def _megabytes(tensors: State) -> int:
    return 1 + sum(value.numel() * value.element_size() for value in tensors.values()) // 1_000_000
