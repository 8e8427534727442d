"""A network, examples and a recipe that train in a moment."""

from typing import Final

import numpy as np
import torch

from ml.models.network import CompactBackbone, MultiTaskNetwork
from ml.training.augment import Augment
from ml.training.loop import Examples, Recipe, make_examples

CPU: Final = torch.device("cpu")
NO_AUGMENTATION: Final = Augment(
    rotation=0, scale=0, aspect=0, shift=0, flip=0, gamma=0, contrast=0, brightness=0, erase=0
)
RECIPE: Final = Recipe(
    epochs=3,
    batch_size=16,
    learning_rate=5e-3,
    task_weights={"modality": 1.0},
    ema_decay=0.9,
    augment=Augment(erase=0.5),
)


def network(seed: int = 0, dropout: float = 0.1) -> MultiTaskNetwork:
    """Grey images of 32 pixels to the modality, with batch norm and dropout."""
    torch.manual_seed(seed)
    backbone = CompactBackbone(channels=1, width=8, blocks=(1, 1, 1))
    return MultiTaskNetwork(backbone, backbone.features, {"modality": 2}, dropout=dropout)


def discs() -> Examples:
    """64 images of 32 pixels, dark discs against bright ones: a task that a small network learns in seconds."""
    random = np.random.default_rng(0)
    targets = np.arange(64) % 2
    pixels = random.integers(0, 40, (64, 1, 32, 32))
    pixels[:, :, 8:24, 8:24] += np.where(targets, 180, 60)[:, None, None, None]
    return make_examples(pixels.astype(np.uint8), {"modality": targets}, np.arange(64).astype(str))
