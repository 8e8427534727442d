"""The catalogue of public fields: what each is called, where it is stored, what can be asked of it.

A field's name is its path in the answers of the API. The filters, the sort orders, the projections,
`GET /fields` and the web form all read this catalogue, and nothing else reaches a stored path.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

Kind = Literal["keyword", "text", "integer", "list"]


@dataclass(frozen=True, slots=True)
class Field:
    """One public field.

    Attributes:
        name: its path in an answer, such as ``topic.category``.
        path: its path in a stored document.
        kind: keyword (short, closed or natural values), text, integer, or list (of keywords).
        source: where the dataset has it; empty for what this service derives.
        about: one sentence for people.
        values: the closed set of values, if there is one.
        recorded_as_null: values of the dataset that stand for "unknown" and are answered as null; a
            filter that names one of them means null.
    """

    name: str
    path: str
    kind: Kind
    source: str
    about: str
    nullable: bool = False
    values: tuple[str, ...] = ()
    recorded_as_null: Mapping[str | int, Any] = field(default_factory=lambda: MappingProxyType({}))


SPLIT_VALUES: Final = ("train", "dev", "test")
SUBSPLIT_VALUES: Final = ("train_1", "train_2")
MODALITIES: Final = ("CT", "MR")
SEXES: Final = ("male", "female")
CATEGORIES: Final = ("Head", "Thorax", "Abdomen", "Spine and Muscles", "Reproductive and Urinary System")


def _common() -> tuple[Field, ...]:
    return (
        Field("split", "split", "keyword", "file name", "Official split, by case", values=SPLIT_VALUES),
        Field(
            *("subsplit", "subsplit", "keyword", "uid_list.json", "Half of the training split"),
            nullable=True,
            values=SUBSPLIT_VALUES,
        ),
    )


def _patient() -> tuple[Field, ...]:
    return (
        Field(
            *("location", "norm.location", "keyword", "Location", "Anatomical location, one of 21"),
            nullable=True,
            recorded_as_null={"Left Blank": {"norm.quality_flags": "location_left_blank"}},
        ),
        Field(
            *("location_category", "norm.location_category", "keyword", "Location Category", "Body region, one of 5"),
            values=CATEGORIES,
        ),
        Field(
            *("age", "norm.age", "integer", "Description.Age", "Age in years; 0 was recorded for unknown"),
            nullable=True,
            recorded_as_null={0: {"norm.age": None}},
        ),
        Field(
            *("sex", "norm.sex", "keyword", "Description.Sex", "Sex; N/A was recorded for unknown"),
            nullable=True,
            values=SEXES,
            recorded_as_null={"N/A": {"norm.sex": None}},
        ),
    )


_FLAGS: Final = Field("quality_flags", "norm.quality_flags", "list", "", "Doubts about this record, by name")


def _catalogue(*fields: Field) -> Mapping[str, Field]:
    return MappingProxyType({item.name: item for item in fields})


IMAGE_FIELDS: Final = _catalogue(
    Field("image", "_id", "keyword", "image", "Image id, such as MPX1007_synpic46719"),
    Field("u_id", "U_id", "keyword", "U_id", "Case id, such as MPX1007"),
    *_common(),
    Field("modality", "norm.modality", "keyword", "Type", "Imaging modality", values=MODALITIES),
    Field("modality_detail", "norm.modality_detail", "keyword", "Description.Modality", "Sequence or protocol"),
    Field("plane", "norm.plane", "keyword", "Description.Plane", "Plane of section, or kind of picture", nullable=True),
    *_patient(),
    Field("caption", "norm.caption", "text", "Description.Caption", "What the picture shows", nullable=True),
    Field("figure_part", "norm.figure_part", "keyword", "Description.Figure Part", "Part of a figure", nullable=True),
    Field(
        *("acr_codes", "norm.acr_codes", "keyword", "Description.ACR Codes", "ACR index code; -1.-1 is unknown"),
        nullable=True,
        recorded_as_null={"-1.-1": {"norm.acr_codes": None}},
    ),
    Field("source_url", "norm.source_url", "keyword", "images_overview.csv", "Open-i address", nullable=True),
    Field("article_url", "norm.article_url", "keyword", "images_overview.csv", "MedPix address", nullable=True),
    Field("width", "file.width", "integer", "", "Width in pixels"),
    Field("height", "file.height", "integer", "", "Height in pixels"),
    Field("sha256", "file.sha256", "keyword", "", "Hash of the image file"),
    _FLAGS,
)

CASE_FIELDS: Final = _catalogue(
    Field("u_id", "_id", "keyword", "U_id", "Case id, such as MPX1007"),
    *_common(),
    Field("title", "norm.title", "text", "Case.Title", "Title of the case"),
    Field("diagnosis", "norm.diagnosis", "text", "Case.Case Diagnosis", "Diagnosis"),
    Field("history", "norm.history", "text", "Case.History", "Patient history", nullable=True),
    Field("exam", "norm.exam", "text", "Case.Exam", "Physical examination and laboratory", nullable=True),
    Field("findings", "norm.findings", "text", "Case.Findings", "Radiological findings", nullable=True),
    Field(
        *("differential_diagnosis", "norm.differential_diagnosis", "text", "Case.Differential Diagnosis"),
        "Diagnoses that were considered",
        nullable=True,
    ),
    Field("diagnosis_by", "norm.diagnosis_by", "text", "Case.Diagnosis By", "How it was confirmed", nullable=True),
    Field("discussion", "norm.discussion", "text", "Case.Discussion", "Discussion of the case", nullable=True),
    Field(
        *("treatment_follow_up", "norm.treatment_follow_up", "text", "Case.Treatment & Follow Up"),
        "Treatment and follow-up",
        nullable=True,
    ),
    Field("media", "norm.media", "text", "Case.Media", "Name of a film, if there is one", nullable=True),
    Field("topic.title", "norm.topic.title", "text", "Topic.Title", "Title of the disease topic"),
    Field("topic.category", "norm.topic.category", "keyword", "Topic.Category", "Category of disease", nullable=True),
    Field(
        *("topic.acr_code", "norm.topic.acr_code", "keyword", "Topic.ACR Code", "ACR index code; -1.-1 is unknown"),
        nullable=True,
        recorded_as_null={"-1.-1": {"norm.topic.acr_code": None}},
    ),
    Field(
        *("topic.disease_discussion", "norm.topic.disease_discussion", "text", "Topic.Disease Discussion"),
        "About the disease",
        nullable=True,
    ),
    Field(
        *("topic.keywords", "norm.topic.keywords", "text", "Topic.Keywords"),
        "Keywords, often run together without a separator",
        nullable=True,
    ),
    Field("topic.reference", "norm.topic.reference", "text", "Topic.Reference", "Literature", nullable=True),
    Field("topic.external_links", "norm.topic.external_links", "list", "Topic.External Links", "Web addresses"),
    Field("modalities", "norm.modalities", "list", "TAC, MRI", "Modalities of the images", values=MODALITIES),
    Field("planes", "norm.planes", "list", "Description.Plane", "Planes of the images"),
    Field("image_count", "norm.image_count", "integer", "TAC, MRI", "Number of images"),
    *_patient(),
    _FLAGS,
)

ANNOTATION_FIELDS: Final = _catalogue(
    Field("id", "_id", "keyword", "", "Id of the annotation"),
    Field("image", "image", "keyword", "", "The image that it is about"),
    Field("u_id", "U_id", "keyword", "", "The case of the image"),
    Field("modality", "modality", "keyword", "", "Corrected modality", nullable=True, values=MODALITIES),
    Field("location", "location", "keyword", "", "Corrected location", nullable=True),
    Field(
        *("location_category", "location_category", "keyword", "", "Corrected body region"),
        nullable=True,
        values=CATEGORIES,
    ),
    Field("comment", "comment", "text", "", "What the annotator says", nullable=True),
    Field("by", "by", "keyword", "", "Name of the key that wrote it"),
    Field("created_at", "created_at", "keyword", "", "When it was written, UTC"),
    Field("image_sha256", "image_sha256", "keyword", "", "Hash of the image file that was seen"),
    Field("dataset_version", "dataset_version", "keyword", "", "Version of the data that was seen", nullable=True),
)

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
    for name, item in catalogue.items():
        target = view
        *parents, leaf = name.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = pick(document, item.path)
    return view
