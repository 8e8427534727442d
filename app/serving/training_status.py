"""Reads from the database which models are in training, and which ones a start trains."""

from dataclasses import replace
from typing import Any

from pymongo.database import Database

from app.core.progress import Progress
from app.data.schema import TRAINING_CHOICE, TRAINING_RUNS

Document = dict[str, Any]


def read_progress(database: Database[Document]) -> list[Progress]:
    """The training runs, newest report first; a stale run counts as failed, and so do the runs queued behind it."""
    documents = database[TRAINING_RUNS].find({"_id": {"$ne": TRAINING_CHOICE}}).sort("updated_at", -1)
    runs = [Progress.from_document(document) for document in documents]
    # A model may be queued for hours, but then another one is in training.
    is_training = any(run.state == "running" and not run.is_stale for run in runs)
    message = "its process stopped reporting; run the training again, it will resume"
    return [
        replace(run, state="failed", message=message)
        if run.is_stale and (run.state == "running" or (run.state == "queued" and not is_training))
        else run
        for run in runs
    ]


def read_choice(database: Database[Document]) -> Document | None:
    """Which models the last start trains and why, as ``ml.training.selection`` wrote it; None before the first."""
    return database[TRAINING_RUNS].find_one({"_id": TRAINING_CHOICE}, {"_id": 0})
