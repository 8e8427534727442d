"""The benchmarks that are quick enough can be started and measure something."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def run_benchmark(name: str, *options: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=REPOSITORY)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_seeding_is_measured(generated_dataset: Path) -> None:
    assert "insert_many" in run_benchmark("seed", "--data", str(generated_dataset), "--rounds", "1")


@pytest.mark.parametrize("model", ["efficientnet", "compact"])
def test_the_training_loop_is_measured(generated_dataset: Path, model: str) -> None:
    options = ("--data", str(generated_dataset), "--model", model, "--rounds", "1", "--epochs", "2")
    printed = run_benchmark("train", *options)
    for measured in ("from MongoDB, joined and checked", "training loop / bare loop", "peak memory"):
        assert measured in printed


def test_the_check_of_a_gpu_trains_compares_and_tells_what_failed(generated_dataset: Path) -> None:
    """On the CPU, which is compared with itself: what a GPU would be asked to do."""
    options = ("--data", str(generated_dataset), "--device", "cpu", "--seconds", "0")
    printed = run_benchmark("gpu", *options, "--models", "compact", "caption-location", "fused-location")
    for row in ("train compact", "train fused-location", "compare fused-location"):
        assert row in printed
    assert printed.count("0 labels of 20 images differ from the CPU's in fp32") == 2
    assert "runs no network on images" in printed
    assert "all steps succeeded" in printed
    command = [sys.executable, "-m", "benchmarks.gpu", *options, "--models", "fused-location"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=REPOSITORY)
    assert failed.returncode == 1
    assert "FAILED: UnknownModelError" in failed.stdout
