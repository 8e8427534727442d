"""Reads the training runs from the database."""

from dataclasses import replace
from typing import Any

from pymongo.database import Database

from app.core.progress import Progress
from app.data.schema import TRAINING_RUNS

Document = dict[str, Any]


def read_progress(database: Database[Document]) -> list[Progress]:
    """The training runs, newest report first; a stale run counts as failed, and so do the runs queued behind it."""
    runs = [Progress.from_document(document) for document in database[TRAINING_RUNS].find().sort("updated_at", -1)]
    # A model may be queued for hours, but then another one is in training.
    is_training = any(run.state == "running" and not run.is_stale for run in runs)
    message = "its process stopped reporting; run the training again, it will resume"
    return [
        replace(run, state="failed", message=message)
        if run.is_stale and (run.state == "running" or (run.state == "queued" and not is_training))
        else run
        for run in runs
    ]
