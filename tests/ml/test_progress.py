import logging
from typing import Any

import pytest
from pymongo.database import Database

from app.data import schema
from ml.progress import DatabaseReporter, LogReporter, Progress, Run, console_reporter
from tests.ml.conftest import Document


def test_stages_nest_and_fractions_never_fall() -> None:
    heard: list[Progress] = []
    with Run("m", ("modality",), heard.append) as run:
        with run.stage(0.0, 0.5):
            run.update(0.5, "first", epoch=1, epochs=2)
            with run.stage(0.5, 1.0):
                run.update(1.0, "nested")
        run.update(0.9, "second")
    assert [progress.fraction for progress in heard] == [0.0, 0.25, 0.5, 0.9, 1.0]
    assert [progress.state for progress in heard] == ["running"] * 4 + ["done"]
    assert (heard[1].epoch, heard[1].epochs) == (1, 2)
    assert heard[2].epoch is None
    assert heard[1].eta_s is not None


def test_a_failure_is_told_with_its_cause() -> None:
    heard: list[Progress] = []
    with pytest.raises(ValueError, match="no images"), Run("m", (), heard.append):
        raise ValueError("no images")
    assert heard[-1].state == "failed"
    assert heard[-1].message == "no images"


def test_the_database_holds_one_document_per_model(database: Database[Document]) -> None:
    reporter = DatabaseReporter(database, every=0.0)
    with Run("compact", ("modality", "location"), reporter) as run:
        run.update(0.4, "epoch 2/5", epoch=2, epochs=5)
        document: dict[str, Any] | None = database[schema.TRAINING_RUNS].find_one({"_id": "compact"})
        assert document is not None
        assert document["state"] == "running"
        assert document["fraction"] == 0.4
        assert (document["epoch"], document["epochs"]) == (2, 5)
        assert document["pid"] > 0
        assert document["eta_s"] >= 0
    assert [d["state"] for d in database[schema.TRAINING_RUNS].find()] == ["done"]


def test_running_states_are_written_at_most_once_per_interval(database: Database[Document]) -> None:
    reporter = DatabaseReporter(database, every=60.0)
    with Run("compact", (), reporter) as run:
        run.update(0.5, "later")
        document = database[schema.TRAINING_RUNS].find_one({"_id": "compact"})
        assert document is not None
        assert document["fraction"] == 0.0


def test_without_terminal_progress_becomes_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with console_reporter() as reporter:
        assert isinstance(reporter, LogReporter)
        with Run("compact", (), reporter):
            pass
    assert caplog.messages == ["compact   0% starting", "compact 100% done"]
