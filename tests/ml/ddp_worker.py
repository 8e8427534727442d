"""Trains small networks with all processes of ``torchrun``: ``torchrun -m tests.ml.ddp_worker FOLDER``."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from ml.dataset import labels
from ml.models.dual_encoder import CAPTION_HEADS, DualEncoder
from ml.models.dual_encoder_train import DualEncoderSettings
from ml.registry.artifacts import write_json, write_tensors
from ml.training.device import Team, team
from ml.training.loop import Examples, Recipe, fit, make_examples
from ml.training.pretrained import RemoteWeights, resnet50_state
from tests.ml.small_options import CPU, NO_AUGMENTATION, RECIPE, discs

# Nothing here depends on which process an image is in: no draws, and no statistics of a batch. Of an odd batch one
# process has more than the other.
_RECIPE: Final = replace(RECIPE, batch_size=15, augment=NO_AUGMENTATION, amp=False)
_IMAGES: Final = 64
Trained = tuple[nn.Module, list[float]]


class Plain(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"modality": self.head(self.body(x).mean(dim=(2, 3)))}


def start(kind: str) -> nn.Module:
    """A network before training."""
    torch.manual_seed(0)
    return Plain() if kind == "plain" else DualEncoder(size=16, hidden=32, dropout=0.0, case_positive=0.5)


def train(kind: str, workers: Team) -> Trained:
    """A network after training, and the mean loss of each epoch."""
    return _train_plain(workers) if kind == "plain" else _train_pairs(workers)


def _train_plain(workers: Team) -> Trained:
    """Some images have no label, so that the processes have labels for different numbers of images."""
    examples = discs()
    unlabelled = torch.rand(len(examples), generator=torch.Generator().manual_seed(0)) < 0.4
    targets = examples.targets["modality"].masked_fill(unlabelled, labels.IGNORED)
    return _fit("plain", replace(examples, targets={"modality": targets}), _RECIPE, workers, {})


def _train_pairs(workers: Team) -> Trained:
    """A dual encoder on frozen features; some captions are equal, some of one case, some missing."""
    random = np.random.default_rng(1)
    recipe = replace(_RECIPE, task_weights=DualEncoderSettings().recipe.task_weights)
    classes = {task: len(names) for task, names in labels.TASKS.items()} | {labels.PLANE: len(labels.PLANES)}
    classes |= {head: classes[task] for task, head in CAPTION_HEADS.items()}
    targets = {task: random.integers(labels.IGNORED, count, _IMAGES) for task, count in classes.items()}
    pixels = random.integers(0, 256, (_IMAGES, 3, 32, 32), dtype=np.uint8)
    examples = replace(
        make_examples(pixels, targets, np.arange(_IMAGES).astype(str)),
        inputs={"sentences": torch.from_numpy(random.normal(0, 0.05, (_IMAGES, 384)).astype(np.float32))},
        loss_inputs={
            "captions": torch.from_numpy(random.integers(-1, 12, _IMAGES)),
            "cases": torch.from_numpy(random.integers(0, 8, _IMAGES)),
        },
    )
    # Batch norms of a frozen part keep their statistics.
    return _fit("pairs", examples, recipe, workers, {"image.backbone": 0.0})


def _fit(kind: str, examples: Examples, recipe: Recipe, workers: Team, rates: dict[str, float]) -> Trained:
    losses: list[float] = []
    mean = (0.3,) * examples.pixels.shape[1]
    network = fit(
        start(kind),
        examples,
        recipe,
        mean=mean,
        std=mean,
        seed=1,
        device=CPU,
        team=workers,
        rates=rates,
        on_epoch=lambda _, loss: losses.append(loss),
    )
    return network, losses


def find_weights(workers: Team) -> str:
    """Where ResNet50's weights come from, where the network answers all processes but the first."""
    with mock.patch.object(RemoteWeights, "obtainable", not workers.is_main_process):
        return resnet50_state("auto", workers)[1]


def main() -> None:
    """Train each network, and keep its weights in a file per process."""
    with team(CPU) as workers:
        write_json(Path(sys.argv[1]) / f"weights-{workers.rank}", {"source": find_weights(workers)})
        for kind in ("plain", "pairs"):
            trained, means = train(kind, workers)
            write_tensors(Path(sys.argv[1]) / f"{kind}-{workers.rank}", trained.state_dict(), {"losses": means})


if __name__ == "__main__":
    main()
