"""Fixtures of the training package: records of the generated dataset, and models trained on them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database
from torchvision.models import resnet50
from transformers import CLIPImageProcessorPil, CLIPProcessor

from ml.dataset.records import Record, load_records
from ml.evaluation.evaluate import Results, evaluate
from ml.registry.registry import Registry
from ml.training.context import Context, Options
from ml.training.device import Team
from ml.training.progress import Run, silent
from tests.ml.tiny_clip import tiny_clip

Document = dict[str, Any]
MakeContext = Callable[..., Context]

# More threads than idle cores wait for each other: slower by far on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images_dir(generated_dataset: Path) -> Path:
    """The images of the generated dataset."""
    return generated_dataset / "images"


@pytest.fixture(scope="session")
def train_records(ml_database: Database[Document], images_dir: Path) -> list[Record]:
    """The generated train split."""
    return load_records(ml_database, images_dir)


@pytest.fixture(scope="session")
def dev_records(ml_database: Database[Document], images_dir: Path) -> list[Record]:
    """The generated dev split."""
    return load_records(ml_database, images_dir, ("dev",))


@pytest.fixture(scope="session")
def test_records(ml_database: Database[Document], images_dir: Path) -> list[Record]:
    """The generated test split."""
    return load_records(ml_database, images_dir, ("test",))


@pytest.fixture(scope="session")
def results(ml_database: Database[Document], images_dir: Path, models_dir: Path) -> Results:
    """An evaluation of the models in ``models_dir``; copy it before changing it."""
    names = ("compact", "caption-location", "fused-location")
    return evaluate(ml_database, images_dir, models_dir, names, device="cpu", register=False)


@pytest.fixture
def make_context(
    database: Database[Document],
    train_records: list[Record],
    dev_records: list[Record],
    tmp_path: Path,
) -> MakeContext:
    """Makes the surroundings of a training run, with an empty registry and options of the test's choice."""

    def make(**options: Any) -> Context:
        return Context(
            train=train_records,
            dev=dev_records,
            registry=Registry(database, tmp_path / "models"),
            device=torch.device("cpu"),
            team=Team(),
            run=Run("test", (), silent),
            options=replace(Options(), **options),
            checkpoint_dir=tmp_path / "checkpoints",
        )

    return make


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of ResNet50 as torchvision publishes it, with random weights."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(resnet50(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model with random weights, as transformers saves one: weights, tokenizer, processor."""
    folder = tmp_path_factory.mktemp("weights") / "tiny-clip"
    torch.manual_seed(5)
    towers, tokenizer = tiny_clip()
    towers.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2])
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder
