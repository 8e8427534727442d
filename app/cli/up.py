"""Everything with one command: database, data, service, training of what is missing, evaluation."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from app.cli.serve import run_server
from app.core.exceptions import UserError
from app.core.progress import Progress
from app.core.settings import Settings
from app.data.schema import EVALUATION_RUN
from app.serving.training_status import read_progress

logger = logging.getLogger(__name__)

Document = dict[str, Any]

_POLL_S: Final = 1.0
_TRAINER_STOP_S: Final = 15.0


class PortInUseError(UserError):
    """Another program listens on the port."""


def check_port(settings: Settings) -> None:
    """Say at once that the port is taken, not after the database was started.

    Raises:
        PortInUseError: it is.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise PortInUseError(
                f"Port {settings.port} of {settings.host} cannot be used ({error.strerror}). "
                "Stop the program that has it, or set MEDPIX_PORT to another."
            ) from error


def serve_and_train(settings: Settings, database: Database[Document], *, train: bool) -> None:
    """Serve until SIGINT or SIGTERM; meanwhile a process of its own trains the missing models and evaluates all."""
    console = Console(stderr=True)
    if console.is_terminal:  # log lines must not tear the bars
        logging.getLogger().handlers = [RichHandler(console=console, show_path=False, markup=False)]
    trainer = _training_process(settings) if train else contextlib.nullcontext()
    with trainer as process, _progress_bars(console, database, process):
        run_server(settings)


@contextmanager
def _training_process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    log_file = settings.run_dir / "train.log"
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "MEDPIX_MONGO_URI": str(settings.mongo_uri),
        "MEDPIX_HOME": str(settings.home),
        "MEDPIX_DATA_DIR": str(settings.dataset_dir),
        "MEDPIX_MODELS_DIR": str(settings.model_files_dir),
    }
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.main", "train", "--missing", "--evaluate"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us alone: we end the training after the service
            preexec_fn=_be_nice,  # noqa: PLW1509  # no thread has been started yet
        )
    try:
        yield process
    finally:
        _end(process)


def _be_nice() -> None:
    os.nice(10)  # requests come before training


def _end(process: subprocess.Popen[bytes]) -> None:
    """A training that is ended goes on from its last checkpoint the next time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_TRAINER_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _progress_bars(
    console: Console, database: Database[Document], process: subprocess.Popen[bytes] | None
) -> Iterator[None]:
    """Show how far the training is: bars on a terminal, log lines elsewhere."""
    if process is None:
        yield
        return
    ended = threading.Event()
    follow = _follow_with_bars if console.is_terminal else _follow_with_lines
    thread = threading.Thread(target=follow, args=(console, database, process, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow_with_bars(
    console: Console, database: Database[Document], process: subprocess.Popen[bytes], ended: threading.Event
) -> None:
    columns = (TextColumn("{task.fields[model]}"), BarColumn(), TextColumn("{task.description}"))
    bars: dict[str, TaskID] = {}
    with RichProgress(*columns, console=console, transient=True) as progress:
        while not ended.wait(_POLL_S) and process.poll() is None:
            for run in _runs(database):
                if run.name not in bars:
                    bars[run.name] = progress.add_task("", total=1.0, model=run.name)
                progress.update(bars[run.name], completed=run.fraction, description=_sentence(run))
    _say_end(process, ended)


def _follow_with_lines(
    _console: Console, database: Database[Document], process: subprocess.Popen[bytes], ended: threading.Event
) -> None:
    said: dict[str, tuple[str, int]] = {}
    while not ended.wait(_POLL_S) and process.poll() is None:
        for run in _runs(database):
            step = (run.state, int(run.fraction * 20))
            if said.get(run.name) != step:
                said[run.name] = step
                logger.info("%s", _sentence(run))
    _say_end(process, ended)


def _sentence(run: Progress) -> str:
    if run.name == EVALUATION_RUN:
        return f"The evaluation is {run.fraction:.0%} done."
    return run.describe()


def _runs(database: Database[Document]) -> list[Progress]:
    try:
        return [run for run in read_progress(database) if run.state in ("queued", "running")]
    except PyMongoError:
        return []


def _say_end(process: subprocess.Popen[bytes], ended: threading.Event) -> None:
    if ended.is_set():
        return
    if process.returncode == 0:
        logger.info("Training and evaluation are done; the models are being served.")
    else:
        logger.error("Training or evaluation ended with code %s; its log has the cause.", process.returncode)
