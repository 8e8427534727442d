"""A training that is killed at any epoch ends as one that was not."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from app.data.schema import TRAINING_RUNS
from app.data.seed import seed
from ml.registry.registry import Registry
from tests.conftest import database_address
from tests.ml.train_until_killed import train

Document = dict[str, Any]


@dataclass(frozen=True)
class Killed:
    """Trainings that were killed at every epoch.

    Attributes:
        database: where they are registered.
        images: that they learned from.
        models: folder of the registered models.
        weights: that each started from.
        ended: how each process of a model ended.
    """

    database: Database[Document]
    images: Path
    models: Path
    weights: dict[str, str]
    ended: dict[str, list[int]]


@pytest.fixture(scope="module")
def killed(
    mongo_client: MongoClient[Document],
    mongo_server: str,
    generated_dataset: Path,
    resnet_file: Path,
    clip_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Killed]:
    """Each process is killed at its second epoch, when the checkpoint of the first is written."""
    database, images = mongo_client["killed"], generated_dataset / "images"
    seed(database, generated_dataset)
    models = tmp_path_factory.mktemp("killed") / "models"
    weights = {"compact": "auto", "resnet50-modality": str(resnet_file), "clip-location": str(clip_folder)}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.ml.train_until_killed", database_address(mongo_server, database.name)),
            *(str(images), str(models), *(f"{name}={start}" for name, start in weights.items())),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "trained from the start" not in done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    yield Killed(database, images, models, weights, {name: [int(code) for code in codes] for name, *codes in rows})
    mongo_client.drop_database(database)


@pytest.mark.parametrize(("name", "epochs"), [("compact", 4), ("resnet50-modality", 3), ("clip-location", 2)])
def test_a_training_killed_at_every_epoch_ends_as_one_that_was_not(
    name: str, epochs: int, killed: Killed, tmp_path: Path
) -> None:
    assert killed.ended[name] == [-signal.SIGKILL] * (epochs - 1) + [0]
    assert (killed.database[TRAINING_RUNS].find_one({"_id": name}) or {})["state"] == "done"
    card = Registry(killed.database, killed.models).get(name)
    whole = train(name, killed.database, killed.images, tmp_path, killed.weights[name], kill=0)
    assert len(card.history) == epochs
    assert card.history == whole.history
    assert card.metrics == whole.metrics
    assert card.temperature == whole.temperature
    assert card.settings == whole.settings
    assert [file.sha256 for file in card.files] == [file.sha256 for file in whole.files]
    assert (card.init, card.weights_source, card.seed) == (whole.init, whole.weights_source, whole.seed)
    assert not list((killed.models / ".training").iterdir()), "no checkpoint is left"
