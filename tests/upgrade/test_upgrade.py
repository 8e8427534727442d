"""Data and models of an earlier version: what happens when this version starts on them.

version-0.1.zip holds what version 0.1 made of the generated dataset: the documents and options of its collections,
and the files of one trained model. A rollback is tested with the same documents: what version 0.1 writes when it is
started on the database of this version.
"""

import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from bson import json_util
from pymongo.database import Database

from app.core.settings import Settings
from app.data import schema
from app.data.seed import seed
from ml.registry.registry import Registry, RegistryError
from tests.conftest import Document
from tests.service import running_service, wait_for

_FILES = Path(__file__).with_name("version-0.1.zip")


def _dump(folder: Path) -> Document:
    """Unpack the file; returns the former database's collections and their options."""
    with zipfile.ZipFile(_FILES) as files:
        files.extractall(folder)
    dump: Document = json_util.loads(
        (folder / "database.json").read_text(), json_options=json_util.JSONOptions(tz_aware=True)
    )
    return dump


@pytest.fixture
def former(database: Database[Document], settings: Settings, generated_dataset: Path, tmp_path: Path) -> Settings:
    """Settings of a service whose database and models an earlier version made."""
    dump = _dump(tmp_path / "former")
    for name, options in dump["options"].items():
        database.create_collection(name, **options)
    for name, documents in dump["collections"].items():
        if documents:
            database[name].insert_many(documents)
    return settings.model_copy(update={"models_dir": tmp_path / "former", "data_dir": generated_dataset})


def _answers(client: httpx.Client) -> dict[str, Any]:
    paths = ("/cases/MPX1001", "/cases?limit=3", "/images?modality=CT&limit=3", "/facets", "/search?q=lesion")
    answers = {}
    for path in paths:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        answers[path] = answer.json()
    return answers


def test_data_of_an_earlier_version_are_served_and_seeding_brings_them_up_to_date(
    former: Settings, database: Database[Document], generated_dataset: Path, api: httpx.Client
) -> None:
    fresh = _answers(api)
    with running_service(former) as client:
        answers = _answers(client)
        assert answers["/facets"] == fresh["/facets"]
        for path in ("/cases?limit=3", "/images?modality=CT&limit=3", "/search?q=lesion"):
            assert answers[path]["total"] == fresh[path]["total"]
    report = seed(database, generated_dataset)
    assert (report.cases.inserted, report.cases.changed, report.cases.removed) == (0, 40, ())
    with running_service(former) as client:
        assert _answers(client) == fresh
    again = seed(database, generated_dataset)
    assert (again.cases.changed, again.images.changed) == (0, 0)


def test_a_model_of_an_earlier_version_goes_on_answering(former: Settings, database: Database[Document]) -> None:
    model = Registry(database, former.model_files_dir).load("caption-location")
    encoded = model.encode_captions(["Axial CT of the brain", "Chest X-ray"])
    probabilities = model.combine(None, encoded)["location"]
    assert probabilities.shape == (2, 21)
    assert probabilities.sum(axis=1) == pytest.approx([1.0, 1.0])
    with running_service(former) as client:
        cards = wait_for(client, "/models", lambda answer: bool(answer.json()["items"])).json()["items"]
        assert [item["card"]["name"] for item in cards] == ["caption-location"]


def test_a_model_of_a_later_version_is_refused_with_what_to_do(former: Settings, database: Database[Document]) -> None:
    """Version 0.1 says the same of a card format that it does not know, and trains models of its own."""
    database[schema.MODELS].update_one({"_id": "caption-location"}, {"$set": {"format_version": 99}})
    registry = Registry(database, former.model_files_dir)
    with pytest.raises(RegistryError, match="train caption-location again"):
        registry.get("caption-location")
    assert list(registry.cards()) == []


def test_after_a_rollback_seeding_writes_the_former_documents_and_this_version_takes_them_back(
    database: Database[Document], generated_dataset: Path, tmp_path: Path
) -> None:
    seed(database, generated_dataset)
    names = (schema.CASES, schema.IMAGES)
    current = {name: list(database[name].find().sort("_id", 1)) for name in names}
    former = _dump(tmp_path)
    for name in names:
        # The former version's seeding begins with its own validators; the indexes are still those of this version.
        database.command("collMod", name, **former["options"][name])
        for document in former["collections"][name]:
            assert database[name].replace_one({"_id": document["_id"]}, document).modified_count == 1
    seed(database, generated_dataset)
    assert {name: list(database[name].find().sort("_id", 1)) for name in names} == current
