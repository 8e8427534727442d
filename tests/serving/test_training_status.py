from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.database import Database

from app.core.progress import STALE_AFTER, Progress
from app.data.schema import TRAINING_RUNS
from app.serving.training_status import read_progress
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


def test_the_remaining_time_counts_down_between_reports(database: Database[Document]) -> None:
    queue(["compact", "caption-location"], database)
    assert [(run.step, run.steps) for run in sorted(read_progress(database), key=lambda run: run.step or 0)] == [
        (1, 2),
        (2, 2),
    ]
    reported = {"state": "running", "fraction": 0.4, "eta_s": 90.0, "updated_at": datetime.now(UTC)}
    database[TRAINING_RUNS].update_one({"_id": "compact"}, {"$set": reported})
    assert _compact(database).describe().startswith("The training of compact (step 1 of 2) is 40% done, about 90 s")
    half_a_minute_ago = datetime.now(UTC) - timedelta(seconds=30)
    database[TRAINING_RUNS].update_one({"_id": "compact"}, {"$set": {"updated_at": half_a_minute_ago}})
    answer = _compact(database).as_json()
    assert 58 <= answer["eta_s"] <= 60
    assert (answer["step"], answer["steps"]) == (1, 2)


def test_a_document_of_an_earlier_version_is_read(database: Database[Document]) -> None:
    former = {"_id": "compact", "tasks": ["modality"], "state": "running", "fraction": 0.5, "eta_s": None}
    database[TRAINING_RUNS].insert_one(dict(former))
    assert _compact(database) == Progress("compact", ("modality",), "running", 0.5)


def _compact(database: Database[Document]) -> Progress:
    return next(run for run in read_progress(database) if run.name == "compact")
