"""`medpix up`, as a person runs it: a process of its own, stopped by signals."""

import shutil
import signal
import socket
from pathlib import Path

import pytest
from pymongo.database import Database

from app.data import schema
from app.data.seed import seed
from ml.models.model_specs import DEFAULTS
from tests.cli.running import child, descendants, fails, is_running, running_up
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
        found = wait_for(up.client, "/evaluation", is_ok, seconds=240).json()
        registered = {
            item["card"]["name"]: item["card"]["version"] for item in up.client.get("/models").json()["items"]
        }
        assert {name: row["version"] for name, row in found["models"].items()} == registered
        up.wait_until_said("Training and evaluation are done")
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
    assert "MEDPIX_MODEL_MODALITY='resnet51': no model of this name answers modality" in message
    assert "efficientnet" in message


def test_any_address_of_this_machine_will_do(tmp_path: Path, generated_dataset: Path) -> None:
    message = fails(tmp_path, "up", "--data", str(generated_dataset), "--host", "nowhere.invalid")
    assert "MEDPIX_HOST=nowhere.invalid is not an address of this machine" in message
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with running_up(tmp_path / "home", generated_dataset, "--no-train", MEDPIX_HOST="::1") as up:
        up.wait_until_said(f"Open http://[::1]:{up.port} in a browser")
        up.stop()
