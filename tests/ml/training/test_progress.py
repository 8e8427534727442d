import logging
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from app.core.progress import Progress
from app.data import schema
from ml.training.progress import STOPPED, DatabaseReporter, LogReporter, Run, _RemainingTime, console_reporter
from tests.ml.conftest import Document
from tests.ports import free_port


def test_stages_nest_and_fractions_never_fall() -> None:
    reports: list[Progress] = []
    with Run("m", ("modality",), reports.append) as run:
        with run.stage(0.0, 0.5):
            run.update(0.5, "first", epoch=1, epochs=2)
            with run.stage(0.5, 1.0):
                run.update(1.0, "nested")
        run.update(0.9, "second")
    assert [progress.fraction for progress in reports] == [0.0, 0.25, 0.5, 0.9, 1.0]
    assert [progress.state for progress in reports] == ["running"] * 4 + ["done"]
    assert (reports[1].epoch, reports[1].epochs) == (1, 2)
    assert reports[2].epoch is None
    assert reports[1].eta_s is not None


def test_a_failure_is_told_with_its_cause() -> None:
    reports: list[Progress] = []
    with pytest.raises(ValueError, match="no images"), Run("m", (), reports.append):
        raise ValueError("no images")
    assert reports[-1].state == "failed"
    assert reports[-1].message == "no images"


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


def test_a_database_that_is_gone_does_not_end_the_training(caplog: pytest.LogCaptureFixture) -> None:
    with MongoClient[Document](f"mongodb://127.0.0.1:{free_port()}/medpix", serverSelectionTimeoutMS=100) as client:
        reporter = DatabaseReporter(client.get_default_database(), every=0.0)
        with Run("compact", ("modality",), reporter) as run:
            run.update(0.5, "half")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "could not be written to the database, the training goes on" in caplog.text


def test_what_is_stopped_says_how_to_go_on() -> None:
    reports: list[Progress] = []
    with pytest.raises(KeyboardInterrupt), Run("m", (), reports.append):
        raise KeyboardInterrupt
    assert reports[-1].message == STOPPED


def test_time_and_history_of_the_process_before_count() -> None:
    reports: list[Progress] = []
    with Run("m", (), reports.append) as run:
        run.epoch("network 1", 1, 4, 0.5)
        state = run.state_dict()
    again: list[Progress] = []
    with Run("m", (), again.append) as run:
        run.load_state_dict(state | {"seconds": 90.0})
        assert [epoch.loss for epoch in run.history] == [0.5]
        run.update(0.9, "nearly")
        run.load_state_dict({"seconds": 10.0, "history": []})
        assert len(run.history) == 1
        assert run.seconds >= 90.0
    assert again[1].eta_s == pytest.approx(10.0, rel=0.1), "a tenth is left of what took ninety seconds so far"


def test_the_remaining_time_follows_the_speed_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("ml.training.progress.time.monotonic", lambda: clock[0])
    reports: list[Progress] = []
    with Run("m", (), reports.append) as run:
        # A fast phase, then one that is five times slower.
        for fraction, seconds in ((0.1, 10.0), (0.2, 20.0), (0.3, 70.0), (0.4, 120.0), (0.9, 370.0)):
            clock[0] = seconds
            run.update(fraction, "")
        run.update(0.5, "a step back is none")
    eta = [progress.eta_s for progress in reports[1:-1] if progress.eta_s is not None]
    assert len(eta) == 6
    assert eta[0] == pytest.approx(90.0)
    assert eta[1] == pytest.approx(80.0)
    # One tenth into the slow phase most of the error is gone; the run then needs 500 s for all of it.
    assert eta[3] == pytest.approx(300.0, rel=0.15)
    assert eta[4] == pytest.approx(50.0, rel=0.01)
    assert [progress.fraction for progress in reports] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.9, 0.9, 1.0]


_BAR = """
import time
from ml.training.progress import console_reporter, Run
with console_reporter() as reporter, Run("compact", ("modality",), reporter) as run:
    run.load_state_dict({"seconds": 130.0, "history": []})
    run.update(0.5, "network 1 of 2, epoch 3/6, loss 1.250")
    time.sleep(0.5)  # bars are drawn ten times a second
"""


def test_on_a_terminal_progress_becomes_a_bar() -> None:
    terminal, child = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _BAR],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=child,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(child)
    output = b""
    # A terminal whose last writer is gone reads as an error.
    with suppress(OSError):
        while part := os.read(terminal, 4096):
            output += part
    os.close(terminal)
    assert process.communicate()[0] == b"", "standard output is for results"
    assert process.returncode == 0, output
    text = output.decode()
    assert "compact" in text
    assert "50%" in text
    assert "network 1 of 2, epoch 3/6, loss 1.250, about 2 min left" in text
    assert "100%" in text
    assert "━" in text


def test_without_terminal_progress_becomes_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with console_reporter() as reporter:
        assert isinstance(reporter, LogReporter)
        with Run("compact", (), reporter):
            pass
    assert caplog.messages == ["compact   0% starting", "compact 100% done"]


def test_a_long_start_does_not_make_hours_of_minutes() -> None:
    """Twenty seconds before the first, tiny report, then 1 % every five seconds."""
    remaining = _RemainingTime()
    assert remaining.update(0.0002, 20.0) is None
    estimates = [remaining.update(share / 100, 20.0 + 5.0 * share) for share in range(1, 41)]
    assert estimates[3] is None
    assert estimates[4] is not None
    assert estimates[4] < 900
    assert estimates[-1] == pytest.approx(300.0, rel=0.05)
