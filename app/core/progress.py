"""State of a training run: the one document that the trainer writes, and that the API and the pages show."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self

State = Literal["queued", "running", "done", "failed"]
# A training process reports at least once per epoch; after this silence it counts as dead.
STALE_AFTER: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of one training run, or of an evaluation.

    Attributes:
        name: the model that is trained.
        tasks: the tasks that the model answers.
        state: queued, running, done or failed.
        fraction: finished share, 0 to 1; it never falls during a run.
        message: what the run does, or why it failed.
        epoch: finished epochs of the current phase, None outside of one.
        epochs: epochs of the current phase.
        step: position of the run among those that one command trains, 1 for the first; None for a run of its own.
        steps: number of these runs.
        eta_s: estimated seconds to the end as of ``updated_at``, None before there is an estimate.
        started_at: start of the run, None while it is queued.
        updated_at: time of this report.
        pid: process id of the trainer, None while the run is queued.
    """

    name: str
    tasks: tuple[str, ...]
    state: State
    fraction: float = 0.0
    message: str = ""
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    eta_s: float | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    pid: int | None = None

    def to_document(self) -> dict[str, Any]:
        """The document of ``Training_runs``; its ``_id`` is the name."""
        return {
            "_id": self.name,
            "tasks": list(self.tasks),
            "state": self.state,
            "fraction": round(self.fraction, 4),
            "message": self.message,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "step": self.step,
            "steps": self.steps,
            "eta_s": self.eta_s,
            "started_at": self.started_at,
            "updated_at": self.updated_at,
            "pid": self.pid,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The state in a document; a field that an earlier version did not write has its default."""
        values = {field.name: document[field.name] for field in fields(cls) if document.get(field.name) is not None}
        return cls(**values | {"name": document["_id"], "tasks": tuple(document.get("tasks") or ())})

    @property
    def is_stale(self) -> bool:
        """Whether the last report is so old that its process must have ended."""
        return self.updated_at is not None and datetime.now(UTC) - self.updated_at > STALE_AFTER

    @property
    def remaining_s(self) -> float | None:
        """Estimated seconds to the end as of now: the estimate of the last report less the time since then."""
        if self.eta_s is None or self.updated_at is None:
            return self.eta_s
        return max(0.0, self.eta_s - (datetime.now(UTC) - self.updated_at).total_seconds())

    def describe(self) -> str:
        """One sentence for users."""
        run = f"The training of {self.name}"
        if self.steps is not None and self.steps > 1:
            run += f" (step {self.step} of {self.steps})"
        match self.state:
            case "queued":
                return f"{run} is queued."
            case "running":
                left = "" if self.remaining_s is None else f", about {duration(self.remaining_s)} left"
                return f"{run} is {self.fraction:.0%} done{left}."
            case "failed":
                return f"{run} failed: {self.message}"
        return f"{run} is done; the model is being loaded."

    def as_json(self) -> dict[str, Any]:
        """The state as the API gives it; ``eta_s`` in whole seconds as of now."""
        remaining = self.remaining_s
        return {
            "model": self.name,
            "state": self.state,
            "fraction": round(self.fraction, 3),
            "eta_s": None if remaining is None else round(remaining),
            "step": self.step,
            "steps": self.steps,
            "message": self.message,
        }


def duration(seconds: float) -> str:
    """A time in words: "45 s", "12 min"."""
    return f"{round(seconds)} s" if seconds < 100 else f"{round(seconds / 60)} min"
