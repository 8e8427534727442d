"""Turns query parameters into a MongoDB query. No operator and no path ever comes from the client."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from app.core.exceptions import ProblemItem
from app.data import regex_filter
from app.data.fields import Field
from app.data.typography import composed, literal_pattern

Document = dict[str, Any]
Vocabulary = Mapping[str, Sequence[str]]

MAX_CONDITIONS: Final = 20
MAX_VALUE_CHARS: Final = 500
MAX_REGEX_CHARS: Final = 200
_MAX_NAMED: Final = 80
_TEXTUAL: Final = ("ne", "in", "nin", "contains", "startswith", "isnull", "regex")
OPERATORS: Final[Mapping[str, tuple[str, ...]]] = {
    "keyword": (*_TEXTUAL, "gte", "lte"),
    "text": _TEXTUAL,
    "list": (*_TEXTUAL, "all"),
    "integer": ("ne", "in", "nin", "gte", "lte", "isnull"),
    "time": ("gte", "lte", "isnull"),
}
SORTABLE: Final = frozenset({"keyword", "integer", "time"})
_SEVERAL: Final = frozenset({"in", "nin", "all"})
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,10}")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)


class ParameterError(ValueError):
    """Query parameters cannot be used; ``problems`` names each."""

    def __init__(self, problems: Iterable[ProblemItem]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "; ".join(f"{each.parameter}: {each.message}" if each.parameter else each.message for each in self.problems)
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """A checked filter.

    Attributes:
        query: what MongoDB is asked, once ``Repository.resolve`` has replaced its regular expressions.
        canonical: the same filter in one spelling, for a cursor to remember.
    """

    query: Document
    canonical: str

    @property
    def is_empty(self) -> bool:
        """Whether every document passes."""
        return not self.query

    def narrowed(self, condition: Document, canonical: str) -> "Filter":
        """This filter and one more condition.

        Args:
            condition: as MongoDB takes it.
            canonical: the condition in one spelling.
        """
        query = {"$and": [self.query, condition]} if self.query else condition
        return Filter(query, f"{self.canonical}&{canonical}")


EVERYTHING: Final = Filter({}, "")


def operators_of(field: Field) -> tuple[str, ...]:
    """The operators that a field takes beside the exact match."""
    return OPERATORS[field.kind]


def parse_filter(
    parameters: Iterable[tuple[str, str]],
    catalogue: Mapping[str, Field],
    aliases: Mapping[str, str],
    vocabulary: Vocabulary | None = None,
) -> Filter:
    """Check query parameters and build the filter; conditions are combined with AND.

    Args:
        parameters: name and value pairs as they came, without the reserved names (limit, sort, ...).
        catalogue: the fields that can be asked.
        aliases: other names of fields.
        vocabulary: all values that occur in fields with few of them, by field name. A value of such a field
            is compared without letter case, and one that does not occur is refused.

    Raises:
        ParameterError: unknown field or operator, wrong value, too many conditions.
    """
    problems: list[ProblemItem] = []
    conditions: list[Document] = []
    canonical: list[str] = []
    grouped: dict[tuple[str, str], list[str]] = {}
    for parameter, value in parameters:
        name, _, operator = parameter.partition("__") if not parameter.endswith("__") else (parameter, "", "")
        grouped.setdefault((aliases.get(name, name), operator), []).append(composed(value))
    if sum(map(len, grouped.values())) > MAX_CONDITIONS:
        raise ParameterError([ProblemItem("", f"more than {MAX_CONDITIONS} conditions")])
    for (name, operator), values in sorted(grouped.items()):
        parameter = f"{name}__{operator}" if operator else name
        try:
            field = _field(name, catalogue, aliases)
            allowed = field.values or tuple((vocabulary or {}).get(name, ()))
            conditions.append(_condition(field, operator, values, allowed))
        except ValueError as error:
            problems.append(ProblemItem(parameter, str(error)))
        canonical.append(f"{parameter}={sorted(values)!r}")
    if problems:
        raise ParameterError(problems)
    query: Document = {} if not conditions else conditions[0] if len(conditions) == 1 else {"$and": conditions}
    return Filter(query, "&".join(canonical))


def _field(name: str, catalogue: Mapping[str, Field], aliases: Mapping[str, str]) -> Field:
    if name in catalogue:
        return catalogue[name]
    close = difflib.get_close_matches(name, [*catalogue, *aliases], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"there is no field of this name.{hint} Fields: {', '.join(catalogue)}")


def _condition(field: Field, operator: str, values: list[str], allowed: tuple[str, ...]) -> Document:
    if operator and operator not in operators_of(field):
        operators = ", ".join(f"{field.name}__{each}" for each in operators_of(field))
        raise ValueError(f"unknown operator {operator!r}. This field takes {field.name} (exact), {operators}")
    for value in values:
        if len(value) > MAX_VALUE_CHARS:
            raise ValueError(f"longer than {MAX_VALUE_CHARS} characters")
        if "\0" in value:
            raise ValueError("holds a NUL character")
    if operator in _SEVERAL:
        items = [item for value in values for item in _items(field, value, allowed, repeated=len(values) > 1)]
        each = [_exact(field, item, allowed) for item in items]
        return {{"in": "$or", "nin": "$nor", "all": "$and"}[operator]: each}
    if len(values) > 1:
        several = {"": "for one of several values", "ne": "for none of several values"}.get(operator)
        instead = f"{several} use {field.name}__{'nin' if operator else 'in'}" if several else "give it once"
        raise ValueError(f"given {len(values)} times; {instead}")
    return _BUILDERS[operator](field, values[0], allowed)


def _items(field: Field, value: str, allowed: tuple[str, ...], *, repeated: bool) -> list[str]:
    """Several values of one parameter: separated by a bar, or by a comma where every part is a possible value.

    Where the possible values are not known, a repeated parameter has one value each time.
    """
    is_open = not allowed and field.pattern is None and field.kind != "integer"
    if "|" in value or "," not in value or (repeated and is_open):
        items = [item.strip() for item in value.split("|")]
    else:
        items = _split_at_commas(field, [part.strip() for part in value.split(",")], allowed)
    if not any(items):
        raise ValueError("names no value; separate values with |, or repeat the parameter")
    return [item for item in items if item]


def _split_at_commas(field: Field, parts: list[str], allowed: tuple[str, ...]) -> list[str]:
    """Join parts again where a value holds a comma itself, as ``Chest, Pulmonary`` does.

    Raises:
        ValueError: a part is no value of the field, so it is not certain which commas separate.
    """
    if not any(parts):
        return []
    possible = _spellings(_possible(field, allowed))
    # No value has more parts than this: longer runs need not be tried.
    longest = 1 + max((value.count(",") for value in possible), default=0)
    items: list[str] = []
    start = 0
    while start < len(parts):
        for end in range(min(len(parts), start + longest), start, -1):
            item = ", ".join(parts[start:end])
            if not item or _folded(item) in possible or (end == start + 1 and _has_form(field, item)):
                items.append(item)
                start = end
                break
        else:
            raise ValueError(
                f"it is not certain which commas in {', '.join(parts)[:60]!r} separate values, as "
                f"{parts[start][:60]!r} is no value of this field. Separate values with |; "
                "end a single value that holds a comma with |"
            )
    return items


def _has_form(field: Field, item: str) -> bool:
    """Whether any text of this form, which has no comma, is a value of the field."""
    return field.kind == "integer" or (field.pattern is not None and _in_pattern(field, item) is not None)


def _possible(field: Field, allowed: tuple[str, ...]) -> tuple[str, ...]:
    return (*allowed, *map(str, field.recorded_as_null))


@lru_cache(maxsize=256)
def _spellings(possible: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Possible values by their folded form; kept, since one request may ask for thousands of values of a field."""
    spellings: dict[str, list[str]] = {}
    for value in possible:
        spellings.setdefault(_folded(value), []).append(value)
    return spellings


