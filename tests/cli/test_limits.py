"""Unusual surroundings: the service works in them, or says in one sentence what it needs."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import environment, fails, running_up
from tests.ports import free_port


def test_odd_paths_and_little_of_everything_will_do(
    tmp_path: Path, generated_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces and umlauts, no HOME, a language that is not installed, one core, 128 files, and a strict umask."""
    folder = tmp_path / "mit Leerzeichen und Umläuten"
    folder.mkdir()
    data = shutil.copytree(generated_dataset, folder / "Daten für Tests")
    monkeypatch.delenv("HOME")
    for name in ("LANG", "LC_ALL"):
        monkeypatch.setenv(name, "tr_TR.UTF-8")
    core = str(min(os.sched_getaffinity(0)))
    little = ("sh", "-c", 'umask 077; ulimit -n 128; exec taskset --cpu-list "$0" "$@"', core)
    with running_up(folder / "Häuschen", data, "--no-train", under=little) as up:
        assert up.client.get("/cases/MPX1001").json()["u_id"] == "MPX1001"
        image = up.client.get("/images", params={"limit": 1}).json()["items"][0]["image"]
        assert up.client.get(f"/images/{image}/thumbnail").status_code == 200
        assert resource.prlimit(up.process.pid, resource.RLIMIT_NOFILE) == (128, 128)
        up.stop()
    assert not [path for path in (folder / "Häuschen").rglob("*") if path.lstat().st_mode & 0o077]


def test_too_few_open_files_are_named(tmp_path: Path, generated_dataset: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.main", "up", "--data", str(generated_dataset)],
        env=environment(tmp_path / "home", free_port()),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert done.returncode == 1
    assert "This process may open 64 files at once, and 128 are needed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_the_encoding_cannot_name_is_an_error_that_says_what_to_do(
    tmp_path: Path, generated_dataset: Path
) -> None:
    ascii_only = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "app.main", "up", "--data", str(generated_dataset)],
        env=environment(tmp_path / "Häuschen", free_port()) | ascii_only,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "MEDPIX_HOME" in done.stderr
    assert "Value error" not in done.stderr
    assert "set PYTHONUTF8=1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["up", "seed"])
def test_a_home_that_cannot_be_made_is_named(tmp_path: Path, generated_dataset: Path, command: str) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    message = fails(file / "home", command, "--data", str(generated_dataset), port=free_port())
    assert f"{file} cannot be made" in message
    assert "Set MEDPIX_HOME" in message
