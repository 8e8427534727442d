"""Turns query parameters into a MongoDB query. No operator and no path ever comes from the client."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.data import regex_filter
from app.data.fields import Field

Document = dict[str, Any]

MAX_CONDITIONS: Final = 20
MAX_VALUE_CHARS: Final = 500
MAX_REGEX_CHARS: Final = 200
OPERATORS: Final = ("contains", "in", "gte", "lte", "isnull", "regex")
_OPERATORS_OF: Final = {
    "keyword": ("contains", "in", "gte", "lte", "isnull", "regex"),
    "text": ("contains", "in", "isnull", "regex"),
    "integer": ("in", "gte", "lte", "isnull"),
    "list": ("contains", "in", "isnull", "regex"),
}


@dataclass(frozen=True, slots=True)
class ParameterProblem:
    """One query parameter that cannot be used."""

    parameter: str
    message: str


class ParameterError(ValueError):
    """Query parameters cannot be used; ``problems`` names each."""

    def __init__(self, problems: Iterable[ParameterProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{problem.parameter}: {problem.message}" for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Filter:
    """A checked filter.

    Attributes:
        query: what MongoDB is asked, once ``Repository.resolve`` has replaced its regular expressions.
        canonical: the same filter in one spelling, for a cursor to remember.
        scans: whether an operator needs to look at every document (contains, regex).
    """

    query: Document
    canonical: str
    scans: bool

    @property
    def is_empty(self) -> bool:
        """Whether every document passes."""
        return not self.query


def operators_of(field: Field) -> tuple[str, ...]:
    """The operators that a field takes beside the exact match."""
    return _OPERATORS_OF[field.kind]


def parse_filter(
    parameters: Iterable[tuple[str, str]], catalogue: Mapping[str, Field], aliases: Mapping[str, str]
) -> Filter:
    """Check query parameters and build the filter; conditions are combined with AND.

    Args:
        parameters: name and value pairs as they came, without the reserved names (limit, sort, ...).
        catalogue: the fields that can be asked.
        aliases: other names of fields.

    Raises:
        ParameterError: unknown field or operator, wrong value, too many conditions.
    """
    problems: list[ParameterProblem] = []
    conditions: list[Document] = []
    canonical: list[str] = []
    scans = False
    grouped: dict[tuple[str, str], list[str]] = {}
    for parameter, value in parameters:
        name, _, operator = parameter.partition("__")
        grouped.setdefault((aliases.get(name, name), operator), []).append(value)
    if sum(map(len, grouped.values())) > MAX_CONDITIONS:
        problems.append(ParameterProblem("", f"more than {MAX_CONDITIONS} conditions"))
    for (name, operator), values in sorted(grouped.items()):
        parameter = f"{name}__{operator}" if operator else name
        try:
            field = _field(name, catalogue, aliases)
            conditions.append(_condition(field, operator, values))
        except ValueError as error:
            problems.append(ParameterProblem(parameter, str(error)))
        scans = scans or operator in ("contains", "regex")
        canonical.append(f"{parameter}={sorted(values)!r}")
    if problems:
        raise ParameterError(problems)
    query: Document = {} if not conditions else conditions[0] if len(conditions) == 1 else {"$and": conditions}
    return Filter(query, "&".join(canonical), scans)


def _field(name: str, catalogue: Mapping[str, Field], aliases: Mapping[str, str]) -> Field:
    if name in catalogue:
        return catalogue[name]
    close = difflib.get_close_matches(name, [*catalogue, *aliases], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"there is no field of this name.{hint} Fields: {', '.join(catalogue)}")


def _condition(field: Field, operator: str, values: list[str]) -> Document:
    if operator and operator not in operators_of(field):
        known = ", ".join(f"{field.name}__{known}" for known in operators_of(field))
        raise ValueError(f"unknown operator {operator!r}. This field takes {field.name} (exact), {known}")
    for value in values:
        if len(value) > MAX_VALUE_CHARS:
            raise ValueError(f"longer than {MAX_VALUE_CHARS} characters")
        if "\0" in value:
            raise ValueError("holds a NUL character")
    if operator == "in":
        return {"$or": [_exact(field, item) for value in values for item in _items(field, value)]}
    if len(values) > 1:
        raise ValueError(f"given {len(values)} times; for one of several values use {field.name}__in")
    return _BUILDERS[operator](field, values[0])


def _items(field: Field, value: str) -> list[str]:
    """Several values of one parameter: separated by a bar, or by a comma where no value holds one."""
    separator = "|" if "|" in value or not (field.values or field.kind == "integer") else ","
    items = [item.strip() for item in value.split(separator)]
    if not any(items):
        raise ValueError("names no value; separate values with |, or repeat the parameter")
    return [item for item in items if item]


def _exact(field: Field, value: str) -> Document:
    converted = _convert(field, value)
    if converted in field.recorded_as_null:
        return dict(field.recorded_as_null[converted])
    return {field.path: converted}


def _convert(field: Field, value: str) -> str | int:
    if field.kind == "integer":
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"expected an integer, got {value!r}") from None
        if abs(number) > 2**31:
            raise ValueError(f"{value} is out of range")
        return number
    if field.values and value not in field.recorded_as_null:
        for known in field.values:
            if known.casefold() == value.casefold():
                return known
        expected = ", ".join(map(str, (*field.values, *field.recorded_as_null)))
        raise ValueError(f"expected one of {expected}; got {value!r}")
    return value


def _contains(field: Field, value: str) -> Document:
    if not value:
        raise ValueError("is empty")
    return {field.path: {"$regex": re.escape(value), "$options": "i"}}


def _regex(field: Field, value: str) -> Document:
    if not value or len(value) > MAX_REGEX_CHARS:
        raise ValueError(f"expected a regular expression of 1 to {MAX_REGEX_CHARS} characters")
    return regex_filter.condition(field.path, value)


def _is_null(field: Field, value: str) -> Document:
    wanted = {"true": True, "1": True, "false": False, "0": False}.get(value.casefold())
    if wanted is None:
        raise ValueError(f"expected true or false, got {value!r}")
    # An empty list is how a list field says that there is nothing.
    empty: list[Any] = [None, []] if field.kind == "list" else [None]
    return {field.path: {"$in" if wanted else "$nin": empty}}


_BUILDERS: Final[Mapping[str, Callable[[Field, str], Document]]] = {
    "": _exact,
    "contains": _contains,
    "regex": _regex,
    "isnull": _is_null,
    "gte": lambda field, value: {field.path: {"$gte": _convert(field, value)}},
    "lte": lambda field, value: {field.path: {"$lte": _convert(field, value)}},
}
