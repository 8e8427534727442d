"""`medpix up`, as a person runs it: a process of its own, stopped by signals."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from app.data import schema
from app.data.seed import seed
from ml.models.model_specs import DEFAULTS
from tests.cli.running import child, descendants, environment, fails, is_running, running_up
from tests.conftest import Document, database_address
from tests.ports import free_port
from tests.service import is_ok, wait_for


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_stops_cleanly_and_starts_again_on_the_same_data(
    tmp_path: Path, generated_dataset: Path, kind: signal.Signals
) -> None:
    home = tmp_path / "home"
    with running_up(home, generated_dataset, "--no-train") as up:
        assert wait_for(up.client, "/health/ready", is_ok).json()["database"]["cases"] == 40
        assert up.client.get("/cases/MPX1001").json()["u_id"] == "MPX1001"
        mongod = child(up.process.pid, "--dbpath")
        up.stop(kind)
    assert not is_running(mongod)
    assert not (home / "run" / "mongod.sock").exists()
    assert '"exitCode":0' in (home / "run" / "mongod.log").read_text()
    with running_up(home, generated_dataset, "--no-train") as up:
        assert up.client.get("/cases/MPX1001").status_code == 200
        up.stop(kind)
    lines = up.said().splitlines()
    rows = [line.split()[1:3] for line in lines if line.strip().startswith("cases ")]
    assert rows == [["40", "0"], ["0", "0"]], "inserted and changed, of the first and the second start"


def test_it_trains_what_is_missing_and_ends_the_training_with_itself(tmp_path: Path, generated_dataset: Path) -> None:
    home = tmp_path / "home"
    with running_up(home, generated_dataset) as up:
        image = next((generated_dataset / "images").iterdir()).read_bytes()
        ready = wait_for(
            up.client, "/health/ready", lambda answer: answer.json()["models"]["modality"]["state"] == "running"
        )
        assert 0 <= ready.json()["models"]["modality"]["training"]["fraction"] < 1
        answer = up.client.post("/predict/modality", files={"image": image})
        assert answer.status_code == 503
        assert answer.json()["training"]["model"] == "efficientnet"
        processes = descendants(up.process.pid)
        assert len(processes) == 3, "mongod, API and training"
        up.stop()
    assert not any(map(is_running, processes))
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
        database[schema.MODELS].insert_one(trained | {"_id": name, "name": name, "calibrated_on": "out-of-fold"})
        shutil.copytree(models_dir / "caption-location", models / name)
    address = database_address(mongo_server, database.name)
    with running_up(home, generated_dataset, MEDPIX_MONGO_URI=address, MEDPIX_MODELS_DIR=str(models)) as up:
        evaluation = wait_for(up.client, "/evaluation", is_ok, seconds=240).json()
        registered = {
            item["card"]["name"]: item["card"]["version"] for item in up.client.get("/models").json()["items"]
        }
        assert {name: row["version"] for name, row in evaluation["models"].items()} == registered
        up.wait_until_said("Training and evaluation are done")
        up.stop()


@pytest.mark.medpix
def test_totals_are_right_after_all_was_killed_while_the_real_data_were_loaded(
    tmp_path: Path, medpix_dir: Path
) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "app.main", "up", "--no-train", "--data", str(medpix_dir)]
    process = subprocess.Popen(
        command, env=environment(home, free_port()), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"mongodb://{quote(str(home / 'run' / 'mongod.sock'), safe='')}/{schema.DATABASE}"
    with MongoClient[Document](address, serverSelectionTimeoutMS=60_000) as client:
        database = client[schema.DATABASE]
        while not database[schema.IMAGES].find_one({}, {"_id": 1}):
            assert process.poll() is None
        for pid in (process.pid, *descendants(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    with running_up(home, medpix_dir, "--no-train") as up:
        ready = wait_for(up.client, "/health/ready", is_ok).json()["database"]
        assert (ready["cases"], ready["images"], ready["faults"]) == (671, 2050, [])
        for path, total in (
            ("/cases", 671),
            ("/images", 2050),
            ("/images?modality=CT", 1062),
            ("/images?split=dev", 197),
        ):
            page = up.client.get(path).json()
            assert (page["total"], page["total_is_exact"]) == (total, True)
        assert up.client.get("/facets").json()["total"] == 2050
        assert len(up.client.get("/export?of=cases&format=jsonl").text.splitlines()) == 671
        with MongoClient[Document](address) as client:
            runs = list(client[schema.DATABASE][schema.SEED_RUNS].find(sort=[("sequence", 1)]))
        assert [run["state"] for run in runs] == ["running", "complete"], "the first one was killed half way"
        up.stop()


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path, generated_dataset: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = fails(tmp_path, "up", "--data", str(generated_dataset), port=port)
    assert f"Port {port}" in message
    assert "MEDPIX_PORT" in message
    assert not (tmp_path / "db").exists()


def test_faults_that_a_person_can_mend_are_said_plainly(tmp_path: Path, generated_dataset: Path) -> None:
    message = fails(tmp_path, "up", MEDPIX_PORT="http", MEDPIX_MAX_BATCH="0")
    assert "MEDPIX_PORT='http'" in message
    assert "MEDPIX_MAX_BATCH='0'" in message
    message = fails(tmp_path, "seed", "--data", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in message
    message = fails(
        tmp_path,
        "seed",
        "--data",
        str(generated_dataset),
        MEDPIX_MONGO_URI=f"mongodb://127.0.0.1:{free_port()}/medpix",
        MEDPIX_MONGO_SERVER_SELECTION_S="0.3",
    )
    assert "MongoDB cannot be reached" in message
    message = fails(tmp_path, "seed", "--data", str(generated_dataset), MEDPIX_MONGOD="/no/mongod")
    assert "MEDPIX_MONGOD=/no/mongod" in message
    message = fails(tmp_path, "train", "resnet18", "--data", str(generated_dataset))
    assert "known are" in message
    message = fails(tmp_path, "train", "compact", "--data", str(generated_dataset))
    assert "medpix seed" in message


def test_a_model_that_does_not_exist_is_named_at_the_start(tmp_path: Path, generated_dataset: Path) -> None:
    message = fails(
        tmp_path, "up", "--data", str(generated_dataset), port=free_port(), MEDPIX_MODEL_MODALITY="resnet51"
    )
    assert "MEDPIX_MODEL_MODALITY=resnet51: there is no such model" in message
    assert "efficientnet" in message
    assert not (tmp_path / "db").exists(), "before anything is started"
    message = fails(tmp_path, "up", "--data", str(generated_dataset), port=free_port(), MEDPIX_TRAIN="auto,resnet51")
    assert "MEDPIX_TRAIN: 'resnet51' is neither a model nor a task; known are: auto, all, modality" in message


def test_any_address_of_this_machine_will_do(tmp_path: Path, generated_dataset: Path) -> None:
    for host in ("nowhere.invalid", "192.0.2.1"):  # the second is reserved for documentation
        message = fails(tmp_path, "up", "--data", str(generated_dataset), "--host", host)
        assert f"MEDPIX_HOST={host} is not an address of this machine" in message
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with running_up(tmp_path / "home", generated_dataset, "--no-train", MEDPIX_HOST="::1") as up:
        up.wait_until_said(f"Open http://[::1]:{up.port} in a browser")
        up.stop()
