"""Stored documents as the API answers them."""

from collections.abc import Mapping
from typing import Any

from app.data.fields import ANNOTATION_FIELDS, CASE_FIELDS, IMAGE_FIELDS, public_view

Document = dict[str, Any]


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
    return public_view(document, ANNOTATION_FIELDS)
