"""Tells how far a training run is: to the database, to a terminal, or to the log."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, Self

from pymongo.database import Database
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from app.data import schema
from ml.registry.model_card import Epoch, now

_LOG = logging.getLogger(__name__)
STOPPED: Final = "The training was stopped. Start it again to go on from its last checkpoint."
State = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One message about a run.

    Attributes:
        name: the model being trained.
        tasks: its tasks.
        state: queued, running, done or failed.
        fraction: finished share, 0 to 1.
        message: what is going on, in words.
        epoch: epochs finished of the current stage, None outside of one.
        epochs: epochs of the current stage.
        eta_s: estimated seconds to the end, None before there is an estimate.
        started_at: start of the run.
    """

    name: str
    tasks: tuple[str, ...]
    state: State
    fraction: float = 0.0
    message: str = ""
    epoch: int | None = None
    epochs: int | None = None
    eta_s: float | None = None
    started_at: datetime = field(default_factory=now)


Reporter = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report to nobody."""
    del progress


class DatabaseReporter:
    """Keeps one document per model in ``Training_runs``, which the service shows to those who wait.

    A report that cannot be written is no reason to end a training: the first one is warned of.

    Args:
        database: the seeded database.
        every: least seconds between two writes of a running state.
    """

    def __init__(self, database: Database[dict[str, Any]], every: float = 1.0) -> None:
        self._runs = database[schema.TRAINING_RUNS]
        self._every = every
        self._last = ("", -1.0)
        self._warned = False

    def __call__(self, progress: Progress) -> None:
        """Write the progress, unless the same state was written a moment ago."""
        state, when = self._last
        if progress.state == state == "running" and time.monotonic() - when < self._every:
            return
        self._last = (progress.state, time.monotonic())
        document = {
            "tasks": list(progress.tasks),
            "state": progress.state,
            "fraction": round(progress.fraction, 4),
            "epoch": progress.epoch,
            "epochs": progress.epochs,
            "eta_s": progress.eta_s,
            "started_at": progress.started_at,
            "updated_at": now(),
            "message": progress.message,
            "pid": os.getpid(),
        }
        try:
            self._runs.replace_one({"_id": progress.name}, document, upsert=True)
        except PyMongoError as error:
            if not self._warned:
                _LOG.warning("The progress could not be written to the database, the training goes on: %s", error)
            self._warned = True


class BarReporter:
    """A progress bar on standard error; use it as a context manager."""

    def __init__(self) -> None:
        self._bars = RichProgress(
            TextColumn("[bold]{task.fields[model]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Move the bar of the model."""
        if progress.name not in self._tasks:
            self._tasks[progress.name] = self._bars.add_task("", total=1.0, model=progress.name)
        self._bars.update(self._tasks[progress.name], completed=progress.fraction, description=_describe(progress))


class LogReporter:
    """Plain log lines, for runs without a terminal.

    Args:
        every: least seconds between two lines of a running state.
    """

    def __init__(self, every: float = 15.0) -> None:
        self._every = every
        self._last = ("", -1.0)

    def __call__(self, progress: Progress) -> None:
        """Log the progress, unless a line of the same state was logged a moment ago."""
        state, when = self._last
        if progress.state == state == "running" and time.monotonic() - when < self._every:
            return
        self._last = (progress.state, time.monotonic())
        level = logging.ERROR if progress.state == "failed" else logging.INFO
        _LOG.log(level, "%s %3.0f%% %s", progress.name, 100.0 * progress.fraction, _describe(progress))


def _describe(progress: Progress) -> str:
    left = "" if not progress.eta_s else f", about {_duration(progress.eta_s)} left"
    return f"{progress.message or progress.state}{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def console_reporter() -> Iterator[Reporter]:
    """A bar where standard error is a terminal, else log lines."""
    if sys.stderr.isatty():
        with BarReporter() as bar:
            yield bar
    else:
        yield LogReporter()


def to_all(reporters: Sequence[Reporter]) -> Reporter:
    """One reporter that passes everything on to several."""

    def report(progress: Progress) -> None:
        for reporter in reporters:
            reporter(progress)

    return report


class Run:
    """A training run that reports itself; ``with Run(...) as run`` ends as done or failed.

    Args:
        name: the model being trained.
        tasks: its tasks.
        reporter: who is told.

    Attributes:
        history: the epochs that were reported.
        precision: the number format of the training: bfloat16, float16 or float32; None for a model
            that is not trained in epochs.
    """

    def __init__(self, name: str, tasks: Sequence[str], reporter: Reporter) -> None:
        self._progress = Progress(name, tuple(tasks), "queued")
        self._reporter = reporter
        self._start, self._before = time.monotonic(), 0.0
        self._span = (0.0, 1.0)
        self.history: list[Epoch] = []
        self.precision: str | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock time that the run took so far, in all processes that worked on it."""
        return self._before + time.monotonic() - self._start

    def told(self) -> dict[str, Any]:
        """What the next process must know where this one is killed, as JSON values."""
        return {"seconds": self.seconds, "history": [epoch.model_dump() for epoch in self.history]}

    def take_up(self, told: Mapping[str, Any]) -> None:
        """Go on from what a process had told that was killed; of several accounts the longest holds."""
        self._before = max(self._before, float(told["seconds"]))
        if len(told["history"]) > len(self.history):
            self.history = [Epoch(**epoch) for epoch in told["history"]]

    def __enter__(self) -> Self:
        self._tell(replace(self._progress, state="running", message="starting"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            end = replace(self._progress, state="done", fraction=1.0, eta_s=0.0, message="done")
        else:
            # The last message a waiting client sees: the cause, never a stack trace.
            cause = STOPPED if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
            end = replace(self._progress, state="failed", eta_s=None, message=cause)
        self._tell(end)

    @contextmanager
    def stage(self, start: float, end: float) -> Iterator[Self]:
        """Within the block, fractions count from ``start`` to ``end`` of what was the whole before."""
        outer = self._span
        low, high = outer
        self._span = (low + (high - low) * start, low + (high - low) * end)
        try:
            yield self
        finally:
            self._span = outer

    def update(self, fraction: float, message: str, *, epoch: int | None = None, epochs: int | None = None) -> None:
        """Report a finished share, 0 to 1, of the current stage."""
        low, high = self._span
        total = min(1.0, low + (high - low) * fraction)
        eta = self.seconds * (1.0 - total) / total if total > 0.01 else None
        self._tell(replace(self._progress, fraction=total, message=message, epoch=epoch, epochs=epochs, eta_s=eta))

    def epoch(self, part: str, epoch: int, epochs: int, loss: float) -> None:
        """Report a finished epoch of the current stage, and remember its loss."""
        self.history.append(Epoch(part=part, epoch=epoch, loss=round(loss, 5)))
        self.update(epoch / epochs, f"{part}, epoch {epoch}/{epochs}, loss {loss:.3f}", epoch=epoch, epochs=epochs)

    def _tell(self, progress: Progress) -> None:
        self._progress = progress
        self._reporter(progress)
