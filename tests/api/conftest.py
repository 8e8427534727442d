"""Fixtures of the API tests: images to send."""

from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from ml.records import Record, load_records

Document = dict[str, Any]


@pytest.fixture(scope="session")
def records(ml_database: Database[Document], generated_dataset: Path) -> list[Record]:
    """All images of the generated dataset."""
    return load_records(ml_database, generated_dataset / "images", ("train", "dev", "test"))


@pytest.fixture(scope="session")
def png(records: list[Record]) -> bytes:
    """An image that no model was trained on."""
    return next(record for record in records if record.split == "test").path.read_bytes()
