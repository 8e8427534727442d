"""Keyset paging: sort orders, the opaque cursor, and the condition "comes after this place"."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core.exceptions import ProblemItem
from app.data.fields import Field, pick
from app.data.filters import SORTABLE, ParameterError

Document = dict[str, Any]

_MAX_SORT_KEYS = 5


@dataclass(frozen=True, slots=True)
class SortKey:
    """One key of a sort order: public name, stored path, direction (1 or -1)."""

    name: str
    path: str
    direction: int


@dataclass(frozen=True, slots=True)
class SortOrder:
    """A total order: the keys that were asked for, then the id."""

    keys: tuple[SortKey, ...]

    @property
    def canonical(self) -> str:
        """The order in one spelling."""
        return ",".join(f"{'-' if key.direction < 0 else ''}{key.name}" for key in self.keys)

    @property
    def mongo(self) -> list[tuple[str, int]]:
        """The order as MongoDB takes it."""
        return [(key.path, key.direction) for key in self.keys]


def parse_sort(text: str | None, catalogue: Mapping[str, Field]) -> SortOrder:
    """Read a sort order such as ``-age,u_id``; the id is the last key.

    Raises:
        ParameterError: unknown or unsortable field, the same field twice, too many keys.
    """
    keys: list[SortKey] = []
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        name, direction = (item[1:], -1) if item.startswith("-") else (item, 1)
        field = catalogue.get(name)
        if field is None or field.kind not in SORTABLE:
            sortable = ", ".join(each.name for each in catalogue.values() if each.kind in SORTABLE)
            raise ParameterError([ProblemItem("sort", f"cannot sort by {name!r}. Sortable: {sortable}")])
        if any(key.path == field.path for key in keys):
            raise ParameterError([ProblemItem("sort", f"{name} is named twice")])
        keys.append(SortKey(name, field.path, direction))
    if len(keys) > _MAX_SORT_KEYS:
        raise ParameterError([ProblemItem("sort", f"more than {_MAX_SORT_KEYS} keys")])
    paths = [key.path for key in keys]
    if "_id" in paths:
        return SortOrder(tuple(keys[: paths.index("_id") + 1]))  # no two documents are equal up to there
    identifier = next(field for field in catalogue.values() if field.path == "_id")
    return SortOrder((*keys, SortKey(identifier.name, "_id", 1)))


def _fingerprint(filter_text: str, order: SortOrder) -> str:
    return hashlib.sha256(f"{filter_text}\n{order.canonical}".encode()).hexdigest()[:16]


def encode_cursor(last: Mapping[str, Any], order: SortOrder, filter_text: str) -> str:
    """The cursor that stands after a document of a page."""
    payload = {"k": [pick(last, key.path) for key in order.keys], "h": _fingerprint(filter_text, order)}
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, order: SortOrder, filter_text: str) -> Document:
    """The condition that a document comes after the cursor's place in the order.

    Raises:
        ParameterError: not a cursor of this service, or one of another filter or sort order.
    """
    try:
        payload = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        values, fingerprint = payload["k"], payload["h"]
        usable = isinstance(values, list) and len(values) == len(order.keys) and all(map(_is_sort_value, values))
        usable = usable and values[-1] is not None  # the id
    except (ValueError, TypeError, KeyError, RecursionError):
        usable = False
    if not usable:
        raise ParameterError([ProblemItem("cursor", "is not a cursor of this service; start without one")])
    if fingerprint != _fingerprint(filter_text, order):
        message = "belongs to another filter or sort order; start without one"
        raise ParameterError([ProblemItem("cursor", message)])
    return _after(order, values)


def _is_sort_value(value: object) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= char <= "\udfff" or char == "\0" for char in value)  # BSON holds neither
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**31)


def _after(order: SortOrder, values: list[Any]) -> Document:
    """One alternative per key: equal in all keys before it, strictly beyond in this one."""
    alternatives = []
    for position, (key, value) in enumerate(zip(order.keys, values, strict=True)):
        beyond = _beyond(key, value)
        if beyond is not None:
            equal = {order.keys[i].path: values[i] for i in range(position)}
            alternatives.append({"$and": [equal, beyond]} if equal else beyond)
    return {"$or": alternatives} if len(alternatives) != 1 else alternatives[0]


def _beyond(key: SortKey, value: Any) -> Document | None:
    # MongoDB sorts null before every value, but $gt and $lt never compare null with a value.
    if value is None:
        return {key.path: {"$ne": None}} if key.direction > 0 else None
    if key.direction > 0:
        return {key.path: {"$gt": value}}
    return {"$or": [{key.path: {"$lt": value}}, {key.path: None}]}
