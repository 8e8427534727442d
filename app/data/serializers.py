"""Stored documents as the API answers them, and the answers that seeding stores beside each record.

A stored answer is JSON text, ready to send: reading a case needs no join and no serialisation, and it can
never be of another seeding than its record, because both are one document.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS, public_view

Document = dict[str, Any]

# Where a stored document has its answer: `summary` without, `whole` with the images of a case, `etag` of the latter.
ANSWER: Final = "answer"


def image_view(document: Mapping[str, Any]) -> Document:
    """An image, with its addresses."""
    image, u_id = document["_id"], document["U_id"]
    links = {
        "self": f"/images/{image}",
        "case": f"/cases/{u_id}",
        "file": f"/images/{image}/file",
        "thumbnail": f"/images/{image}/thumbnail",
    }
    return {**public_view(document, IMAGE_FIELDS), "links": links}


def case_view(document: Mapping[str, Any]) -> Document:
    """A case without its images, with its addresses."""
    u_id = document["_id"]
    links = {"self": f"/cases/{u_id}", "images": f"/images?u_id={u_id}"}
    return {**public_view(document, CASE_FIELDS), "links": links}


def annotation_view(document: Mapping[str, Any]) -> Document:
    """An annotation."""
    return public_view({"action": "create", "amends": None, **document}, ANNOTATION_FIELDS)


def encode(content: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def with_member(summary: bytes, name: str, value: bytes) -> bytes:
    """A JSON object with one more member at its end."""
    return b'%s,"%s":%s}' % (summary[:-1], name.encode(), value)


def etag_of(body: bytes) -> str:
    """The strong entity tag of a body."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def image_answer(document: Mapping[str, Any]) -> Document:
    """The stored answer of an image."""
    return {"summary": encode(image_view(document))}


def case_answer(document: Mapping[str, Any], images: Sequence[bytes]) -> Document:
    """The stored answer of a case.

    Args:
        document: the case.
        images: the summaries of its images, by id.
    """
    summary = encode(case_view(document))
    whole = with_member(summary, "images", b"[" + b",".join(images) + b"]")
    return {"summary": summary, "whole": whole, "etag": etag_of(whole)}
