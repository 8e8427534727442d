import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import ConnectionFailure
from pymongo.write_concern import WriteConcern

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


def _server_of(home: Path) -> int:
    return int((home / "db" / "mongod.lock").read_text())


def _insert(uri: str, key: int) -> None:
    with MongoClient[dict[str, int]](uri, serverSelectionTimeoutMS=2000) as client:
        # In the journal when it is acknowledged: a server that is killed then has it.
        client.medpix.get_collection("kept", write_concern=WriteConcern(j=True)).insert_one({"_id": key})


def _count(uri: str) -> int:
    with MongoClient[dict[str, int]](uri, serverSelectionTimeoutMS=500) as client:
        return client.medpix.kept.count_documents({})


def test_data_survive_a_restart_and_the_server_is_gone_between(tmp_path: Path) -> None:
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        _insert(uri, 1)
    with pytest.raises(ConnectionFailure):
        _count(uri)
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as again:
        assert again == uri
        assert _count(uri) == 1
    assert '"exitCode":0' in (tmp_path / "run" / "mongod.log").read_text()


def test_only_its_owner_reaches_it(tmp_path: Path) -> None:
    for folder in ("db", "run"):  # as an earlier version made them
        (tmp_path / folder).mkdir(mode=0o755)
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        assert uri.startswith("mongodb://%2F")
        assert stat.filemode((tmp_path / "run" / "mongod.sock").stat().st_mode) == "srwx------"
        assert {(tmp_path / folder).stat().st_mode & 0o777 for folder in ("db", "run")} == {0o700}
        listening = _listening_sockets(_server_of(tmp_path))
        assert listening == []


def _listening_sockets(pid: int) -> list[str]:
    """The TCP sockets of a process that listen."""
    files = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            files.append(str(file.readlink()))
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in files]


@pytest.mark.parametrize("name", ["with spaces and Umläute", "long" * 30])
def test_any_folder_will_do(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    with embedded_mongod(home / "db", home / "run", find_mongod()) as uri:
        _insert(uri, 1)
        assert _count(uri) == 1


def test_the_process_that_started_the_server_waits_for_the_others(tmp_path: Path) -> None:
    process, first = _hold(tmp_path)
    with process:
        with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
            assert uri == first
            process.terminate()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            _insert(uri, 1)
        assert process.wait(30) == 0
    with pytest.raises(ConnectionFailure):
        _count(uri)


def test_a_server_ends_with_the_process_that_was_killed(tmp_path: Path) -> None:
    process, first = _hold(tmp_path)
    with process:
        _insert(first, 1)
        process.kill()
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        assert _count(uri) == 1
    assert (tmp_path / "run" / "mongod.log").read_text().count('"exitCode":0') == 2


def test_a_server_that_was_killed_is_started_on_the_same_data(tmp_path: Path) -> None:
    process, first = _hold(tmp_path)
    with process:
        _insert(first, 1)
        os.kill(_server_of(tmp_path), signal.SIGKILL)
        process.kill()
    with embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()) as uri:
        assert _count(uri) == 1


def test_a_server_of_somebody_else_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    command = [str(find_mongod()), "--dbpath", str(tmp_path / "db"), "--bind_ip", str(tmp_path / "own.sock")]
    with subprocess.Popen([*command, "--nounixsocket"], stdout=subprocess.DEVNULL) as other:
        while not (tmp_path / "own.sock").exists():
            assert other.poll() is None
            time.sleep(0.05)
        with (
            pytest.raises(EmbeddedMongodError, match=rf"Another mongod \(process {other.pid}\).* `kill {other.pid}`"),
            embedded_mongod(tmp_path / "db", tmp_path / "run", find_mongod()),
        ):
            pass
        assert other.poll() is None
        other.terminate()


def test_a_program_that_is_no_mongod_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(EmbeddedMongodError, match="does not run"),
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
