"""Trained models of a test's own."""

from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from app.core.settings import Settings
from app.serving import model_manager as manager_module
from tests.serving.trained_copies import TrainedCopies

Document = dict[str, Any]


@pytest.fixture
def copies(
    database: Database[Document],
    ml_database: Database[Document],
    models_dir: Path,
    predict_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TrainedCopies:
    monkeypatch.setattr(manager_module, "_POLL_S", 0.05)
    monkeypatch.setattr(manager_module, "_RETRY_S", 0.2)
    # The home holds what was converted before: that takes seconds.
    settings = predict_settings.model_copy(update={"models_dir": tmp_path, "max_batch": 1})
    return TrainedCopies(database, ml_database, models_dir, settings)
