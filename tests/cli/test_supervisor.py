"""Whatever process of the service is ended: it recovers, or ends with a true sentence, and leaves nothing behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pymongo.database import Database

from app.core.child_process import describe_exit
from app.data import schema
from app.data.seed import seed
from tests.cli.running import (
    child,
    children,
    descendants,
    environment,
    fails,
    is_running,
    medpix,
    running_up,
    until,
)
from tests.conftest import REPOSITORY, Document, database_address
from tests.ports import free_port
from tests.service import is_ok, wait_for


def test_killed_processes_are_started_again_and_a_closed_terminal_ends_them_all(
    tmp_path: Path, generated_dataset: Path
) -> None:
    home = tmp_path / "home"
    with running_up(home, generated_dataset, "--no-train") as up:
        assert wait_for(up.client, "/health/ready", is_ok).status_code == 200
        up.wait_until_said(f"Open http://127.0.0.1:{up.port} in a browser")
        killed = child(up.process.pid, "--dbpath")
        os.kill(killed, signal.SIGKILL)
        # A command that comes meanwhile waits for the database, and starts none of its own.
        exported = medpix(
            home, "export", str(tmp_path / "cases.csv"), "--of", "cases", "--data", str(generated_dataset)
        )
        assert exported.returncode == 0, exported.stderr
        assert wait_for(up.client, "/cases/MPX1001", is_ok).json()["u_id"] == "MPX1001"
        assert child(up.process.pid, "--dbpath") != killed
        assert "mongod was killed by SIGKILL; it is started again in 1 s." in up.said()

        killed = child(up.process.pid, "app.main serve")
        os.kill(killed, signal.SIGKILL)
        up.wait_until_said("The API was killed by SIGKILL; it is started again in 1 s.")
        until(lambda: up.said().count("Uvicorn running") == 2, "the second start of the API")
        assert up.client.get("/cases/MPX1001").status_code == 200

        processes = descendants(up.process.pid)
        assert len(processes) == 2
        up.stop(signal.SIGHUP)
        assert not any(map(is_running, processes))
        assert up.said().rstrip().endswith("Stopped.")
    assert '"exitCode":0' in (home / "run" / "mongod.log").read_text()


def test_when_the_supervisor_is_killed_everything_ends_and_nothing_is_lost(
    tmp_path: Path, generated_dataset: Path
) -> None:
    home = tmp_path / "home"
    with running_up(home, generated_dataset) as up:
        until(lambda: len(children(up.process.pid)) == 3, "mongod, API and training")
        processes = descendants(up.process.pid)
        up.process.kill()
        until(lambda: not any(map(is_running, processes)), "the end of all processes", 60)
    # Its number may belong to any other program by the next start, which must leave that one alone.
    with subprocess.Popen(["sleep", "300"]) as other:
        (home / "db" / "mongod.lock").write_text(f"{other.pid}\n")
        (home / "run" / "mongod.lock").write_text(f"a medpix command, process {other.pid}")
        with running_up(home, generated_dataset, "--no-train") as up:
            assert up.client.get("/cases/MPX1001").status_code == 200
            up.stop()
        assert other.poll() is None
        other.kill()
    rows = [line.split()[1:3] for line in up.said().splitlines() if line.strip().startswith("cases ")]
    assert rows == [["40", "0"], ["0", "0"]], "inserted and changed, of the first and the second start"


def test_a_killed_training_is_told_and_started_again(tmp_path: Path, generated_dataset: Path) -> None:
    home = tmp_path / "home"
    with running_up(home, generated_dataset) as up:
        wait_for(up.client, "/health/ready", lambda answer: _training(answer.json()).get("state") == "running")
        up.wait_until_said("The training of efficientnet (step 1 of 3) is ")
        killed = child(up.process.pid, "train --missing")
        os.kill(killed, signal.SIGKILL)
        up.wait_until_said(
            f"The training was killed by SIGKILL; it is started again in 1 s. Its log: {home / 'run' / 'train.log'}"
        )
        status = wait_for(up.client, "/health/ready", lambda answer: _training(answer.json()).get("state") == "queued")
        assert "killed by SIGKILL" in _training(status.json())["message"]
        wait_for(up.client, "/health/ready", lambda answer: _training(answer.json()).get("state") == "running")
        assert child(up.process.pid, "train --missing") != killed
        processes = descendants(up.process.pid)
        up.stop()
        assert not any(map(is_running, processes))
    assert "The training was stopped" in (home / "run" / "train.log").read_text()


def _training(ready: Document) -> Document:
    training: Document = ready["models"]["modality"].get("training", {})
    return training


def test_a_training_that_cannot_succeed_is_not_repeated(tmp_path: Path, generated_dataset: Path) -> None:
    home, models = tmp_path / "home", tmp_path / "models"
    models.write_text("no folder")
    with running_up(home, generated_dataset, MEDPIX_MODELS_DIR=str(models)) as up:
        up.wait_until_said("The training ended with exit code 1 and is not started again.")
        assert f"Its log: {home / 'run' / 'train.log'}" in up.said()
        assert str(models) in (home / "run" / "train.log").read_text()
        assert up.client.get("/cases/MPX1001").status_code == 200
        up.stop()


def test_ctrl_c_while_models_load_ends_at_once(
    tmp_path: Path,
    generated_dataset: Path,
    ml_database: Database[Document],
    models_dir: Path,
    database: Database[Document],
    mongo_server: str,
) -> None:
    models = shutil.copytree(models_dir, tmp_path / "models")
    seed(database, generated_dataset)
    database[schema.MODELS].insert_many(list(ml_database[schema.MODELS].find()))
    own = {
        "MEDPIX_MONGO_URI": database_address(mongo_server, database.name),
        "MEDPIX_MODELS_DIR": str(models),
        "MEDPIX_DEVICE": "cpu",
    }
    with running_up(tmp_path / "home", generated_dataset, "--no-train", **own) as up:
        ready = up.client.get("/health/ready").json()
        assert ready["models"]["modality"]["state"] == "loading"
        assert up.stop(signal.SIGINT) < 5
        assert up.said().rstrip().endswith("Stopped.")
    with running_up(tmp_path / "home", generated_dataset, "--no-train", **own) as up:
        up.wait_until_said("Predictions are ready: modality by compact, location by fused-location.")
        up.stop(signal.SIGINT)


def test_a_second_service_on_the_same_home_is_refused(tmp_path: Path, generated_dataset: Path) -> None:
    home = tmp_path / "home"
    with running_up(home, generated_dataset, "--no-train") as up:
        for command in ("up", "serve"):
            message = fails(home, command, "--data", str(generated_dataset), port=free_port())
            assert f"{home} is in use by the service on port {up.port}, process {up.process.pid}" in message
        # Not the API's process, which would be started again.
        message = fails(home, "up", "--data", str(generated_dataset), port=up.port)
        assert f"Port {up.port} of 127.0.0.1 is used by process {up.process.pid} (" in message
        assert f"`kill {up.process.pid}`" in message
        up.stop()


def test_make_passes_on_the_signal_that_ends_it(tmp_path: Path, generated_dataset: Path) -> None:
    port = free_port()
    binaries = Path(sys.executable).parent
    command = ["make", "up", f"BIN={binaries}", f"DATA={generated_dataset}", "-o", ".venv/runtime.stamp"]
    with (tmp_path / "make.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(tmp_path / "home", port, PYTHONPATH=str(REPOSITORY)),
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: b"in a browser" in (tmp_path / "make.log").read_bytes(), "the start of the service")
        processes = descendants(process.pid)
        process.terminate()
        process.wait(60)
        until(lambda: not any(map(is_running, processes)), "the end of all processes", 60)
    finally:
        process.kill()
        process.wait()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection may still hold it
        probe.bind(("127.0.0.1", port))


def test_a_mongod_that_keeps_failing_is_named_with_its_log(tmp_path: Path, generated_dataset: Path) -> None:
    failing = tmp_path / "mongod"
    failing.write_text("#!/bin/sh\necho 'error while loading shared libraries: libcurl.so.4'\nexit 127\n")
    failing.chmod(0o755)
    message = fails(
        tmp_path / "home", "up", "--data", str(generated_dataset), port=free_port(), MEDPIX_MONGOD=str(failing)
    )
    assert "ended with exit code 127" in message
    assert "libcurl.so.4" in message
    assert "libcurl4 and libssl3" in message


@pytest.mark.parametrize(
    ("code", "words"), [(-9, "was killed by SIGKILL"), (3, "ended with exit code 3"), (-64, "was killed by SIGRTMAX")]
)
def test_ends_are_described(code: int, words: str) -> None:
    assert describe_exit(code) == words
