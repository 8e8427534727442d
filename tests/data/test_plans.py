"""Every query that the service asks is answered through an index: MongoDB's own explain() says so."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pymongo.database import Database

from app.data import schema
from app.data.fields import CASE_ALIASES, CASE_FIELDS, IMAGE_ALIASES, IMAGE_FIELDS
from app.data.filters import parse_filter
from app.data.pagination import decode_cursor, encode_cursor, parse_sort

Document = dict[str, Any]

IMAGE_QUERIES = [
    "u_id=MPX1008",
    "split=train",
    "split=train&modality=CT",
    "split=train&modality=CT&location_category=Head",
    "modality=CT",
    "modality__in=CT,MR",
    "location=Spine",
    "location_category=Head",
    "sex=male",
    "sex__isnull=true",
    "age=30",
    "age__gte=20&age__lte=40",
    "age__isnull=true",
    "plane=Axial",
    "quality_flags=sex_unknown",
    f"sha256={'0' * 64}",
    "image=MPX1008_synpic20010",
]
CASE_QUERIES = [
    "split=dev",
    "modality=CT",
    "location=Spine",
    "location_category=Head",
    "sex=female",
    "age__gte=60",
    "topic.category=Trauma",
    "quality_flags=age_zero",
    "u_id=MPX1008",
]


def _stages(plan: object) -> Iterator[str]:
    if isinstance(plan, Mapping):
        if isinstance(plan.get("stage"), str):
            yield plan["stage"]
        for value in plan.values():
            yield from _stages(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from _stages(value)


def _explain(database: Database[Document], command: Document, verbosity: str = "queryPlanner") -> Document:
    explained: Document = database.command({"explain": command, "verbosity": verbosity})
    return explained


def _winning(database: Database[Document], command: Document) -> set[str]:
    stages = set(_stages(_explain(database, command)["queryPlanner"]["winningPlan"]))
    assert stages
    return stages


def _pairs(query: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (part.partition("=") for part in query.split("&"))]


@pytest.mark.parametrize("query", IMAGE_QUERIES)
def test_filters_of_images_use_an_index(generated_database: Database[Document], query: str) -> None:
    selection = parse_filter(_pairs(query), IMAGE_FIELDS, IMAGE_ALIASES)
    # Without an order: the index of the ids would answer any filter in their order.
    assert "COLLSCAN" not in _winning(generated_database, {"find": schema.IMAGES, "filter": selection.query})


@pytest.mark.parametrize("query", CASE_QUERIES)
def test_filters_of_cases_use_an_index(generated_database: Database[Document], query: str) -> None:
    selection = parse_filter(_pairs(query), CASE_FIELDS, CASE_ALIASES)
    assert "COLLSCAN" not in _winning(generated_database, {"find": schema.CASES, "filter": selection.query})


@pytest.mark.parametrize("sort", ["", "-image", "age", "-age", "sex", "location"])
def test_a_later_page_starts_at_its_place(generated_database: Database[Document], sort: str) -> None:
    order = parse_sort(sort, IMAGE_FIELDS)
    last = generated_database[schema.IMAGES].find().sort(order.mongo).skip(20).next()
    after = decode_cursor(encode_cursor(last, order, ""), order, "")
    command = {"find": schema.IMAGES, "filter": after, "sort": dict(order.mongo), "limit": 21}
    stages = _winning(generated_database, command)
    assert "COLLSCAN" not in stages
    if sort in ("", "-image"):
        assert "SORT" not in stages


def test_an_index_of_an_earlier_version_is_dropped_and_one_of_the_user_stays(database: Database[Document]) -> None:
    database[schema.CASES].create_index([("norm.title", "text")], name="text")
    database[schema.CASES].create_index("norm.title", name="mine")
    schema.ensure_schema(database)
    assert {name for name in database[schema.CASES].index_information() if name in ("text", "mine", "split")} == {
        "mine",
        "split",
    }


@pytest.mark.parametrize("collection", [schema.CASES, schema.IMAGES])
def test_looking_up_one_document_reads_one(generated_database: Database[Document], collection: str) -> None:
    key = generated_database[collection].find_one({}, {"_id": 1})
    assert key is not None
    explained = _explain(generated_database, {"find": collection, "filter": key, "limit": 1}, "executionStats")
    assert set(_stages(explained["queryPlanner"]["winningPlan"])) & {"IDHACK", "EXPRESS_IXSCAN"}
    assert explained["executionStats"]["totalDocsExamined"] == 1


def test_the_view_joins_through_the_id_of_the_case(generated_database: Database[Document]) -> None:
    pipeline = [{"$match": {"split": "test"}}]
    command = {"aggregate": schema.IMAGE_REPORTS, "pipeline": pipeline, "cursor": {}}
    explained = _explain(generated_database, command, "executionStats")
    text = json.dumps(explained, default=str)
    assert "COLLSCAN" not in text
    expected = generated_database[schema.IMAGES].count_documents({"split": "test"})
    # A later MongoDB may do the join inside of the query, and calls it so.
    joins = [stage for stage in explained.get("stages", []) if "$lookup" in stage]
    assert joins or "IndexedLoopJoin" in text
    for join in joins:
        assert (join["collectionScans"], join["indexesUsed"]) == (0, ["_id_"])
        assert join["totalDocsExamined"] <= expected
    joined = list(generated_database[schema.IMAGE_REPORTS].aggregate(pipeline))
    assert len(joined) == expected
    assert all(row["Case"]["Title"] and row["Topic"]["Title"] for row in joined)
