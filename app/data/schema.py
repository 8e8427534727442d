"""Names of the database and its collections; creates collections, validators, indexes and the view.

collections.json has the names, indexes and view, and the validators of what is no record of the dataset; the init
scripts of the mongo image read it too. The validators of the records come from their models.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from pymongo import IndexModel, WriteConcern
from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.core.exceptions import UserError
from app.data import bson_schema
from app.data.client import UNAUTHORIZED
from app.data.record import Annotation, SavedView

Document = dict[str, Any]

DATABASE: Final = "medpix"
IMAGES: Final = "Image_Descriptions"
CASES: Final = "Clinical_reports"
IMAGE_REPORTS: Final = "Image_Reports"
MODELS: Final = "Models"
TRAINING_RUNS: Final = "Training_runs"
# The key under which an evaluation reports its progress there, beside those of the models in training.
EVALUATION_RUN: Final = "evaluation"
# The key there of which models a start trains, and why.
TRAINING_CHOICE: Final = "choice"
ANNOTATIONS: Final = "Annotations"
# Of the images by all their facets; see app.data.image_counts.
IMAGE_COUNTS: Final = "Image_counts"
VIEWS: Final = "Saved_views"
SEED_RUNS: Final = "Seed_runs"
# By sequence, as a clock may have run ahead; runs of versions that had none come last.
LATEST_RUN_FIRST: Final = (("sequence", -1), ("started_at", -1))

# What was acknowledged survives the loss of any one member.
MAJORITY: Final = WriteConcern("majority", wtimeout=5_000)
# Indexes of earlier versions, which cost every write and answer nothing.
_FORMER_INDEXES: Final = frozenset({"text"})


class SchemaError(UserError):
    """The database has other validators than this version and its user may not change them."""


@dataclass(frozen=True, slots=True)
class _Definitions:
    collections: tuple[Document, ...]
    views: tuple[Document, ...]


@cache
def _definitions() -> _Definitions:
    text = (Path(__file__).parent / "collections.json").read_text(encoding="utf-8")
    parsed = json.loads(text)
    derived = {
        IMAGES: bson_schema.image_validator(),
        CASES: bson_schema.case_validator(),
        ANNOTATIONS: bson_schema.own_validator(Annotation),
        VIEWS: bson_schema.own_validator(SavedView),
    }
    collections = ({"validator": derived.get(each["name"]), **each} for each in parsed["collections"])
    return _Definitions(tuple(collections), tuple(parsed["views"]))


def now() -> str:
    """The time as it is stored with annotations and views: text, so that it sorts, filters and pages as any other."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def validator(collection: str) -> Document:
    """The validator of a collection, as MongoDB takes it.

    Raises:
        KeyError: there is no such collection.
    """
    for definition in _definitions().collections:
        if definition["name"] == collection:
            return dict(definition["validator"])
    raise KeyError(collection)


def index_names() -> dict[str, list[str]]:
    """The names of the indexes of each collection."""
    return {each["name"]: [index["name"] for index in each["indexes"]] for each in _definitions().collections}


def ensure_schema(database: Database[Document]) -> None:
    """Create what is missing and bring validators, indexes and the view up to date. Idempotent.

    Raises:
        SchemaError: a validator differs and the user has no right to change it.
    """
    existing = {info["name"]: info for info in database.list_collections()}
    for definition in _definitions().collections:
        name = definition["name"]
        if name not in existing:
            database.create_collection(name, validator=definition["validator"])
        elif existing[name]["options"].get("validator") != definition["validator"]:
            _change(database, name, {"validator": definition["validator"]})
        _ensure_indexes(database, definition)
    for view in _definitions().views:
        if view["name"] not in existing:
            database.create_collection(view["name"], viewOn=view["source"], pipeline=view["pipeline"])
        elif existing[view["name"]]["options"].get("pipeline") != view["pipeline"]:
            _change(database, view["name"], {"viewOn": view["source"], "pipeline": view["pipeline"]})


def _change(database: Database[Document], name: str, options: Document) -> None:
    try:
        database.command("collMod", name, **options)
    except OperationFailure as error:
        if error.code == UNAUTHORIZED:
            raise SchemaError(
                f"The definition of {name} in the database is from another version, and this user may not change "
                "it. Give the user the dbAdmin role for this one run, or start from an empty database volume."
            ) from error
        raise


def _ensure_indexes(database: Database[Document], definition: Document) -> None:
    expected = {index["name"]: _index_model(index) for index in definition["indexes"]}
    if not expected:
        return
    present = database[definition["name"]].index_information()
    for name in present.keys() & (expected.keys() | _FORMER_INDEXES):
        if name not in expected or not _same_index(present[name], expected[name]):
            database[definition["name"]].drop_index(name)
    database[definition["name"]].create_indexes(list(expected.values()))


def _index_model(index: Document) -> IndexModel:
    options = {key: value for key, value in index.items() if key not in ("name", "keys")}
    return IndexModel([(key, direction) for key, direction in index["keys"]], name=index["name"], **options)


def _same_index(present: Document, model: IndexModel) -> bool:
    return list(present["key"]) == list(model.document["key"].items())
