"""The catalogue of public fields: what each is called, where it is stored, what can be asked of it.

A field's name is its path in the answers of the API. The filters, the sort orders, the projections,
`GET /fields` and the web form all read this catalogue, and nothing else reaches a stored path.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, NoneType
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel

from app.data.record import Annotation, Case, Image, Kind, LocationCategory, SavedView, Stored


@dataclass(frozen=True, slots=True)
class Field:
    """One public field.

    Attributes:
        name: its path in an answer, such as ``topic.category``.
        path: its path in a stored document.
        kind: keyword (short, closed or natural values), text, integer, time, or list (of keywords).
        source: where the dataset has it; empty for what this service derives.
        about: one sentence for people.
        values: the closed set of values, if there is one.
        pattern: regular expression of its values, if they have a form.
        recorded_as_null: values of the dataset that stand for "unknown" and are answered as null; a
            filter that names one of them means null.
        examples: values for the API reference.
    """

    name: str
    path: str
    kind: Kind
    source: str
    about: str
    nullable: bool = False
    values: tuple[str, ...] = ()
    pattern: str | None = None
    recorded_as_null: Mapping[str | int, Any] = field(default_factory=lambda: MappingProxyType({}))
    examples: tuple[Any, ...] = ()


CATEGORIES: Final[tuple[str, ...]] = get_args(LocationCategory)


def _declared(model: type[BaseModel], prefix: str = "") -> Iterator[Field]:
    """The fields of a record model, in its order, those of a sub-model in its place."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _declared(info.annotation, f"{prefix}{name}.")
            continue
        stored = next((each for each in info.metadata if isinstance(each, Stored)), None)
        if stored is None:
            continue
        kind, values, nullable = _type_of(info.annotation)
        pattern = next((each.pattern for each in info.metadata if getattr(each, "pattern", None)), None)
        yield Field(
            name=prefix + name,
            path=stored.path or f"norm.{prefix}{name}",
            kind=stored.kind or kind,
            source=stored.source,
            about=info.description or "",
            nullable=nullable,
            values=values,
            pattern=pattern,
            recorded_as_null=stored.recorded_as_null,
            examples=tuple(info.examples or ()),
        )


def _type_of(annotation: Any) -> tuple[Kind, tuple[str, ...], bool]:
    """Kind, closed set of values and whether null is one of them, of a field's type."""
    alternatives = get_args(annotation) if NoneType in get_args(annotation) else (annotation,)
    [inner] = [each for each in alternatives if each is not NoneType]
    nullable = len(alternatives) > 1
    if get_origin(inner) is list:
        _, values, _ = _type_of(get_args(inner)[0])
        return "list", values, nullable
    if get_origin(inner) is Literal:
        return "keyword", get_args(inner), nullable
    return ("integer" if inner is int else "keyword"), (), nullable


def catalogue_of(model: type[BaseModel]) -> Mapping[str, Field]:
    """Name to field of a record model, in its order."""
    return MappingProxyType({each.name: each for each in _declared(model)})


IMAGE_FIELDS: Final = catalogue_of(Image)
CASE_FIELDS: Final = catalogue_of(Case)
ANNOTATION_FIELDS: Final = catalogue_of(Annotation)
VIEW_FIELDS: Final = catalogue_of(SavedView)

# What people may also call a field in a filter.
IMAGE_ALIASES: Final = MappingProxyType({"type": "modality"})
CASE_ALIASES: Final = MappingProxyType({"modality": "modalities", "type": "modalities", "plane": "planes"})


def pick(document: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a stored document, None where there is none."""
    value: Any = document
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def public_view(document: Mapping[str, Any], catalogue: Mapping[str, Field]) -> dict[str, Any]:
    """A stored document as the API answers it: public names, nested where a name has a dot."""
    view: dict[str, Any] = {}
    for parents, leaf, path in _plan(catalogue):
        target = view
        for parent in parents:
            target = target.setdefault(parent, {})
        value: Any = document
        for key in path:
            value = value.get(key) if value is not None else None
        target[leaf] = value
    return view


_Step = tuple[tuple[str, ...], str, tuple[str, ...]]
# By identity, and with the catalogue itself, so that no other can ever have this identity.
_plans: dict[int, tuple[Mapping[str, Field], tuple[_Step, ...]]] = {}


def _plan(catalogue: Mapping[str, Field]) -> tuple[_Step, ...]:
    """Where each field comes from and goes to, taken apart once: a page has a thousand of them."""
    plan = _plans.get(id(catalogue))
    if plan is None:
        names = ((name.split("."), tuple(item.path.split("."))) for name, item in catalogue.items())
        plan = catalogue, tuple((tuple(parents), leaf, path) for (*parents, leaf), path in names)
        _plans[id(catalogue)] = plan
    return plan[1]
