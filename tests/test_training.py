"""`medpix train`, as a person runs it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from app.config import Settings
from app.data.schema import TRAINING_RUNS
from app.data.seed import seed
from ml.context import Options
from ml.registry import Registry
from ml.train import train_model

Document = dict[str, Any]

_PYTHON = (sys.executable, "-m")
_TORCHRUN = (*_PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def medpix(
    settings: Settings, data: Path, *arguments: str, start: Sequence[str] = _PYTHON
) -> subprocess.CompletedProcess[str]:
    """Run the command with the test's database and folders."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEDPIX_")}
    own |= {
        "MEDPIX_HOME": str(settings.home),
        "MEDPIX_MONGO_URI": str(settings.mongo_uri),
        "MEDPIX_DATA_DIR": str(data),
    }
    return subprocess.run(
        [*start, "app.cli", *arguments], env=own, capture_output=True, text=True, check=False, timeout=600
    )


def test_two_processes_train_several_models_as_one_process_would(
    settings: Settings, database: Database[Document], generated_dataset: Path, tmp_path: Path
) -> None:
    """Within noise: batch norms see half a batch and images other changes, which moves a loss by some percent."""
    seed(database, generated_dataset)
    done = medpix(
        settings, generated_dataset, "train", "modality", "location", "--epochs", "2", "--device", "cpu",
        start=_TORCHRUN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = ("caption-location", "compact", "fused-location")
    together = Registry(database, settings.model_files_dir)
    assert [card.name for card in together.list()] == list(names)
    assert [len(list((settings.model_files_dir / name).iterdir())) for name in names] == [1, 1, 1]
    assert {run["_id"]: run["state"] for run in database[TRAINING_RUNS].find()} == dict.fromkeys(names, "done")
    assert together.load("fused-location").card.inputs == ["image", "caption"]
    two = together.get("compact")
    one = train_model(
        "compact",
        database=database,
        images_dir=generated_dataset / "images",
        models_dir=tmp_path / "alone",
        device="cpu",
        options=Options(epochs=2),
    )
    assert [(epoch.part, epoch.epoch) for epoch in two.history] == [(epoch.part, epoch.epoch) for epoch in one.history]
    assert [epoch.loss for epoch in two.history] == pytest.approx([epoch.loss for epoch in one.history], rel=0.05)
    for task, scores in one.metrics["dev"].items():
        assert two.metrics["dev"][task]["nll"] == pytest.approx(scores["nll"], rel=0.05)
        low, high = scores["accuracy_95"]
        assert low <= two.metrics["dev"][task]["accuracy"] <= high
