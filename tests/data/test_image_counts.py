"""Counts that were kept are those of the images themselves."""

import asyncio
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.database import Database

from app.data import schema
from app.data.facets import facets
from app.data.fields import IMAGE_ALIASES, IMAGE_FIELDS
from app.data.filters import Filter, parse_filter
from app.data.image_counts import covers, write_image_counts

Document = dict[str, Any]


def _filter(**parameters: str) -> Filter:
    return parse_filter(list(parameters.items()), IMAGE_FIELDS, IMAGE_ALIASES)


def _facets(server: str, name: str, selection: Filter, counted: str | None) -> Document:
    async def ask() -> Document:
        async with AsyncMongoClient[Document](server) as client:
            return await facets(client[name], selection, counted)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"modality": "CT"},
        {"sex__isnull": "true"},
        {"age__gte": "40", "age__lte": "69", "split": "train"},
        {"location_category__in": "Head,Thorax", "modality__ne": "MR"},
        {"plane__isnull": "true", "sex": "male"},
        {"age": "999"},
    ],
)
def test_kept_counts_are_those_of_the_images(
    mongo_server: str, generated_database: Database[Document], parameters: dict[str, str]
) -> None:
    run = generated_database[schema.SEED_RUNS].find_one({"state": "complete"}, sort=schema.LATEST_RUN_FIRST)
    assert run is not None
    assert run["facets_counted"] is True
    selection = _filter(**parameters)
    assert covers(selection.query)
    name = generated_database.name
    assert _facets(mongo_server, name, selection, str(run["_id"])) == _facets(mongo_server, name, selection, None)


def test_other_filters_read_the_images(mongo_server: str, generated_database: Database[Document]) -> None:
    selection = _filter(caption__contains="a", modality="CT")
    assert not covers(selection.query)
    name = generated_database.name
    assert _facets(mongo_server, name, selection, "no such run") == _facets(mongo_server, name, selection, None)


def test_counts_of_an_earlier_run_are_removed(database: Database[Document], mongo_server: str) -> None:
    image = {"norm": {"modality": "CT", "sex": None, "age": 40}, "split": "train"}
    # The collection's validator is that of whole records; here only the facets matter.
    database[schema.IMAGES].insert_many([{"_id": str(n), "U_id": f"MPX{n % 2}", **image} for n in range(5)])
    assert write_image_counts(database, "first") == 2  # one case of three images, and one of two
    database[schema.IMAGES].delete_one({"_id": "4"})
    assert write_image_counts(database, "second") == 1  # two equal cases
    assert database[schema.IMAGE_COUNTS].distinct("run") == ["second"]
    assert write_image_counts(database, "third", before="second") == 1
    assert database[schema.IMAGE_COUNTS].distinct("run") == ["second", "third"]
    kept = _facets(mongo_server, database.name, _filter(), "second")
    assert (kept["total"], kept["cases"]) == (4, 2)
    assert kept == _facets(mongo_server, database.name, _filter(), None)
