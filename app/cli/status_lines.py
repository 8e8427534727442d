"""What `medpix up` prints beside the logs: the address, the training, and when predictions are ready."""

import json
import logging
import threading
from http.client import HTTPConnection, HTTPException
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import PyMongoError

from app.cli.supervisor import Supervisor
from app.core.progress import Progress
from app.core.settings import Settings
from app.data.schema import EVALUATION_RUN, TRAINING_RUNS
from app.serving.training_status import read_progress

logger = logging.getLogger(__name__)

Document = dict[str, Any]

_POLL_S: Final = 1.0
_PROBE_EVERY: Final = 10  # polls
_PROBE_TIMEOUT_S: Final = 10.0
# An API process that has answered and then does not this many times in a row cannot recover by itself.
_MAX_SILENT_PROBES: Final = 3
_STEPS: Final = 10  # lines per training


def _host(settings: Settings) -> str:
    """Where this machine reaches the service."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - nothing is bound here


def address(settings: Settings) -> str:
    """The address to open in a browser on this machine."""
    host = _host(settings)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}{settings.root_path}"


class StatusLines:
    """Follows API and training in a thread, and prints what changes; has a hung API started again.

    Args:
        settings: of the service.
        database: with the training runs.
        supervisor: whose processes these are.
    """

    def __init__(self, settings: Settings, database: Database[Document], supervisor: Supervisor) -> None:
        self._settings = settings
        self._database = database
        self._supervisor = supervisor
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="status-lines", daemon=True)
        self._open = False
        self._serving = ""  # the models that were logged last
        self._training_done = False
        self._silent = 0
        self._answered = 0  # the process id of the API that answered last
        self._logged: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> "StatusLines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_PROBE_TIMEOUT_S)

    def _follow(self) -> None:
        polls = 0
        while not self._ended.wait(_POLL_S):
            try:
                if not self._open:
                    self._log_address()
                else:
                    if not self._serving or polls % _PROBE_EVERY == 0:
                        self._log_ready()
                    if polls % _PROBE_EVERY == 0:
                        self._probe()
                if self._supervisor.trainer is not None:
                    self._log_training()
            except Exception:  # a line that cannot be printed is no reason to stop following
                logger.debug("a status line could not be printed", exc_info=True)
            polls += 1

    def _log_address(self) -> None:
        if self._get("/health/live") is not None:
            self._open = True
            logger.info("Open %s in a browser: cases and images can be browsed now.", address(self._settings))

    def _log_ready(self) -> None:
        """Say that predictions are answered and by which models, again when better ones have replaced them."""
        status = self._get("/health/ready")
        if status is None or status.get("not_serving") != []:
            return
        serving = ", ".join(f"{task} by {state['model']}" for task, state in status["models"].items())
        if serving != self._serving:
            self._serving = serving
            logger.info("Predictions are ready: %s.", serving)

    def _log_training(self) -> None:
        trainer = self._supervisor.trainer
        assert trainer is not None
        if trainer.done:
            if not self._training_done and trainer.failures == 0:
                logger.info("Training and evaluation are done.")
            self._training_done = True
            return
        try:
            runs = [run for run in read_progress(self._database) if run.state in ("queued", "running")]
        except PyMongoError:
            return
        for run in runs:
            if run.state != "running":
                continue
            line = ("running", int(run.fraction * _STEPS))
            if self._logged.get(run.name) != line:
                self._logged[run.name] = line
                logger.info("%s", _sentence(run))

    def _probe(self) -> None:
        """Have an API started again that has stopped answering, or that says it cannot recover."""
        api = self._supervisor.api
        if not api.running:
            self._silent = 0
            return
        pid = api.pid
        if self._get("/health/live", timeout_s=_PROBE_TIMEOUT_S) is not None:
            self._answered = pid
            self._silent = 0
        elif self._answered == pid:  # one that has not answered yet is starting
            self._silent += 1
        if self._silent >= _MAX_SILENT_PROBES:
            self._silent = 0
            self._supervisor.restart_api(f"{address(self._settings)}/health/live did not answer as it should.")

    def _get(self, path: str, *, timeout_s: float = 3.0) -> Document | None:
        """The JSON of an answer; None where there is none, or a status of 400 or more for /health/live."""
        connection = HTTPConnection(_host(self._settings), self._settings.port, timeout=timeout_s)
        try:
            connection.request("GET", path, headers={"Host": "localhost", "User-Agent": "medpix-up"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, HTTPException, ValueError):
            return None
        finally:
            connection.close()
        if path == "/health/live" and answer.status >= 400:
            return None
        return dict(content)


def _sentence(run: Progress) -> str:
    if run.name == EVALUATION_RUN:
        return f"The evaluation is {run.fraction:.0%} done."
    return run.describe()


def note_failed_training(database: Database[Document], pid: int, message: str, again: bool) -> None:
    """Write to the training runs that the process of a trainer has ended, so that nobody waits for it.

    Args:
        database: with the training runs.
        pid: of the process.
        message: what happened.
        again: whether it is started again.
    """
    own: list[Document] = [{"state": "running", "pid": pid}]
    if not again:
        own.append({"state": "queued"})
    change = {"state": "queued" if again else "failed", "message": message, "eta_s": None}
    try:
        database[TRAINING_RUNS].update_many({"$or": own}, {"$set": change})
    except PyMongoError as error:
        logger.warning("the state of the training could not be written: %s", error)
