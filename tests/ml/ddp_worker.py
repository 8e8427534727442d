"""Trains a small network with all processes of ``torchrun``: ``torchrun -m tests.ml.ddp_worker FOLDER``."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ml.registry.artifacts import write_tensors
from ml.training.augment import Augment
from ml.training.device import team
from ml.training.loop import Recipe, fit, make_examples

# Nothing here depends on which process an image is in: no draws, and no statistics of a batch.
_NONE = Augment(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
RECIPE = Recipe(epochs=3, batch=16, rate=5e-3, task_weights={"modality": 1.0}, average=0.9, augment=_NONE)


class Plain(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"modality": self.head(self.body(x).mean(dim=(2, 3)))}


def start() -> nn.Module:
    """The network before training."""
    torch.manual_seed(0)
    return Plain()


def train() -> tuple[nn.Module, list[float]]:
    """The network after training, and the mean loss of each epoch."""
    losses: list[float] = []
    random = np.random.default_rng(0)
    targets = np.arange(64) % 2
    pixels = random.integers(0, 40, (64, 1, 32, 32))
    pixels[:, :, 8:24, 8:24] += np.where(targets, 180, 60)[:, None, None, None]
    examples = make_examples(pixels.astype(np.uint8), {"modality": targets}, np.arange(64).astype(str), 0.0)
    with team(torch.device("cpu")) as workers:
        network = fit(
            start(),
            examples,
            RECIPE,
            mean=(0.3,),
            std=(0.3,),
            seed=1,
            device=torch.device("cpu"),
            team=workers,
            on_epoch=lambda _, loss: losses.append(loss),
        )
    return network, losses


if __name__ == "__main__":
    trained, means = train()
    write_tensors(Path(sys.argv[1]) / os.environ["RANK"], trained.state_dict(), {"losses": means})
