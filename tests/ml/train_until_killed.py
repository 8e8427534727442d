"""Small models that a process trains until it kills itself.

python -m tests.ml.train_until_killed NAME DATABASE IMAGES MODELS WEIGHTS
"""

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from pymongo import MongoClient
from pymongo.database import Database

from app.core.progress import Progress
from ml.dataset.preprocess import Preprocess
from ml.models import clip_train, compact, resnet
from ml.models.clip import HeadSettings
from ml.registry.model_card import ModelCard
from ml.training.context import Options
from ml.training.train import train_model

_COMPACT: Final = compact.CompactSettings(width=8, preprocess=Preprocess(size=64))
_RESNET: Final = resnet.ResNetSettings(preprocess=replace(resnet.ResNetSettings().preprocess, size=64))
# Every recipe is the real one, for fewer epochs on smaller images.
TRAINERS: Final = {
    "compact": (compact, replace(_COMPACT, recipe=replace(_COMPACT.recipe, epochs=2))),
    "resnet50-modality": (
        resnet,
        replace(_RESNET, head=replace(_RESNET.head, epochs=1), tune=replace(_RESNET.tune, epochs=2)),
    ),
    "clip-location": (clip_train, HeadSettings(epochs=2)),
}


class Killer:
    """Kills its process when the n-th epoch is reported; its checkpoint is not written by then."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs
        self.message = ""

    def __call__(self, progress: Progress) -> None:
        # Within an epoch the message of the last one stays.
        self.left -= "loss" in progress.message and progress.message != self.message
        self.message = progress.message
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    name: str, database: Database[dict[str, Any]], images: Path, models: Path, weights: str, kill: int
) -> ModelCard:
    """Train a small model; killed at the n-th epoch report, never for 0."""
    torch.set_num_threads(1)
    module, settings = TRAINERS[name]
    with mock.patch.object(module, "train", partial(module.train, settings=settings)):
        return train_model(
            name,
            database=database,
            images_dir=images,
            models_dir=models,
            device="cpu",
            reporter=Killer(kill or sys.maxsize),
            options=Options(weights=weights),
        )


def main() -> None:
    """Train each until a process ends well, and print how each process ended: exit code, or minus its signal."""
    address, images, models, *named = sys.argv[1:]
    for item in named:
        name, _, weights = item.partition("=")
        ended = [-signal.SIGKILL]
        while ended[-1] == -signal.SIGKILL:
            # A fork has the libraries already; nothing but imports was run before it.
            child = os.fork()
            if child == 0:
                with MongoClient[dict[str, Any]](address, tz_aware=True) as client:
                    train(name, client.get_default_database(), Path(images), Path(models), weights, kill=2)
                os._exit(0)
            ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        sys.stdout.write(f"{name} {' '.join(map(str, ended[1:]))}\n")


if __name__ == "__main__":
    main()
