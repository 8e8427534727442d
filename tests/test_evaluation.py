"""`medpix evaluate`, as a person runs it: a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pymongo.database import Database

from tests.conftest import Document, database_address


@pytest.fixture
def environment(
    ml_database: Database[Document],
    models_dir: Path,
    generated_dataset: Path,
    mongo_server: str,
    tmp_path: Path,
) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEDPIX_")}
    return own | {
        "MEDPIX_HOME": str(tmp_path / "home"),
        "MEDPIX_MONGO_URI": database_address(mongo_server, ml_database.name),
        "MEDPIX_MODELS_DIR": str(models_dir),
        "MEDPIX_DATA_DIR": str(generated_dataset),
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "evaluate", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_the_command_prints_the_table_and_writes_the_report(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(environment, "caption-location", "--no-register", "--device", "cpu", "--out", str(out))
    assert found.returncode == 0, found.stderr
    assert "the split 'test' of a dataset that is not MedPix 2.0" in found.stdout
    results = json.loads((out / "results.json").read_text())
    accuracy = results["models"]["caption-location"]["tasks"]["location_category"]["scores"]["accuracy"]
    line = [line for line in found.stdout.splitlines() if "caption-location" in line][-1]
    assert f"{accuracy:.3f}" in line
    assert f"Report: {out / 'report.html'}" in found.stdout
    assert (out / "report.html").stat().st_size > 10_000


def test_what_cannot_be_done_is_said_in_a_line(environment: dict[str, str]) -> None:
    found = run(environment, "resnet50-modality")
    assert found.returncode == 1
    assert "resnet50-modality is not registered; train it with `medpix train resnet50-modality`" in found.stderr
    assert "Traceback" not in found.stderr
    taken = run(environment, "compact", "--out", environment["MEDPIX_DATA_DIR"] + "/images_overview.csv")
    assert taken.returncode == 1
    assert "the report could not be written to" in taken.stderr
