"""The benchmarks: each one can be started, and is known to the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.benchmarks import BENCHMARKS, BenchmarkError, run_benchmark
from tests.conftest import REPOSITORY


def test_every_benchmark_is_known() -> None:
    modules = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py") if "def main" in path.read_text()}
    assert modules == set(BENCHMARKS)


def test_an_unknown_one_names_the_known() -> None:
    with pytest.raises(BenchmarkError, match=r"'speed'.*serve: predictions against LitServe"):
        run_benchmark("speed", [])


def test_the_command_measures(generated_dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.main", "bench", "seed", "--data", str(generated_dataset), "--rounds", "1"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "insert_many" in found.stdout


@pytest.mark.parametrize("model", ["efficientnet", "compact"])
def test_the_training_loop_is_measured(generated_dataset: Path, tmp_path: Path, model: str) -> None:
    options = ("--data", str(generated_dataset), "--model", model, "--rounds", "1", "--epochs", "2")
    command = [sys.executable, "-m", "app.main", "bench", "train", *options]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    for measured in ("from MongoDB, joined and checked", "training loop / bare loop", "peak memory"):
        assert measured in found.stdout
