"""Fixtures of the training package: records of the generated dataset, and models trained on them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo import MongoClient
from pymongo.database import Database

from app.data.seed import seed
from ml.context import Context, Options
from ml.device import Team
from ml.progress import Run, silent
from ml.records import Record, load_records
from ml.registry import Registry
from ml.train import train_model

Document = dict[str, Any]
MakeContext = Callable[..., Context]

# More threads than idle cores wait for each other: slower by far on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images_dir(generated_dataset: Path) -> Path:
    """The images of the generated dataset."""
    return generated_dataset / "images"


@pytest.fixture(scope="session")
def ml_database(mongo_client: MongoClient[Document], generated_dataset: Path) -> Database[Document]:
    """The generated dataset in a database whose models belong to the tests of ml."""
    database = mongo_client["generated_ml"]
    seed(database, generated_dataset)
    return database


@pytest.fixture(scope="session")
def train_records(ml_database: Database[Document], images_dir: Path) -> list[Record]:
    """The generated train split."""
    return load_records(ml_database, images_dir)


@pytest.fixture(scope="session")
def dev_records(ml_database: Database[Document], images_dir: Path) -> list[Record]:
    """The generated dev split."""
    return load_records(ml_database, images_dir, ("dev",))


@pytest.fixture(scope="session")
def models_dir(ml_database: Database[Document], images_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the default models, trained for two epochs and registered in ``ml_database``."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("compact", "caption-location", "fused-location"):
        train_model(
            name,
            database=ml_database,
            images_dir=images_dir,
            models_dir=folder,
            device="cpu",
            options=Options(epochs=2, members=1),
        )
    return folder


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
            scratch=tmp_path / "scratch",
        )

    return make
