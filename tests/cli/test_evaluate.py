"""`medpix evaluate`, as a person runs it: a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from typer.testing import CliRunner

from app.cli.evaluate import EvaluationError, evaluate_if_due, run_evaluation
from app.core.settings import Settings, load_settings
from app.data import schema
from app.main import app
from ml.evaluation.report import ReportError
from ml.registry.registry import Registry
from ml.training.context import Options
from tests.conftest import Document, database_address


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """An evaluation answers SIGTERM by itself, and so must not after the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def own_settings(
    own_models: Path, database: Database[Document], generated_dataset: Path, mongo_server: str, tmp_path: Path
) -> Settings:
    """Settings of a home of this test's own, with trained models."""
    return load_settings(
        home=tmp_path / "home",
        mongo_uri=database_address(mongo_server, database.name),
        models_dir=own_models,
        data_dir=generated_dataset,
    )


@pytest.fixture
def environment(own_settings: Settings) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEDPIX_")}
    return own | {
        "MEDPIX_HOME": str(own_settings.home),
        "MEDPIX_MONGO_URI": str(own_settings.mongo_uri),
        "MEDPIX_MODELS_DIR": str(own_settings.models_dir),
        "MEDPIX_DATA_DIR": str(own_settings.data_dir),
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def test_the_command_prints_the_table_and_writes_the_report(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    completed = run(environment, "evaluate", "caption-location", "--no-register", "--device", "cpu", "--out", str(out))
    assert completed.returncode == 0, completed.stderr
    assert "the split 'test' of a dataset that is not MedPix 2.0" in completed.stdout
    accuracy = results_of(out)["models"]["caption-location"]["tasks"]["location_category"]["scores"]["accuracy"]
    line = [line for line in completed.stdout.splitlines() if "caption-location" in line][-1]
    assert f"{accuracy:.3f}" in line
    assert f"Report: {out / 'report.html'}" in completed.stdout
    assert (out / "report.html").stat().st_size > 10_000


def test_an_evaluation_of_some_models_leaves_the_leaderboard(own_settings: Settings, database: Any) -> None:
    served = own_settings.home / "evaluation"
    run_evaluation(own_settings, database, ["all"], device="cpu")
    before = {path.name: path.read_bytes() for path in served.iterdir()}
    assert set(results_of(served)["models"]) == {"compact", "caption-location", "fused-location"}
    run_evaluation(own_settings, database, ["caption-location"], device="cpu")
    run_evaluation(own_settings, database, ["all"], split="dev", device="cpu")
    after = {path.name: path.read_bytes() for path in served.iterdir() if path.is_file()}
    assert after == before
    assert set(results_of(served / "test-caption-location")["models"]) == {"caption-location"}
    assert results_of(served / "dev-all")["split"]["split"] == "dev"
    # Named by their tasks or one by one, all models are all models.
    run_evaluation(own_settings, database, ["location", "modality"], device="cpu")
    assert results_of(served)["created_at"] != json.loads(before["results.json"])["created_at"]


def test_after_training_all_models_are_evaluated_once(
    environment: dict[str, str],
    own_settings: Settings,
    database: Database[Document],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = own_settings.home / "evaluation" / "results.json"
    first = run(environment, "train", "caption-location", "--evaluate", "--device", "cpu")
    assert first.returncode == 0, first.stderr
    registered = {card.name: card.version for card in Registry(database, own_settings.model_files_dir).cards()}
    assert {name: row["version"] for name, row in results_of(report.parent)["models"].items()} == registered
    progress = database[schema.TRAINING_RUNS].find_one({"_id": schema.EVALUATION_RUN})
    assert progress is not None
    assert (progress["state"], progress["fraction"], progress["tasks"]) == ("done", 1.0, [])
    content = report.read_bytes()
    caplog.set_level("INFO")
    evaluate_if_due(own_settings, database, device="cpu")
    assert report.read_bytes() == content
    assert "nothing to evaluate" in caplog.text
    report.write_text(content.decode().replace(registered["compact"], "an older one"))
    with monkeypatch.context() as patched:
        patched.setenv("RANK", "1")
        evaluate_if_due(own_settings, database, device="cpu")
    assert "an older one" in report.read_text(), "of the processes of torchrun the first one evaluates"
    evaluate_if_due(own_settings, database, device="cpu")
    assert results_of(report.parent)["models"]["compact"]["version"] == registered["compact"]


def test_trainings_of_folds_show_no_progress_of_a_model(
    own_settings: Settings, database: Database[Document], tmp_path: Path
) -> None:
    options = Options(epochs=1)
    run_evaluation(
        own_settings, database, ["caption-location"], tmp_path / "out", device="cpu", seeds=2, options=options
    )
    assert [run["_id"] for run in database[schema.TRAINING_RUNS].find()] == [schema.EVALUATION_RUN]


def test_checkpoints_stay_until_the_report_is_written(
    own_settings: Settings, database: Database[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ReportError("the report could not be written: No space left on device")

    def attempt() -> None:
        run_evaluation(
            own_settings,
            database,
            ["compact"],
            tmp_path / "out",
            device="cpu",
            seeds=2,
            options=Options(epochs=1, members=1),
        )

    scratch = own_settings.model_files_dir / ".training"
    with monkeypatch.context() as patched:
        patched.setattr("ml.evaluation.report.write_report", full)
        with pytest.raises(ReportError):
            attempt()
    kept = {path: path.stat().st_mtime_ns for path in scratch.rglob("*.safetensors")}
    assert len(kept) == 2
    attempt()
    assert not list(scratch.rglob("*.safetensors"))
    assert set(results_of(tmp_path / "out")["seeds"]) == {"compact"}


def test_a_failing_disk_is_said_in_a_sentence(
    own_settings: Settings, database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ml.evaluation.evaluate.evaluate", full)
    with pytest.raises(
        EvaluationError, match=r"could not be finished: .*No space left .* resumes from the checkpoints"
    ):
        run_evaluation(own_settings, database, ["all"], cv=True)
    with pytest.raises(EvaluationError, match=r"No space left on device$"):
        run_evaluation(own_settings, database, ["all"])


def test_what_cannot_be_done_is_said_in_a_line(environment: dict[str, str]) -> None:
    completed = run(environment, "evaluate", "resnet50-modality")
    assert completed.returncode == 1
    assert "resnet50-modality is not registered; train it with `medpix train resnet50-modality`" in completed.stderr
    assert "Traceback" not in completed.stderr
    taken = run(environment, "evaluate", "compact", "--out", environment["MEDPIX_DATA_DIR"] + "/images_overview.csv/x")
    assert taken.returncode == 1
    assert "the report could not be written to" in taken.stderr


def test_one_seed_has_no_deviation() -> None:
    refused = CliRunner().invoke(app, ["evaluate", "--seeds", "1"])
    assert refused.exit_code == 2
    assert "--seeds" in refused.output
