from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.database import Database

from app.data.schema import TRAINING_RUNS
from app.serving.training_status import STALE_AFTER, read_progress
from ml.training.train import queue

Document = dict[str, Any]


def states(database: Database[Document]) -> dict[str, str]:
    return {run.name: run.state for run in read_progress(database)}


def test_what_waits_for_a_process_that_is_gone_counts_as_failed(database: Database[Document]) -> None:
    runs, long_ago = database[TRAINING_RUNS], datetime.now(UTC) - 2 * STALE_AFTER
    queue(["compact", "caption-location"], database)
    assert set(states(database).values()) == {"queued"}
    runs.update_many({}, {"$set": {"updated_at": long_ago}})
    runs.update_one({"_id": "compact"}, {"$set": {"state": "running", "updated_at": datetime.now(UTC)}})
    assert states(database) == {"compact": "running", "caption-location": "queued"}, "its turn comes later"
    runs.update_one({"_id": "compact"}, {"$set": {"updated_at": long_ago + timedelta(seconds=1)}})
    assert states(database) == {"compact": "failed", "caption-location": "failed"}
    assert all("run the training again" in run.message for run in read_progress(database))
