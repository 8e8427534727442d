"""Keeps the processes of `medpix up` and `medpix serve` running: mongod, seeding, API, training.

One process owns all others. It starts them again with a growing delay, gives up with the cause after repeated
failures, and stops them all when it is told to stop. When it is killed itself, the kernel tells them to end.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from app.core.child_process import describe_exit, start_bound
from app.core.exceptions import UserError
from app.core.files import explain_full_disk, make_private, raise_open_files, rotate
from app.core.settings import Settings, unknown_names
from app.data.mongod import START_TIMEOUT_S, EmbeddedMongodError, Mongod, find_mongod

logger = logging.getLogger(__name__)

_USER_ERROR: Final = 1  # the exit code of a command whose message says what to correct
_MAX_FAILURES: Final = 5
_FIRST_DELAY_S: Final = 1.0
_MAX_DELAY_S: Final = 30.0
# After this long without failure a process counts as running well again.
_STABLE_S: Final = 60.0
_TICK_S: Final = 0.5
# mongod ends with an assertion at 64.
_FILES: Final = 128
_ROTATE_S: Final = 60.0
# The API finishes accepted requests for 30 s, the trainer saves its state.
_STOP_S: Final = 40.0


class SupervisorError(UserError):
    """A process that the service cannot do without keeps failing; the message names the cause."""


@dataclass(slots=True)
class Worker:
    """A command of `medpix` that runs as a child process.

    Attributes:
        name: what log lines call it.
        arguments: of `medpix`.
        ends: whether it ends by itself, with exit code 0; otherwise it runs until it is stopped.
        essential: whether the service ends with it when it keeps failing.
        log: file for its output; None: the output of this process.
        niceness: added to that of this process.
        process: None while it does not run.
        pid: of its last process.
        done: whether it needs no further start.
        started_at: time of the last start (monotonic).
        start_at: earliest time of the next start (monotonic).
        failures: in a row.
    """

    name: str
    arguments: tuple[str, ...]
    ends: bool = False
    essential: bool = True
    log: Path | None = None
    niceness: int = 0
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0
    done: bool = False
    started_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def failed(self, message: str) -> str:
        """Count a failure and set the time of the next start; returns the sentence for the log."""
        now = time.monotonic()
        self.failures = 1 if now - self.started_at > _STABLE_S else self.failures + 1
        # On a full disk this goes on for days: the power itself has a bound.
        delay = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(self.failures - 1, 10))
        self.start_at = now + delay
        return f"{message}; it is started again in {delay:.0f} s."


class Supervisor:
    """Runs the service until it is told to stop.

    Args:
        settings: of the service; without ``mongo_uri`` the supervisor runs a mongod of its own.
        seed: load the dataset before the API starts.
        train: train what is missing, beside the API.

    Attributes:
        trainer_failed: told the process id of a trainer that failed, what happened, and whether it is started again.
        uri: address of the database.
        api: the process that serves.
        trainer: the process that trains, None without training.
    """

    def __init__(self, settings: Settings, *, seed: bool, train: bool) -> None:
        self._settings = settings
        self._unknown = unknown_names()
        self.trainer_failed: Callable[[int, str, bool], None] = lambda *_: None
        self._mongod: Mongod | None = None
        if settings.mongo_uri is None:
            make_private(settings.home)
            self._mongod = Mongod(settings.home / "db", settings.run_dir, find_mongod(settings.mongod))
        else:
            make_private(settings.run_dir)
        self.uri = settings.mongo_uri or (self._mongod.uri if self._mongod else "")
        # Its process is started by Mongod; the rest of its bookkeeping is as for the other processes.
        self._database = Worker("mongod", ())
        self._database_ready = self._mongod is None
        self._database_failed_at = 0.0
        self._seeding = Worker("the seeding", ("seed",), ends=True, done=not seed)
        self.api = Worker("the API", ("serve",))
        log = settings.run_dir / "train.log"
        training = ("train", "--missing", "--calibrate", "--evaluate")
        self.trainer = (
            Worker("the training", training, ends=True, essential=False, log=log, niceness=10) if train else None
        )
        self._signals = 0
        self._wake, self._waker = socket.socketpair()
        self._rotated_at = time.monotonic()

    @property
    def workers(self) -> list[Worker]:
        """The commands of `medpix`, in the order of their starts."""
        return [self._seeding, self.api, *([self.trainer] if self.trainer else [])]

    def run(self) -> None:
        """Start everything, keep it running, and return after SIGINT, SIGTERM or SIGHUP when everything has stopped.

        Raises:
            SupervisorError: a process that is essential keeps failing.
            EmbeddedMongodError: another service owns the database.
        """
        raise_open_files(_FILES)
        with self._handle_signals(), self._owned_database():
            try:
                while not self._signals:
                    self._step()
                    self._wait(_TICK_S)
            finally:
                self._stop()

    def _step(self) -> None:
        now = time.monotonic()
        if now - self._rotated_at > _ROTATE_S:
            self._rotated_at = now
            for log in (self._mongod and self._mongod.log, self.trainer and self.trainer.log):
                if log:
                    rotate(log)
        if self._mongod is not None:
            self._keep_mongod(self._mongod, now)
        if self._database_ready:
            self._keep(self._seeding, now)
        if self._seeding.done:
            for worker in self.workers[1:]:
                # An API that runs goes on without the database; a start without it is put off.
                if worker.process is not None or self._database_ready:
                    self._keep(worker, now)

    def _keep_mongod(self, mongod: Mongod, now: float) -> None:
        worker = self._database
        if mongod.process is None:
            if now >= worker.start_at:
                worker.started_at = now
                mongod.start()
        elif mongod.process.poll() is not None or (
            not self._database_ready and now - worker.started_at > START_TIMEOUT_S
        ):
            mongod.process.kill()
            code = mongod.process.wait()
            self._database_ready = False
            self._database_failed_at = now
            message = worker.failed(f"mongod {describe_exit(code)}")
            full = self._full_disk()
            # While the service runs, it waits for space on a full disk.
            if not (full and self._seeding.done) and worker.failures >= (_MAX_FAILURES if self._seeding.done else 2):
                raise SupervisorError(mongod.explain_failure())
            logger.error("%s %sIts log: %s", message, full, mongod.log)
            mongod.process = None
        elif not self._database_ready and mongod.answers():
            self._database_ready = True
            logger.info("mongod is running (process %d)", mongod.process.pid)

    def _keep(self, worker: Worker, now: float) -> None:
        if worker.done:
            return
        if worker.process is None:
            if now >= worker.start_at:
                self._start(worker)
        elif (code := worker.process.poll()) is not None:
            self._ended(worker, code)

    def _start(self, worker: Worker) -> None:
        if worker.log is not None:
            rotate(worker.log)
        settings = self._settings
        environment = {
            # What is no setting was named by this process.
            **{name: value for name, value in os.environ.items() if name not in self._unknown},
            "MEDPIX_MONGO_URI": self.uri,
            "MEDPIX_HOME": str(settings.home),
            "MEDPIX_DATA_DIR": str(settings.dataset_dir),
            "MEDPIX_MODELS_DIR": str(settings.model_files_dir),
            "MEDPIX_HOST": settings.host,
            "MEDPIX_PORT": str(settings.port),
        }
        worker.started_at = time.monotonic()
        try:
            worker.process = start_bound(
                [sys.executable, "-m", "app.main", *worker.arguments],
                log=worker.log,
                environment=environment,
                niceness=worker.niceness,
            )
        except OSError as error:
            self._failed(worker, f"could not be started ({error.strerror})", recurs=False)
            return
        worker.pid = worker.process.pid
        logger.debug("%s is process %d", worker.name, worker.pid)

    def _ended(self, worker: Worker, code: int) -> None:
        """Decide what follows the end of a process.

        Raises:
            SupervisorError: the service cannot go on without it.
        """
        worker.process = None
        if code == 0 and worker.ends:
            worker.done = True
            worker.failures = 0
            return
        # A fault that the user must correct comes again; unless the database was away meanwhile.
        recurs = code == _USER_ERROR and self._database_failed_at < worker.started_at
        self._failed(worker, describe_exit(code), recurs=recurs)

    def _failed(self, worker: Worker, how: str, *, recurs: bool) -> None:
        """Start a process again later, or give it up.

        Args:
            worker: the process.
            how: what happened to it, such as "was killed by SIGKILL".
            recurs: whether the same would happen again.

        Raises:
            SupervisorError: it is given up, and the service cannot go on without it.
        """
        what = f"{worker.name[0].upper()}{worker.name[1:]} {how}"
        again, full = worker.failed(what), self._full_disk()
        log = f"{full}Its log: {worker.log}" if worker.log else f"{full}The lines above say why."
        if worker.essential and (recurs or worker.failures >= _MAX_FAILURES):
            raise SupervisorError(f"{what}. {log}")
        # A training waits for space on a full disk: it resumes from its checkpoints.
        if not full and (recurs or worker.failures >= _MAX_FAILURES):
            worker.done = True
            logger.error("%s and is not started again. %s", what, log)
            self.trainer_failed(worker.pid, f"{what[0].lower()}{what[1:]}. {log}", False)
            return
        logger.error("%s %s", again, log if worker.log else full)
        if not worker.essential:
            self.trainer_failed(worker.pid, f"{again} {full}".rstrip(), True)

    def _full_disk(self) -> str:
        """A sentence, with a space behind it, where the disk of the database or of the models is full; else empty."""
        full = explain_full_disk(self._settings.home, self._settings.model_files_dir)
        return f"{full} " if full else ""

    def restart_api(self, reason: str) -> None:
        """End the process of the API, which is then started again."""
        process = self.api.process
        if process is not None and process.poll() is None:
            logger.error("The API is started again: %s", reason)
            process.kill()

    def _stop(self) -> None:
        """Stop API and training together, then the database; a second signal ends them at once."""
        running = [worker for worker in self.workers if worker.running]
        names = [worker.name for worker in running] + (["mongod"] if self._mongod and self._mongod.process else [])
        if names:
            logger.info("Stopping %s.", ", ".join(names))
        for worker in running:
            assert worker.process is not None
            worker.process.terminate()
        before, deadline = self._signals, time.monotonic() + _STOP_S
        while any(worker.running for worker in running):
            if time.monotonic() > deadline or self._signals > max(1, before):
                for worker in running:
                    assert worker.process is not None
                    worker.process.kill()
            self._wait(0.1)
        if self._mongod is not None:
            self._mongod.stop()
        logger.info("Stopped.")

    @contextmanager
    def _owned_database(self) -> Iterator[None]:
        """Own the embedded mongod, after the command that owns it now.

        Raises:
            EmbeddedMongodError: the owner is another service.
        """
        mongod = self._mongod
        if mongod is None:
            yield
            return
        who = f"the service on port {self._settings.port}"
        is_logged = False
        while not mongod.acquire(who):
            owner = mongod.owner()
            if owner.startswith("the service"):
                raise EmbeddedMongodError(
                    f"{self._settings.home} is in use by {owner}. Stop it, or set MEDPIX_HOME to another folder."
                )
            if not is_logged:
                logger.info("Waiting for %s, which uses the database.", owner)
                is_logged = True
            self._wait(0.2)
            if self._signals:
                yield
                return
        try:
            yield
        finally:
            mongod.release()

    def _wait(self, seconds: float) -> None:
        """Sleep until a signal comes, of a child that ended or of a user who wants to stop."""
        if select.select([self._wake], [], [], seconds)[0]:
            self._wake.recv(4096)

    @contextmanager
    def _handle_signals(self) -> Iterator[None]:
        def stop(number: int, _frame: FrameType | None) -> None:
            del number
            self._signals += 1

        kinds = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            kinds.append(signal.SIGHUP)
        for kind in kinds:
            signal.signal(kind, stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            # The handlers stay: this process ends now, and a late signal must not interrupt that.
            signal.set_wakeup_fd(-1)
            self._wake.close()
            self._waker.close()
