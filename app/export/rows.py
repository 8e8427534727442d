"""What one exported row holds, and in which columns."""

from collections.abc import Mapping
from typing import Any, Final

from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS, Field, pick

Document = dict[str, Any]
Row = dict[str, Any]

_IMAGE_KEYS: Final = ("Type", "U_id", "image", "Description", "Location", "Location Category")
_CASE_KEYS: Final = ("U_id", "TAC", "MRI", "Case", "Topic")
# Joined records: the image's columns as they are, those of its case after this prefix.
CASE_PREFIX: Final = "case."


def source_record(document: Mapping[str, Any]) -> Document:
    """A stored document as the dataset's own JSONL files have it."""
    keys = _IMAGE_KEYS if "image" in document else _CASE_KEYS
    return {key: document[key] for key in keys}


def columns(of: str) -> dict[str, Field]:
    """Column name to field, for images, cases, annotations or records (images joined with their cases)."""
    if of == "annotations":
        return dict(ANNOTATION_FIELDS)
    if of == "cases":
        return dict(CASE_FIELDS)
    if of == "images":
        return dict(IMAGE_FIELDS)
    shared = set(IMAGE_FIELDS)
    own = {CASE_PREFIX + name: field for name, field in CASE_FIELDS.items() if name not in shared}
    return {**IMAGE_FIELDS, **own}


def flat_row(document: Mapping[str, Any], case: Mapping[str, Any] | None, of: str) -> Row:
    """One row of a table: every column, in order.

    Args:
        document: the stored image or case.
        case: for joined records, the stored case of the image.
        of: images, cases, annotations or records.
    """
    row: Row = {}
    for name, field in columns(of).items():
        source = case if name.startswith(CASE_PREFIX) and case is not None else document
        row[name] = pick(source, field.path)
    return row
