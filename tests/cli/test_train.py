"""`medpix train`, as a person runs it."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database

from app.cli.train import TrainingError, run_training
from app.core.settings import Settings
from app.data.schema import TRAINING_RUNS
from app.data.seed import seed
from app.serving.training_status import read_choice
from ml.registry.registry import Registry
from ml.training import pretrained
from ml.training.context import Options
from ml.training.progress import STOPPED
from ml.training.train import train_model
from tests.file_server import FileServer

Document = dict[str, Any]

_PYTHON = (sys.executable, "-m")
_TORCHRUN = (*_PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@contextmanager
def medpix(
    settings: Settings, data: Path, *arguments: str, start: Sequence[str] = _PYTHON, largest_file: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command with the test's database and folders; no file that it writes may be larger than a limit."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEDPIX_")}
    own |= {
        "MEDPIX_HOME": str(settings.home),
        "MEDPIX_MONGO_URI": str(settings.mongo_uri),
        "MEDPIX_DATA_DIR": str(data),
    }
    # A shell's background jobs ignore it; a terminal's do not.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*start, "app.main", *arguments], env=own, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    if largest_file is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_of(database: Database[Document], name: str) -> Document:
    return database[TRAINING_RUNS].find_one({"_id": name}) or {}


@pytest.fixture
def train(settings: Settings, database: Database[Document], generated_dataset: Path) -> Iterator[Callable[..., None]]:
    """Runs the training of the test's database in this process."""
    before = signal.getsignal(signal.SIGTERM)
    own = settings.model_copy(update={"data_dir": generated_dataset})
    yield lambda *names, **chosen: run_training(
        own, database, names, missing=False, device="cpu", options=Options(**chosen)
    )
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("names", "chosen", "message"),
    [
        (
            ["caption-location"],
            {"epochs": 3},
            "--epochs changes nothing for caption-location; it is for efficientnet, compact, ",
        ),
        (
            ["compact"],
            {"weights": "scratch"},
            "--weights changes nothing for compact; it is for efficientnet, resnet50-modality, ",
        ),
        (["resnet50-modality"], {"weights": "/no/such.pth"}, "--weights /no/such.pth: there is no such file or folder"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(
    names: list[str], chosen: Document, message: str, train: Callable[..., None], database: Database[Document]
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(*names, **chosen)
    assert not list(database[TRAINING_RUNS].find())


def test_an_option_that_changes_some_models_is_said_of_the_others(
    train: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TrainingError, match="medpix seed"):
        train("knn-colour", "compact", epochs=3)
    assert "--epochs changes nothing for knn-colour." in caplog.messages


def test_what_waits_fails_with_what_failed(train: Callable[..., None], database: Database[Document]) -> None:
    with pytest.raises(TrainingError, match="run `medpix seed` first"):
        train("compact", "caption-location")
    for name in ("compact", "caption-location"):
        run = run_of(database, name)
        assert run["state"] == "failed"
        assert "run `medpix seed` first" in run["message"]


def test_ctrl_c_says_how_to_go_on(settings: Settings, database: Database[Document], generated_dataset: Path) -> None:
    seed(database, generated_dataset)
    with medpix(settings, generated_dataset, "train", "compact", "caption-location", "--device", "cpu") as process:
        while not run_of(database, "compact").get("epoch"):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + signal.SIGINT
    assert STOPPED in errors
    assert "Traceback" not in errors
    assert (run_of(database, "compact")["state"], run_of(database, "compact")["message"]) == ("failed", STOPPED)
    assert run_of(database, "caption-location")["message"] == f"not started: {STOPPED}"


def test_a_full_disk_leaves_the_model_of_before_in_use(
    settings: Settings,
    database: Database[Document],
    ml_database: Database[Document],
    models_dir: Path,
    generated_dataset: Path,
) -> None:
    """No file may be larger than 1 MB: the system refuses the rest, as a full disk would."""
    seed(database, generated_dataset)
    registry = Registry(database, settings.model_files_dir)
    before = registry.register(Registry(ml_database, models_dir).load("compact"))
    with medpix(
        settings, generated_dataset, "train", "compact", "--device", "cpu", "--epochs", "1", largest_file=1_000_000
    ) as process:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 1, errors
    assert "Traceback" not in errors
    folder = settings.model_files_dir / ".training" / "compact"
    assert f"the checkpoint could not be written to {folder}: File too large (os error 27). Make room there" in errors
    assert "Models that are registered stay in use" in run_of(database, "compact")["message"]
    assert registry.load("compact").card.version == before.version


def test_two_processes_train_several_models_as_one_process_would(
    settings: Settings, database: Database[Document], generated_dataset: Path, tmp_path: Path
) -> None:
    """Within noise: on a CPU batch norms see half a batch, and images other changes: a loss moves by some percent."""
    seed(database, generated_dataset)
    wanted = ("fused-location", "compact", "caption-location")
    with medpix(
        settings, generated_dataset, "train", *wanted, "--epochs", "2", "--device", "cpu", start=_TORCHRUN
    ) as process:
        errors = process.communicate(timeout=600)[1]
        assert process.returncode == 0, errors
    names = ("caption-location", "compact", "fused-location")
    together = Registry(database, settings.model_files_dir)
    assert [card.name for card in together.cards()] == list(names)
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


def test_a_start_leaves_out_what_has_no_weights_and_trains_the_rest(
    settings: Settings,
    database: Database[Document],
    generated_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed(database, generated_dataset)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    own = settings.model_copy(update={"data_dir": generated_dataset, "train": ["resnet50-modality", "knn-colour"]})
    with FileServer(b"a page of a captive portal").running() as url:
        monkeypatch.setattr(pretrained, "_RESNET50_URL", url)
        before = signal.getsignal(signal.SIGTERM)
        run_training(own, database, [], missing=True, device="cpu", options=Options())
        signal.signal(signal.SIGTERM, before)
    assert [card.name for card in Registry(database, settings.model_files_dir).cards()] == ["knn-colour"]
    choice = read_choice(database)
    assert choice is not None
    assert choice["reason"] == "MEDPIX_TRAIN is resnet50-modality,knn-colour"
    assert choice["notes"][0].startswith("resnet50-modality is left out: ResNet50 (ImageNet): what 127.0.0.1 sent as ")
    assert run_of(database, "resnet50-modality")["state"] == "failed"