def _folded(text: str) -> str:
    return " ".join(text.replace(",", ", ").split()).replace(" ,", ",").casefold()


def _exact(field: Field, value: str, allowed: tuple[str, ...]) -> Document:
    if field.kind == "time":
        start, end = _interval(value)
        return {field.path: {"$gte": start, "$lt": end}}
    stored = _stored_values(field, value, allowed)
    if stored[0] in field.recorded_as_null:
        return dict(field.recorded_as_null[stored[0]])
    if field.kind == "text":
        # As in closed lists, letter case makes no difference. \z, as $ would let a line end follow.
        return {field.path: {"$regex": rf"\A{literal_pattern(value)}\z", "$options": "i"}}
    return {field.path: stored[0] if len(stored) == 1 else {"$in": stored}}


def _stored_values(field: Field, value: str, allowed: tuple[str, ...]) -> list[str | int]:
    """A value as it is stored; several where they differ in letter case alone, such as A and a.

    Raises:
        ValueError: no document can have it; the message names values that some have.
    """
    if field.kind == "integer":
        return [_integer(value)]
    if field.pattern is not None:
        formed = _in_pattern(field, value)
        if formed is None:
            example = f" such as {field.examples[0]}" if field.examples else f" of the form {field.pattern}"
            raise ValueError(f"expected a value{example}, got {value[:60]!r}")
        return [formed]
    if not allowed:
        return [value]
    possible = _possible(field, allowed)
    stored: list[str | int] = [*_spellings(possible).get(_folded(value), ())]
    if not stored:
        raise ValueError(_not_a_value(field, value, possible))
    return stored


