"""The filters of a route as OpenAPI declares them: one parameter per field and operator, from the field catalogue."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi.routing import APIRoute

from app.data.fields import Field
from app.data.filters import operators_of

Document = dict[str, Any]

_MARK: Final = "x-takes-filters"
_ABOUT: Final = {
    "": "{about}",
    "ne": "Not this value of {name}; unknown values pass",
    "in": "One of several values of {name}, separated by |, or by commas where no value holds one",
    "nin": "None of several values of {name}; unknown values pass",
    "all": "Each of several values of {name}",
    "contains": "Part of {name}, in any letter case",
    "startswith": "Start of {name}, in any letter case",
    "regex": "Regular expression that {name} matches, in any letter case",
    "gte": "At least this {name}",
    "lte": "At most this {name}",
    "isnull": "Whether {name} is unknown",
}
_PLAIN: Final = frozenset({"", "ne", "gte", "lte"})


def filters(catalogue: Mapping[str, Field]) -> Document:
    """The ``openapi_extra`` of a route that filters by these fields."""
    parameters = [_parameter(field, each) for field in catalogue.values() for each in ("", *operators_of(field))]
    return {_MARK: True, "parameters": parameters}


def takes_filters(route: APIRoute) -> bool:
    """Whether a route takes filters."""
    return bool((route.openapi_extra or {}).get(_MARK))


def _parameter(field: Field, operator: str) -> Document:
    schema = _schema(field, operator)
    if operator in ("in", "nin", "all"):
        examples = field.values[:2] or tuple(map(str, field.examples[:1]))
        if examples:
            schema["examples"] = ["|".join(examples)]
    elif operator in _PLAIN and field.examples and not isinstance(field.examples[0], list):
        schema["examples"] = list(field.examples[:1])
    return {
        "name": f"{field.name}__{operator}" if operator else field.name,
        "in": "query",
        "required": False,
        "description": _ABOUT[operator].format(name=field.name, about=field.about),
        "schema": schema,
    }


def _schema(field: Field, operator: str) -> Document:
    if operator == "isnull":
        return {"type": "boolean"}
    if operator in _PLAIN and field.kind == "integer":
        return {"type": "integer"}
    if operator in ("", "ne") and field.values:
        return {"type": "string", "enum": [*field.values, *map(str, field.recorded_as_null)]}
    return {"type": "string"}
