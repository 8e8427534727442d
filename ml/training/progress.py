"""Reports the progress of a training run to the database, to a terminal, or to the log."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from pymongo.database import Database
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from app.core.progress import Progress, duration
from app.data import schema
from ml.registry.model_card import Epoch, now

_LOG = logging.getLogger(__name__)
STOPPED: Final = "The training was stopped. Start it again to go on from its last checkpoint."
Reporter = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report nothing."""
    del progress


class DatabaseReporter:
    """Keeps one document per model in ``Training_runs``, which the service shows.

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
        try:
            self._runs.replace_one({"_id": progress.name}, progress.to_document(), upsert=True)
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
    left = "" if not progress.eta_s else f", about {duration(progress.eta_s)} left"
    return f"{progress.message or progress.state}{left}"


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


class _RemainingTime:
    """Estimates the seconds to the end of a run from its recent speed.

    The phases of a training differ in speed, so elapsed time x unfinished / finished share would be wrong for
    minutes after each change. Time and share before about the last tenth of the run count exponentially less.
    Both are summed and then divided: a first report of a tiny share after a long start would outweigh all others in
    an average of speeds.
    """

    _SPAN = 0.1

    def __init__(self) -> None:
        self._fraction = 0.0
        self._at = 0.0
        self._seconds = 0.0
        self._share = 0.0

    def update(self, fraction: float, elapsed_s: float) -> float | None:
        """The estimate at a finished share, 0 to 1; None below 5 %, too little to tell."""
        done = fraction - self._fraction
        if done > 0.0:
            weight = math.exp(-done / self._SPAN)
            self._seconds = weight * self._seconds + elapsed_s - self._at
            self._share = weight * self._share + done
            self._fraction, self._at = fraction, elapsed_s
        if fraction < 0.05 or not self._share:
            return None
        return max(0.0, (1.0 - fraction) * self._seconds / self._share)


class Run:
    """A training run that reports its progress; ``with Run(...) as run`` ends as done or failed.

    Args:
        name: the model that is trained.
        tasks: its tasks.
        reporter: called with every change.
        step: position of the run among those of one command, and their number, as (1, 3).

    Attributes:
        history: the epochs that were reported.
        precision: the number format of the training: bfloat16, float16 or float32; None for a model
            that is not trained in epochs.
    """

    def __init__(
        self, name: str, tasks: Sequence[str], reporter: Reporter, step: tuple[int, int] | None = None
    ) -> None:
        index, count = step or (None, None)
        self._progress = Progress(name, tuple(tasks), "queued", step=index, steps=count, pid=os.getpid())
        self._reporter = reporter
        self._start, self._before = time.monotonic(), 0.0
        self._span = (0.0, 1.0)
        self._remaining = _RemainingTime()
        self.history: list[Epoch] = []
        self.precision: str | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, including that of earlier processes which it resumes."""
        return self._before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        """What a process that resumes the run must know, as JSON values."""
        return {"seconds": self.seconds, "history": [epoch.model_dump() for epoch in self.history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the ``state_dict`` of an earlier process; of several, the longest history and time hold."""
        self._before = max(self._before, float(state["seconds"]))
        if len(state["history"]) > len(self.history):
            self.history = [Epoch(**epoch) for epoch in state["history"]]

    def __enter__(self) -> Self:
        self._report(replace(self._progress, state="running", started_at=now(), message="starting"))
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
        self._report(end)

    @contextmanager
    def stage(self, start: float, end: float) -> Iterator[Self]:
        """Within the block, fractions count from ``start`` to ``end`` of the enclosing stage."""
        outer = self._span
        low, high = outer
        self._span = (low + (high - low) * start, low + (high - low) * end)
        try:
            yield self
        finally:
            self._span = outer

    def update(
        self, fraction: float, message: str | None = None, *, epoch: int | None = None, epochs: int | None = None
    ) -> None:
        """Report a finished share, 0 to 1, of the current stage; without a message the last one stays."""
        low, high = self._span
        total = min(1.0, max(self._progress.fraction, low + (high - low) * fraction))
        progress = replace(self._progress, fraction=total, eta_s=self._remaining.update(total, self.seconds))
        if message is not None:
            progress = replace(progress, message=message, epoch=epoch, epochs=epochs)
        self._report(progress)

    def epoch(self, phase: str, epoch: int, epochs: int, loss: float) -> None:
        """Report a finished epoch of the current stage, and keep its loss."""
        self.history.append(Epoch(part=phase, epoch=epoch, loss=round(loss, 5)))
        self.update(epoch / epochs, f"{phase}, epoch {epoch}/{epochs}, loss {loss:.3f}", epoch=epoch, epochs=epochs)

    def _report(self, progress: Progress) -> None:
        self._progress = replace(progress, updated_at=now())
        self._reporter(self._progress)
