"""Fixtures of the API tests: the service with trained models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database

from app.config import Settings, load_settings
from ml.records import Record, load_records
from tests.conftest import database_address
from tests.service import is_ok, running_service, wait_for

Document = dict[str, Any]


@pytest.fixture(scope="session")
def predict_settings(
    ml_database: Database[Document],
    models_dir: Path,
    generated_dataset: Path,
    mongo_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """Settings of a service over the generated dataset, with the models that were trained on it."""
    return load_settings(
        home=tmp_path_factory.mktemp("predict"),
        mongo_uri=database_address(mongo_server, ml_database.name),
        data_dir=generated_dataset,
        models_dir=models_dir,
        device="cpu",
        precision="fp32",  # so that answers can be compared to the fifth place
    )


@pytest.fixture(scope="session")
def predict_api(predict_settings: Settings) -> Iterator[httpx.Client]:
    """A client of the running service with models for both tasks."""
    with running_service(predict_settings) as client:
        wait_for(client, "/health/ready", is_ok)
        yield client


@pytest.fixture(scope="session")
def records(ml_database: Database[Document], generated_dataset: Path) -> list[Record]:
    """All images of the generated dataset."""
    return load_records(ml_database, generated_dataset / "images", ("train", "dev", "test"))


@pytest.fixture(scope="session")
def png(records: list[Record]) -> bytes:
    """An image that no model was trained on."""
    return next(record for record in records if record.split == "test").path.read_bytes()