def _not_a_value(field: Field, value: str, possible: tuple[str, ...]) -> str:
    if "," in value and all(_folded(part) in _spellings(possible) for part in value.split(",")):
        return f"{value[:60]!r} are several values; use {field.name}__in"
    close = difflib.get_close_matches(_folded(value), _spellings(possible), n=1)
    hint = f". Did you mean {_spellings(possible)[close[0]][0]}?" if close else ""
    named = ", ".join(possible[:_MAX_NAMED]) + (", ..." if len(possible) > _MAX_NAMED else "")
    return f"expected one of {named}; got {value[:60]!r}{hint}"


def _in_pattern(field: Field, value: str) -> str | None:
    """The spelling of a value that has the field's form; ids and hashes are taken in any letter case."""
    for spelling in (value, value.lower(), value.upper(), value.upper().replace("_SYNPIC", "_synpic")):
        if re.fullmatch(field.pattern or "", spelling, re.ASCII):
            return spelling
    return None


def _integer(value: str) -> int:
    if not _INTEGER.fullmatch(value):
        if value.lstrip("+-").isdecimal() and value.isascii():
            raise ValueError(f"{value[:60]} is out of range")
        raise ValueError(f"expected an integer, got {value[:60]!r}")
    number = int(value)
    if abs(number) > 2**31:
        raise ValueError(f"{value} is out of range")
    return number


def _interval(value: str) -> tuple[str, str]:
    """Start, and end exclusive, of the day or moment that a text names, as times are stored.

    Raises:
        ValueError: it is no date and no time of ISO 8601.
    """
    expected = "expected a date or time such as 2026-05-14 or 2026-05-14T09:30:00+02:00 (a + is %2B in an address)"
    if not (_DATE.fullmatch(value) or _TIME.fullmatch(value)):
        raise ValueError(f"{expected}, got {value[:60]!r}")
    try:
        start = datetime.fromisoformat(value.upper())
        start = start.replace(tzinfo=UTC) if start.tzinfo is None else start.astimezone(UTC)
        length = timedelta(days=1) if _DATE.fullmatch(value) else timedelta(milliseconds=1)
        end = min(start, datetime.max.replace(tzinfo=UTC) - length) + length  # 9999-12-31 stands for "no end"
    except (ValueError, OverflowError):
        raise ValueError(f"{expected}, got {value[:60]!r}, which is no day or time") from None
    return _stored_time(start), _stored_time(end)


def _stored_time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _contains(field: Field, value: str, _: tuple[str, ...]) -> Document:
    if not value:
        raise ValueError("is empty")
    return {field.path: {"$regex": literal_pattern(value), "$options": "i"}}


def _starts_with(field: Field, value: str, _: tuple[str, ...]) -> Document:
    if not value:
        raise ValueError("is empty")
    return {field.path: {"$regex": rf"\A{literal_pattern(value)}", "$options": "i"}}


def _regex(field: Field, value: str, _: tuple[str, ...]) -> Document:
    if not value or len(value) > MAX_REGEX_CHARS:
        raise ValueError(f"expected a regular expression of 1 to {MAX_REGEX_CHARS} characters")
    return regex_filter.condition(field.path, value)


def _is_null(field: Field, value: str, _: tuple[str, ...]) -> Document:
    expected = {"true": True, "1": True, "false": False, "0": False}.get(value.casefold())
    if expected is None:
        raise ValueError(f"expected true or false, got {value[:60]!r}")
    # An empty list is how a list field says that there is nothing.
    empty: list[Any] = [None, []] if field.kind == "list" else [None]
    return {field.path: {"$in" if expected else "$nin": empty}}


def _at_least(field: Field, value: str, allowed: tuple[str, ...]) -> Document:
    if field.kind == "time":
        return {field.path: {"$gte": _interval(value)[0]}}
    return {field.path: {"$gte": _bound(field, value, allowed)}}


def _bound(field: Field, value: str, allowed: tuple[str, ...]) -> str | int:
    """The stored value that a range begins or ends with.

    Raises:
        ValueError: it stands for what was not recorded, or no document can have it.
    """
    stored = _stored_values(field, value, allowed)[0]
    # A number has its place in the order whatever it stands for: from 0 years on.
    if field.kind != "integer" and stored in field.recorded_as_null:
        raise ValueError(
            f"{value[:60]!r} stands for what was not recorded, which has no order; use {field.name}__isnull"
        )
    return stored


def _at_most(field: Field, value: str, allowed: tuple[str, ...]) -> Document:
    if field.kind == "time":
        return {field.path: {"$lt": _interval(value)[1]}}
    return {field.path: {"$lte": _bound(field, value, allowed)}}


_BUILDERS: Final[Mapping[str, Callable[[Field, str, tuple[str, ...]], Document]]] = {
    "": _exact,
    "ne": lambda field, value, allowed: {"$nor": [_exact(field, value, allowed)]},
    "contains": _contains,
    "startswith": _starts_with,
    "regex": _regex,
    "isnull": _is_null,
    "gte": _at_least,
    "lte": _at_most,
}
