"""A record is declared once: what is derived from the declaration agrees with it and with itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database
from pymongo.errors import WriteError

from app.data import schema
from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS, VIEW_FIELDS
from app.data.record import CASE_ID
from tests.conftest import REPOSITORY

Document = dict[str, Any]


@pytest.mark.parametrize(
    ("collection", "catalogue"),
    [
        (schema.CASES, CASE_FIELDS),
        (schema.IMAGES, IMAGE_FIELDS),
        (schema.ANNOTATIONS, ANNOTATION_FIELDS),
        (schema.VIEWS, VIEW_FIELDS),
    ],
)
def test_the_validator_knows_every_declared_field(collection: str, catalogue: Any) -> None:
    root = schema.validator(collection)["$jsonSchema"]
    for field in catalogue.values():
        target = root
        for key in field.path.split("."):
            assert key in target["required"], field.path
            target = target["properties"][key]
        if field.values:
            assert set(target.get("items", target)["enum"]) - {None} == set(field.values)


@pytest.mark.parametrize(
    ("collection", "path", "value"),
    [
        (schema.CASES, "norm.sex", "unknown"),
        (schema.CASES, "norm.new_field", "x"),
        (schema.CASES, "norm.topic.title", 3),
        (schema.CASES, "Case.Title", ""),
        (schema.CASES, "TAC", ["MPX1007_synpic46719", "MPX1007_synpic46719"]),
        (schema.IMAGES, "norm.modality", "PET"),
        (schema.IMAGES, "file.sha256", "0" * 63),
        (schema.IMAGES, "U_id", "MPX123"),
        (schema.IMAGES, "Description.Age", None),
    ],
)
def test_the_server_refuses_what_is_not_declared(
    generated_database: Database[Document], collection: str, path: str, value: object
) -> None:
    with pytest.raises(WriteError, match="failed validation"):
        generated_database[collection].update_one({}, {"$set": {path: value}})


def test_the_openapi_schemas_have_the_declared_fields(api: httpx.Client) -> None:
    schemas = api.get("/openapi.json").json()["components"]["schemas"]
    for name, catalogue in (
        ("CaseSummary", CASE_FIELDS),
        ("ImageView", IMAGE_FIELDS),
        ("Annotation", ANNOTATION_FIELDS),
    ):
        properties = schemas[name]["properties"]
        assert set(properties) - {"links"} == {field.partition(".")[0] for field in catalogue}
        described = {each: properties[each].get("description", "") for each in catalogue if "." not in each}
        assert described == {each: catalogue[each].about for each in described}


def _python_and_json() -> Iterator[Path]:
    # The pages run in a browser: what they take for an id has its own pattern there.
    pages = REPOSITORY / "app" / "web"
    for folder in ("app", "ml", "mongo-init"):
        for suffix in ("*.py", "*.json", "*.js"):
            yield from (path for path in (REPOSITORY / folder).rglob(suffix) if pages not in path.parents)


def test_the_pattern_of_a_case_id_stands_in_one_place() -> None:
    holding = [
        path for path in _python_and_json() if re.search(r"MPX(\\{1,2}d|\[0-9)", path.read_text("utf-8"), re.IGNORECASE)
    ]
    assert [path.name for path in holding] == ["record.py"]
    assert re.fullmatch(CASE_ID, "MPX1007")
