"""Training status: what the training processes report to the database."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pymongo.database import Database

from app.data.schema import TRAINING_RUNS

Document = dict[str, Any]

# A training process reports at least once per epoch; after this silence it counts as dead.
STALE_AFTER: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of one training run.

    Attributes:
        name: of the model in training.
        tasks: that the model will answer.
        state: queued, running, done or failed.
        fraction: of the work done, 0 to 1.
        eta_s: estimated seconds until it ends, if known.
        message: what it does, or why it failed.
    """

    name: str
    tasks: tuple[str, ...]
    state: str
    fraction: float
    eta_s: float | None
    message: str

    def describe(self) -> str:
        """One sentence for people."""
        match self.state:
            case "queued":
                return f"The training of {self.name} is queued."
            case "running":
                estimate = f", about {_duration(self.eta_s)} left" if self.eta_s is not None else ""
                return f"The training of {self.name} is {self.fraction:.0%} done{estimate}."
            case "failed":
                return f"The training of {self.name} failed: {self.message}"
        return f"The training of {self.name} is done; the model is being loaded."

    def as_json(self) -> Document:
        """The same for programs."""
        eta_s = None if self.eta_s is None else round(self.eta_s)
        return {"model": self.name, "state": self.state, "fraction": round(self.fraction, 3), "eta_s": eta_s}


def _duration(seconds: float) -> str:
    return f"{round(seconds)} s" if seconds < 100 else f"{round(seconds / 60)} min"


def read_progress(database: Database[Document]) -> list[Progress]:
    """The training runs, newest report first; a silent run counts as failed, and what waits for it too."""
    now = datetime.now(UTC)
    runs = list(database[TRAINING_RUNS].find().sort("updated_at", -1))
    silent = {run["_id"] for run in runs if run.get("updated_at") and now - run["updated_at"] > STALE_AFTER}
    # A model may wait for hours, but then another one is in training.
    waits = any(run["state"] == "running" and run["_id"] not in silent for run in runs)
    found = []
    for run in runs:
        state, message = run["state"], run.get("message") or ""
        if run["_id"] in silent and (state == "running" or (state == "queued" and not waits)):
            state, message = "failed", "its process stopped reporting; run the training again, it will resume"
        tasks = tuple(run.get("tasks") or ())
        found.append(Progress(run["_id"], tasks, state, float(run.get("fraction") or 0), run.get("eta_s"), message))
    return found
