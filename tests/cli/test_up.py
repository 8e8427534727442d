"""`medpix up`, as a person runs it: a process of its own, stopped by signals."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pymongo.database import Database

from app.data import schema
from app.data.seed import seed
from ml.training.train import DEFAULTS
from tests.conftest import Document, database_address
from tests.ports import free_port
from tests.service import is_ok, wait_for


def _environment(home: Path, port: int) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEDPIX_")}
    return own | {"MEDPIX_HOME": str(home), "MEDPIX_PORT": str(port), "COLUMNS": "80"}


@contextmanager
def _up(
    home: Path, data: Path, *options: str, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    port = free_port()
    command = [sys.executable, "-m", "app.main", "up", "--data", str(data), *options]
    with (home.parent / "up.log").open("a") as log:
        before = signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # a shell's background jobs ignore it; a terminal's do not
        process = subprocess.Popen(command, env=_environment(home, port) | variables, stdout=log, stderr=log, text=True)
        signal.signal(signal.SIGINT, before)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            _wait_for_port(process, port)
            yield process, client
    finally:
        process.kill()
        process.wait()


def _wait_for_port(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the service did not start")


def _wait_for_words(log: Path, words: str) -> None:
    deadline = time.monotonic() + 60
    while words not in log.read_text():
        assert time.monotonic() < deadline, f"the log never said {words!r}"
        time.sleep(0.1)


def _mongod(home: Path) -> int:
    return int((home / "db" / "mongod.lock").read_text())


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_stops_cleanly_and_starts_again_on_the_same_data(
    tmp_path: Path, generated_dataset: Path, kind: signal.Signals
) -> None:
    home = tmp_path / "home"
    with _up(home, generated_dataset, "--no-train") as (process, client):
        assert wait_for(client, "/health/ready", is_ok).json()["database"]["cases"] == 40
        assert client.get("/cases/MPX1001").json()["u_id"] == "MPX1001"
        mongod = _mongod(home)
        process.send_signal(kind)
        assert process.wait(30) == 0
    assert not _is_running(mongod)
    assert not (home / "run" / "mongod.sock").exists()
    assert '"exitCode":0' in (home / "run" / "mongod.log").read_text()
    with _up(home, generated_dataset, "--no-train") as (process, client):
        assert client.get("/cases/MPX1001").status_code == 200
        process.send_signal(kind)
        assert process.wait(30) == 0
    lines = (tmp_path / "up.log").read_text().splitlines()
    rows = [line.split()[1:3] for line in lines if line.strip().startswith("cases ")]
    assert rows == [["40", "0"], ["0", "0"]], "inserted and changed, of the first and the second start"


def test_it_trains_what_is_missing_and_ends_the_training_with_itself(tmp_path: Path, generated_dataset: Path) -> None:
    home = tmp_path / "home"
    with _up(home, generated_dataset) as (process, client):
        image = next((generated_dataset / "images").iterdir()).read_bytes()
        ready = wait_for(
            client, "/health/ready", lambda answer: answer.json()["models"]["modality"]["state"] == "running"
        )
        assert 0 <= ready.json()["models"]["modality"]["training"]["fraction"] < 1
        answer = client.post("/predict/modality", files={"image": image})
        assert answer.status_code == 503
        assert answer.json()["training"]["model"] == "efficientnet"
        children = _children(process.pid)
        assert len(children) == 2, "mongod and the training"
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    assert not any(_is_running(child) for child in children)
    assert "The training was stopped" in (home / "run" / "train.log").read_text()


def test_when_nothing_is_missing_the_models_are_evaluated(
    tmp_path: Path,
    generated_dataset: Path,
    ml_database: Database[Document],
    models_dir: Path,
    database: Database[Document],
    mongo_server: str,
) -> None:
    home, models = tmp_path / "home", tmp_path / "models"
    seed(database, generated_dataset)
    # The quickest model there is, under the name of each default model.
    trained = ml_database[schema.MODELS].find_one({"_id": "caption-location"})
    assert trained is not None
    for name in {name for names in DEFAULTS.values() for name in names}:
        database[schema.MODELS].insert_one(trained | {"_id": name, "name": name})
        shutil.copytree(models_dir / "caption-location", models / name)
    address = database_address(mongo_server, database.name)
    with _up(home, generated_dataset, MEDPIX_MONGO_URI=address, MEDPIX_MODELS_DIR=str(models)) as (process, client):
        found = wait_for(client, "/evaluation", is_ok, seconds=240).json()
        registered = {item["card"]["name"]: item["card"]["version"] for item in client.get("/models").json()["items"]}
        assert {name: row["version"] for name, row in found["models"].items()} == registered
        _wait_for_words(tmp_path / "up.log", "Training and evaluation are done")
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0


def test_a_kill_loses_nothing(tmp_path: Path, generated_dataset: Path) -> None:
    home = tmp_path / "home"
    with _up(home, generated_dataset, "--no-train") as (process, client):
        wait_for(client, "/health/ready", is_ok)
        orphan = _mongod(home)
        process.kill()
        process.wait()
    assert _is_running(orphan)
    with _up(home, generated_dataset, "--no-train") as (process, client):
        assert _mongod(home) == orphan
        assert client.get("/cases/MPX1001").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not _is_running(orphan)


def _fails(home: Path, port: int, *arguments: str, **variables: str) -> str:
    """The message of a command that cannot do its work."""
    done = subprocess.run(
        [sys.executable, "-m", "app.main", *arguments],
        env=_environment(home, port) | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path, generated_dataset: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = _fails(tmp_path, port, "up", "--data", str(generated_dataset))
    assert f"Port {port}" in message
    assert "MEDPIX_PORT" in message
    assert not (tmp_path / "db").exists()


def test_faults_that_a_person_can_mend_are_said_plainly(tmp_path: Path, generated_dataset: Path) -> None:
    message = _fails(tmp_path, 1, "up", MEDPIX_PORT="http", MEDPIX_MAX_BATCH="0")
    assert "MEDPIX_PORT='http'" in message
    assert "MEDPIX_MAX_BATCH='0'" in message
    message = _fails(tmp_path, 1, "seed", "--data", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in message
    message = _fails(
        tmp_path,
        1,
        "seed",
        "--data",
        str(generated_dataset),
        MEDPIX_MONGO_URI=f"mongodb://127.0.0.1:{free_port()}/medpix",
        MEDPIX_MONGO_SERVER_SELECTION_S="0.3",
    )
    assert "MongoDB cannot be reached" in message
    message = _fails(tmp_path, 1, "seed", "--data", str(generated_dataset), MEDPIX_MONGOD="/no/mongod")
    assert "MEDPIX_MONGOD=/no/mongod" in message
    message = _fails(tmp_path, 1, "train", "resnet18", "--data", str(generated_dataset))
    assert "known are" in message
    message = _fails(tmp_path, 1, "train", "compact", "--data", str(generated_dataset))
    assert "medpix seed" in message
