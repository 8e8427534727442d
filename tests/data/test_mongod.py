import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import ConnectionFailure

from app.core.settings import load_settings
from app.data.mongod import EmbeddedMongodError, database_uri, embedded_mongod, find_mongod

_HOLD = """
import signal, sys, time
from pathlib import Path
from app.data.mongod import embedded_mongod, find_mongod
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
home = Path(sys.argv[1])
with embedded_mongod(home / "db", home / "run", find_mongod()) as uri:
    print(uri, flush=True)
    time.sleep(60)
"""


def _hold(home: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that uses the server; and the server's address."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(home)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def _insert(uri: str, key: int) -> None:
    with MongoClient[dict[str, int]](uri, serverSelectionTimeoutMS=2000) as client:
        client.medpix.kept.insert_one({"_id": key})


def _count(uri: str) -> int:
    with MongoClient[dict[str, int]](uri, serverSelectionTimeoutMS=500) as client:
        return client.medpix.kept.count_documents({})


def test_data_survive_a_restart_and_the_server_is_gone_between(tmp_path: Path) -> None:
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        _insert(uri, 1)
        recorded = json.loads((tmp_path / "run" / "mongod.json").read_text())
        assert f":{recorded['port']}/" in uri
    with pytest.raises(ConnectionFailure):
        _count(uri)
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        assert _count(uri) == 1
    assert '"exitCode":0' in (tmp_path / "run" / "mongod.log").read_text()


def test_two_processes_share_one_server_and_the_last_one_stops_it(tmp_path: Path) -> None:
    process, first = _hold(tmp_path)
    with process, embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        assert uri == first
        process.terminate()
        process.wait()
        _insert(uri, 1)
    with pytest.raises(ConnectionFailure):
        _count(uri)


def test_a_server_left_by_a_killed_process_is_used_again(tmp_path: Path) -> None:
    process, first = _hold(tmp_path)
    with process:
        _insert(first, 1)
        process.kill()
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        assert uri == first
        assert _count(uri) == 1
    with pytest.raises(ConnectionFailure):
        _count(uri)


def test_a_server_that_was_killed_is_started_on_the_same_data(tmp_path: Path) -> None:
    process, first = _hold(tmp_path)
    with process:
        _insert(first, 1)
        pid = json.loads((tmp_path / "run" / "mongod.json").read_text())["pid"]
        time.sleep(0.3)  # past the journal's flush
        os.kill(pid, signal.SIGKILL)
        process.kill()
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        assert _count(uri) == 1


def test_a_program_that_is_no_mongod_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(EmbeddedMongodError, match="did not start"),
        embedded_mongod(tmp_path / "db", tmp_path / "run", Path("/bin/false")),
    ):
        pass
    with pytest.raises(EmbeddedMongodError, match="MEDPIX_MONGOD"):
        find_mongod(tmp_path / "nothing")


def test_a_wheel_without_the_run_bit_is_used_all_the_same(tmp_path: Path) -> None:
    plain = tmp_path / "mongod"
    plain.write_bytes(find_mongod().read_bytes())
    plain.chmod(0o644)
    with embedded_mongod(tmp_path / "db", tmp_path / "run", plain) as uri:
        _insert(uri, 1)


def test_a_given_address_wins_over_the_embedded_server(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, mongo_uri="mongodb://db.example:27017/medpix")
    with database_uri(settings) as uri:
        assert uri == "mongodb://db.example:27017/medpix"
    assert not (tmp_path / "run").exists()
