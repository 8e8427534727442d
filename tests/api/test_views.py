"""Saved views: a selection under a name, with an address that stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import httpx
import polars as pl
import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import WriteError

from app.core.settings import load_settings
from app.data.schema import SEED_RUNS, VIEWS
from app.data.seed import seed
from tests.api.predict_client import is_problem
from tests.conftest import database_address
from tests.service import running_service, wait_for

Document = dict[str, Any]
READER, OTHER = "reader-key-0123456789", "other-key-0123456789"


@pytest.fixture(scope="module")
def views_database(mongo_client: MongoClient[Document], generated_dataset: Path) -> Database[Document]:
    seed(mongo_client["views"], generated_dataset)
    return mongo_client["views"]


@pytest.fixture(scope="module")
def running(
    views_database: Database[Document],
    generated_dataset: Path,
    mongo_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    settings = load_settings(
        home=tmp_path_factory.mktemp("views"),
        mongo_uri=database_address(mongo_server, views_database.name),
        data_dir=generated_dataset,
        api_keys=f"reader:{READER},other:{OTHER}",
    )
    with running_service(settings) as client:
        client.headers["X-API-Key"] = READER
        yield client


@pytest.fixture
def service(running: httpx.Client, views_database: Database[Document]) -> httpx.Client:
    """A service without views."""
    views_database[VIEWS].delete_many({})
    return running


def _save(client: httpx.Client, name: str = "CT of men", **body: Any) -> Document:
    answer = client.post("/views", json={"name": name, "query": "modality=CT&sex=male", **body})
    assert answer.status_code == 201, answer.text
    saved: Document = answer.json()
    assert answer.headers["location"] == saved["links"]["self"]
    return saved


def test_a_query_too_long_once_it_is_escaped_is_refused(service: httpx.Client) -> None:
    query = "&".join(f"caption__contains={letter * 190}" for letter in "äöüäöüäöüäöüäöüäöüä")
    assert len(query) < 4_000
    answer = service.post("/views", json={"name": "long", "query": query})
    assert answer.status_code == 422, answer.text
    [problem] = answer.json()["errors"]
    assert problem["parameter"] == "query"
    assert "as an address spells it, at most 4000" in problem["message"]


def test_a_view_is_saved_opened_listed_and_deleted(service: httpx.Client) -> None:
    saved = _save(service, query="?sort=-age&modality=CT&sex=male")
    assert (saved["name"], saved["of"], saved["by"]) == ("CT of men", "images", "reader")
    listed = service.get(saved["links"]["items"]).json()
    assert listed["total"] == saved["total"] > 0
    ages = [item["age"] for item in listed["items"] if item["age"] is not None]
    assert ages == sorted(ages, reverse=True)
    opened = service.get(saved["links"]["self"]).json()
    assert {name: opened[name] for name in saved} == saved
    assert (opened["dataset_changed"], opened["note"]) == (False, None)
    assert opened["current_total"] == saved["total"]
    _save(service, "Cases of the head", of="cases", query="location_category=Head&q=brain")
    page = service.get("/views").json()
    assert [view["name"] for view in page["items"]] == ["Cases of the head", "CT of men"]
    assert service.get("/views?of=images&name__contains=ct").json()["items"] == [saved]
    assert service.delete(saved["links"]["self"]).status_code == 204
    is_problem(service.get(saved["links"]["self"]), 404)
    assert service.get("/views").json()["total"] == 1


def test_a_name_is_taken_once_per_writer(service: httpx.Client) -> None:
    saved = _save(service)
    answer = service.post("/views", json={"name": saved["name"]})
    is_problem(answer, 409)
    assert saved["links"]["self"] in answer.json()["detail"]
    assert service.post("/views", json={"name": saved["name"]}, headers={"X-API-Key": OTHER}).status_code == 201


def test_only_its_writer_deletes_a_view_and_only_a_key_saves_one(service: httpx.Client) -> None:
    saved = _save(service)
    is_problem(service.delete(saved["links"]["self"], headers={"X-API-Key": OTHER}), 403)
    is_problem(service.delete(saved["links"]["self"], headers={"X-API-Key": "wrong"}), 401)
    is_problem(service.post("/views", json={"name": "x"}, headers={"X-API-Key": "wrong"}), 401)
    assert service.get(saved["links"]["self"], headers={"X-API-Key": ""}).status_code == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"query": "colour=red"}, "query.colour"),
        ({"query": "modality=PET"}, "query.modality"),
        ({"query": "sort=caption"}, "query.sort"),
        ({"query": "sample=0"}, "query.sample"),
        ({"query": "seed=1"}, "query.seed"),
        ({"query": "q=a&q=b"}, "query.q"),
        ({"query": "limit=3"}, "query.limit"),
        ({"name": " "}, "name"),
        ({"of": "models"}, "of"),
        ({"filter": "modality=CT"}, "filter"),
    ],
)
def test_what_cannot_be_selected_is_not_saved(service: httpx.Client, body: Document, named: str) -> None:
    answer = service.post("/views", json={"name": "x", **body})
    is_problem(answer, 422)
    assert [each["parameter"] for each in answer.json()["errors"]] == [named]
    assert service.get("/views").json()["total"] == 0


def test_a_view_says_that_the_dataset_changed(service: httpx.Client, views_database: Database[Document]) -> None:
    saved = _save(service)
    unusable = _save(service, "Plane", query="plane=Axial")
    newest = views_database[SEED_RUNS].find_one(sort=[("sequence", -1)])
    assert newest is not None
    values = {**newest["values"], "Image_Descriptions": [{"field": "plane", "values": ["Coronal"]}]}
    del newest["_id"]
    changed = {"sequence": newest["sequence"] + 1, "dataset_version": "0" * 16, "values": values}
    run = views_database[SEED_RUNS].insert_one({**newest, **changed})
    address = saved["links"]["self"]
    try:
        opened = wait_for(service, address, lambda answer: answer.json()["dataset_changed"], seconds=10).json()
        assert opened["current_dataset_version"] == "0" * 16
        assert opened["dataset_version"] == saved["dataset_version"] != "0" * 16
        assert str(saved["total"]) in opened["note"]
        broken = service.get(unusable["links"]["self"]).json()
        assert broken["current_total"] is None
        assert "cannot be used" in broken["note"]
        file = service.get(saved["links"]["csv"])
        assert file.headers["x-view-dataset-version"] == saved["dataset_version"]
        assert file.headers["x-dataset-version"] == "0" * 16
    finally:
        views_database[SEED_RUNS].delete_one({"_id": run.inserted_id})
    wait_for(service, address, lambda answer: not answer.json()["dataset_changed"], seconds=10)


def test_data_tools_read_a_view_by_its_address(service: httpx.Client, tmp_path: Path) -> None:
    saved = _save(service, query="modality=MR&split=test&sort=-image")
    address = str(service.base_url).rstrip("/")
    expected = [item["image"] for item in service.get(f"{saved['links']['items']}&limit=100").json()["items"]]
    assert expected == sorted(expected, reverse=True)
    assert pl.scan_parquet(address + saved["links"]["parquet"]).collect()["image"].to_list() == expected
    records = pl.read_parquet(address + saved["links"]["parquet"].replace("images.", "records."))
    assert records["image"].to_list() == expected
    assert "case.history" in records.columns
    loaded = datasets.load_dataset(
        "imagefolder", data_files={"test": address + saved["links"]["zip"]}, cache_dir=str(tmp_path), split="test"
    )
    assert sorted(loaded["image_id"]) == sorted(expected)
    is_problem(service.get(saved["links"]["csv"].replace("images", "cases")), 422)


def test_the_collection_refuses_what_is_no_view(service: httpx.Client, views_database: Database[Document]) -> None:
    _save(service)
    with pytest.raises(WriteError, match="failed validation"):
        views_database[VIEWS].update_one({}, {"$set": {"of": "models"}})
