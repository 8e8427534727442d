"""What one exported row holds, and in which columns."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS, Field, pick

Document = dict[str, Any]
Row = dict[str, Any]

_IMAGE_KEYS: Final = ("Type", "U_id", "image", "Description", "Location", "Location Category")
_CASE_KEYS: Final = ("U_id", "TAC", "MRI", "Case", "Topic")
# Joined records: the columns of an image as they are, the others of its case after this prefix.
CASE_PREFIX: Final = "case."
# What every row of an image says of its case.
IMAGE_CASE_COLUMNS: Final = ("title", "diagnosis")


def source_record(document: Mapping[str, Any]) -> Document:
    """A stored document as the dataset's own JSONL files have it."""
    keys = _IMAGE_KEYS if "image" in document else _CASE_KEYS
    return {key: document[key] for key in keys}


@cache
def columns(of: str) -> Mapping[str, Field]:
    """Column name to field, for images, cases, annotations or records (images joined with their cases).

    Images have title and diagnosis of their case too.
    """
    return MappingProxyType({name: field for name, (field, _) in _sources(of).items()})


@cache
def _sources(of: str) -> Mapping[str, tuple[Field, bool]]:
    """Column name to field, and whether it is one of the image's case."""
    own = {"annotations": ANNOTATION_FIELDS, "cases": CASE_FIELDS}.get(of, IMAGE_FIELDS)
    sources = {name: (field, False) for name, field in own.items()}
    if of in ("images", "records"):
        sources |= {name: (CASE_FIELDS[name], True) for name in IMAGE_CASE_COLUMNS}
    if of == "records":
        sources |= {CASE_PREFIX + name: (field, True) for name, field in CASE_FIELDS.items() if name not in sources}
    return sources


def flat_row(document: Mapping[str, Any], case: Mapping[str, Any] | None, of: str) -> Row:
    """One row of a table: every column, in order.

    Args:
        document: the stored image, case or annotation.
        case: for images and joined records, the stored case of the image.
        of: images, cases, annotations or records.
    """
    return {
        name: pick(case if is_of_case and case is not None else document, field.path)
        for name, (field, is_of_case) in _sources(of).items()
    }
