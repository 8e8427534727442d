"""`fields=`: which public fields an answer holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query

from app.core.exceptions import ProblemItem
from app.data.fields import CASE_FIELDS, IMAGE_FIELDS, Field
from app.data.filters import ParameterError

Document = dict[str, Any]

FieldsText = Annotated[
    str | None,
    Query(alias="fields", description="Fields to answer, separated by commas; default: all", examples=["u_id,title"]),
]


@dataclass(frozen=True, slots=True)
class Projection:
    """The fields that were asked for; None stands for all."""

    names: tuple[str, ...] | None

    def apply(self, view: Mapping[str, Any]) -> Document:
        """The part of an answer that was asked for; a parent stands for all below it."""
        if self.names is None:
            return dict(view)
        chosen: Document = {}
        for name in self.names:
            _copy(view, chosen, name.split("."))
        return chosen


def _copy(source: Mapping[str, Any], target: Document, path: list[str]) -> None:
    for key in path[:-1]:
        source, target = source[key], target.setdefault(key, {})
    target[path[-1]] = source[path[-1]]


def parse_fields(text: str | None, catalogue: Mapping[str, Field], identifier: str) -> Projection:
    """Read a list such as ``title,topic.category``; the id is always answered.

    Raises:
        ParameterError: a name is not a field; the message lists those that are.
    """
    if text is None:
        return Projection(None)
    allowed = dict.fromkeys([*catalogue, *(name.partition(".")[0] for name in catalogue if "." in name), "links"])
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        problem = f"{unknown[0][:60]!r} is not a field" if unknown else "names no field"
        raise ParameterError([ProblemItem("fields", f"{problem}. Fields: {', '.join(allowed)}")])
    whole = {name for name in names if "." not in name}
    kept = [name for name in names if name in whole or name.partition(".")[0] not in whole]
    return Projection(tuple(dict.fromkeys([identifier, *kept])))


async def case_projection(fields: FieldsText = None) -> Projection:
    """The asked fields of cases."""
    return parse_fields(fields, CASE_FIELDS, "u_id")


async def image_projection(fields: FieldsText = None) -> Projection:
    """The asked fields of images."""
    return parse_fields(fields, IMAGE_FIELDS, "image")


CaseProjectionDep = Annotated[Projection, Depends(case_projection)]
ImageProjectionDep = Annotated[Projection, Depends(image_projection)]
