"""MongoDB ``$jsonSchema`` validators from the record models.

MongoDB takes JSON Schema of draft 4 with ``bsonType``, without references, and integers as int or long.
"""

from typing import Any, Final

from pydantic import BaseModel

from app.data.record import Case, Image, ImageFile, Sha256, SourceCase, SourceImage, Split, Subsplit

Document = dict[str, Any]

_TYPES: Final = {
    "string": ["string"],
    "integer": ["int", "long"],
    "number": ["double", "int", "long"],
    "boolean": ["bool"],
    "array": ["array"],
    "object": ["object"],
}
_KEPT: Final = ("pattern", "minLength", "maxLength", "uniqueItems")


class _StoredImage(SourceImage):
    split: Split
    subsplit: Subsplit | None
    file: ImageFile
    content_hash: Sha256


class _StoredCase(SourceCase):
    split: Split
    subsplit: Subsplit | None
    content_hash: Sha256


def image_validator() -> Document:
    """The validator of the images: the source record, the normalised values and the file."""
    return _of_record(_StoredImage, Image, "image")


def case_validator() -> Document:
    """The validator of the cases: the source record and the normalised values."""
    return _of_record(_StoredCase, Case, "U_id")


def own_validator(model: type[BaseModel]) -> Document:
    """The validator of what users add, whose id is stored as ``_id`` and case as ``U_id``.

    Args:
        model: the record of an annotation or a view.
    """
    schema = _converted(model.model_json_schema(), {})
    stored = {"id": "_id", "u_id": "U_id"}
    schema["properties"] = {stored.get(name, name): each for name, each in schema["properties"].items()}
    schema["required"] = list(schema["properties"])
    return {"$jsonSchema": schema}


def _of_record(source: type[BaseModel], public: type[BaseModel], key: str) -> Document:
    raw = source.model_json_schema(by_alias=True)
    schema = _converted(raw, raw.get("$defs", {}))
    answer = {"bsonType": "object", "additionalProperties": {"bsonType": ["binData", "string"]}}
    schema["properties"] |= {"_id": schema["properties"][key], "norm": _norm(public), "answer": answer}
    schema["required"] = list(schema["properties"])
    return {"$jsonSchema": schema, "$expr": {"$eq": ["$_id", f"${key}"]}}


def _norm(public: type[BaseModel]) -> Document:
    """The ``norm`` sub-document: the fields that are stored nowhere else."""
    raw = public.model_json_schema()
    converted = _converted(raw, raw.get("$defs", {}))
    elsewhere = {
        name for name, info in public.model_fields.items() if any(getattr(each, "path", "") for each in info.metadata)
    }
    properties = {name: each for name, each in converted["properties"].items() if name not in elsewhere}
    return {**converted, "properties": properties, "required": list(properties)}


def _converted(schema: Document, definitions: Document) -> Document:
    """A JSON Schema of pydantic as MongoDB takes it."""
    if "$ref" in schema:
        return _converted(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return _nullable(schema["anyOf"], definitions)
    if "enum" in schema:
        return {"enum": list(schema["enum"])}
    types = _TYPES[schema["type"]]
    converted: Document = {"bsonType": types if len(types) > 1 else types[0]}
    converted |= {name: schema[name] for name in _KEPT if name in schema}
    if "items" in schema:
        converted["items"] = _converted(schema["items"], definitions)
    if "properties" in schema:
        converted["properties"] = {name: _converted(each, definitions) for name, each in schema["properties"].items()}
        converted["required"] = list(converted["properties"])
        converted["additionalProperties"] = False
    return converted


def _nullable(alternatives: list[Document], definitions: Document) -> Document:
    [present] = [each for each in alternatives if each != {"type": "null"}]
    converted = _converted(present, definitions)
    if "enum" in converted:
        return {"enum": [*converted["enum"], None]}
    types = converted["bsonType"]
    return {**converted, "bsonType": [*(types if isinstance(types, list) else [types]), "null"]}
