"""The records of the dataset, each field declared once.

From these models come the validators of MongoDB (`schema`), the field catalogue (`fields`), the normalised
texts (`normalize`), the responses of the API with their OpenAPI, and the columns of the exports. A field of the
API that the dataset has under another name says so in its ``Stored``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# MedPix 2.0 has four digits; a larger collection may have more.
CASE_ID: Final = r"MPX\d{4,8}"
IMAGE_ID: Final = rf"{CASE_ID}_synpic\d{{2,5}}"
SHA256: Final = "[0-9a-f]{64}"

CaseId = Annotated[str, Field(pattern=f"^{CASE_ID}$", examples=["MPX1007"])]
ImageId = Annotated[str, Field(pattern=f"^{IMAGE_ID}$", examples=["MPX1007_synpic46719"])]
Sha256 = Annotated[str, Field(pattern=f"^{SHA256}$")]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Split = Literal["train", "dev", "test"]
Subsplit = Literal["train_1", "train_2"]
Modality = Literal["CT", "MR"]
Sex = Literal["male", "female"]
LocationCategory = Literal["Head", "Thorax", "Abdomen", "Spine and Muscles", "Reproductive and Urinary System"]
UNKNOWN_ACR_CODE: Final = "-1.-1"
LEFT_BLANK: Final = "Left Blank"
MAX_VIEW_QUERY_CHARS: Final = 4_000

Kind = Literal["keyword", "text", "integer", "list", "time"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a public field is stored and where it comes from.

    Attributes:
        path: its path in a stored document; empty: ``norm.`` and its public name.
        source: where the dataset has it; empty for what this service derives. Of a case, ``Case.KEY`` and ``Topic.KEY``
            also mean that ``normalize`` fills the field with the cleaned text of the key, unless it is a list.
        kind: None: list, integer or keyword by its type. Long texts say "text", times "time".
        recorded_as_null: values of the dataset that stand for "unknown" and are answered as null, each with the
            condition that a filter by this value means.
    """

    path: str = ""
    source: str = ""
    kind: Kind | None = None
    recorded_as_null: Mapping[str | int, Any] = field(default_factory=lambda: MappingProxyType({}))


# The files of the dataset. The names are those of MedPix 2.0; documents keep them beside the normalised values.


class _Source(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Description(_Source):
    acr_codes: str = Field(alias="ACR Codes")
    age: Annotated[str, StringConstraints(pattern=r"^\d{1,3}$")] = Field(alias="Age")
    caption: str = Field(alias="Caption")
    figure_part: str | None = Field(alias="Figure Part")
    modality: NonEmpty = Field(alias="Modality")
    plane: NonEmpty | None = Field(alias="Plane")
    sex: Literal["male", "female", "N/A"] = Field(alias="Sex")


class SourceImage(_Source):
    """One line of descriptions_*.jsonl."""

    type: Modality = Field(alias="Type")
    u_id: CaseId = Field(alias="U_id")
    image: ImageId
    description: _Description = Field(alias="Description")
    location: NonEmpty = Field(alias="Location")
    location_category: LocationCategory = Field(alias="Location Category")


class _Case(_Source):
    title: NonEmpty = Field(alias="Title")
    diagnosis: NonEmpty = Field(alias="Case Diagnosis")
    history: str | None = Field(alias="History")
    exam: str | None = Field(alias="Exam")
    findings: str | None = Field(alias="Findings")
    differential_diagnosis: str | None = Field(alias="Differential Diagnosis")
    diagnosis_by: str | None = Field(alias="Diagnosis By")
    discussion: str | None = Field(alias="Discussion")
    treatment: str | None = Field(alias="Treatment & Follow Up")
    media: str | None = Field(alias="Media")


class _Topic(_Source):
    title: NonEmpty = Field(alias="Title")
    category: NonEmpty = Field(alias="Category")
    acr_code: str = Field(alias="ACR Code")
    disease_discussion: str = Field(alias="Disease Discussion")
    keywords: str | None = Field(alias="Keywords")
    reference: str | None = Field(alias="Reference")
    external_links: str | None = Field(alias="External Links")


class SourceCase(_Source):
    """One line of data_*.jsonl."""

    u_id: CaseId = Field(alias="U_id")
    ct: list[ImageId] = Field(alias="TAC", json_schema_extra={"uniqueItems": True})
    mr: list[ImageId] = Field(alias="MRI", json_schema_extra={"uniqueItems": True})
    case: _Case = Field(alias="Case")
    topic: _Topic = Field(alias="Topic")


class ImageFile(BaseModel):
    """The PNG file of an image, as it was when it was seeded."""

    name: NonEmpty
    sha256: Sha256
    bytes: int
    width: int
    height: int
    mode: NonEmpty


# What the API answers: public names, normalised values, null for what was not recorded.


def _text(source: str) -> Stored:
    return Stored(source=source, kind="text")


_Split = Annotated[Split, Stored("split", "file name"), Field(description="Official split, by case")]
_Subsplit = Annotated[
    Subsplit | None, Stored("subsplit", "uid_list.json"), Field(description="Half of the training split")
]
_LOCATION: Final = Stored(
    source="Location", recorded_as_null=MappingProxyType({LEFT_BLANK: {"norm.quality_flags": "location_left_blank"}})
)
_AGE: Final = Stored(source="Description.Age", recorded_as_null=MappingProxyType({0: {"norm.age": None}}))
_SEX: Final = Stored(source="Description.Sex", recorded_as_null=MappingProxyType({"N/A": {"norm.sex": None}}))
_FLAGS_ABOUT: Final = "Doubts about this record, by name"


class Image(BaseModel):
    """One image of the dataset; null stands for what was not recorded."""

    image: Annotated[ImageId, Stored("_id", "image")] = Field(description="Image id, such as MPX1007_synpic46719")
    u_id: Annotated[CaseId, Stored("U_id", "U_id")] = Field(description="Case id, such as MPX1007")
    split: _Split
    subsplit: _Subsplit
    modality: Annotated[Modality, Stored(source="Type")] = Field(description="Imaging modality")
    modality_detail: Annotated[NonEmpty, Stored(source="Description.Modality")] = Field(
        description="Sequence or protocol", examples=["CT - noncontrast"]
    )
    plane: Annotated[str | None, Stored(source="Description.Plane")] = Field(
        description="Plane of section, or kind of image", examples=["Axial"]
    )
    location: Annotated[str | None, _LOCATION] = Field(
        description="Anatomical location, one of 21", examples=["Brain and Neuro"]
    )
    location_category: Annotated[LocationCategory, Stored(source="Location Category")] = Field(
        description="Body region, one of 5", examples=["Head"]
    )
    age: Annotated[int | None, _AGE] = Field(description="Age in years; 0 was recorded for unknown", examples=[63])
    sex: Annotated[Sex | None, _SEX] = Field(description="Sex; N/A was recorded for unknown", examples=["female"])
    caption: Annotated[str | None, _text("Description.Caption")] = Field(description="What the image shows")
    figure_part: Annotated[str | None, Stored(source="Description.Figure Part")] = Field(description="Part of a figure")
    acr_codes: Annotated[
        str | None,
        Stored(
            source="Description.ACR Codes",
            recorded_as_null=MappingProxyType({UNKNOWN_ACR_CODE: {"norm.acr_codes": None}}),
        ),
    ] = Field(description="ACR index code; -1.-1 is unknown", examples=["1.3"])
    source_url: Annotated[str | None, Stored(source="images_overview.csv")] = Field(description="Open-i address")
    article_url: Annotated[str | None, Stored(source="images_overview.csv")] = Field(description="MedPix address")
    width: Annotated[int, Stored("file.width")] = Field(description="Width in pixels")
    height: Annotated[int, Stored("file.height")] = Field(description="Height in pixels")
    sha256: Annotated[Sha256, Stored("file.sha256")] = Field(description="Hash of the image file")
    quality_flags: Annotated[list[str], Stored()] = Field(description=_FLAGS_ABOUT, examples=[["sex_unknown"]])


class Topic(BaseModel):
    """The disease topic of a case."""

    title: Annotated[str | None, _text("Topic.Title")] = Field(description="Title of the disease topic")
    category: Annotated[str | None, Stored(source="Topic.Category")] = Field(description="Category of disease")
    acr_code: Annotated[
        str | None,
        Stored(
            source="Topic.ACR Code",
            recorded_as_null=MappingProxyType({UNKNOWN_ACR_CODE: {"norm.topic.acr_code": None}}),
        ),
    ] = Field(description="ACR index code; -1.-1 is unknown")
    disease_discussion: Annotated[str | None, _text("Topic.Disease Discussion")] = Field(
        description="About the disease"
    )
    keywords: Annotated[str | None, _text("Topic.Keywords")] = Field(
        description="Keywords, often run together without a separator"
    )
    reference: Annotated[str | None, _text("Topic.Reference")] = Field(description="Literature")
    external_links: Annotated[list[str], Stored(source="Topic.External Links")] = Field(description="Web addresses")


class Case(BaseModel):
    """One case without its images; null stands for what was not recorded."""

    u_id: Annotated[CaseId, Stored("_id", "U_id")] = Field(description="Case id, such as MPX1007")
    split: _Split
    subsplit: _Subsplit
    title: Annotated[str | None, _text("Case.Title")] = Field(description="Title of the case")
    diagnosis: Annotated[str | None, _text("Case.Case Diagnosis")] = Field(description="Diagnosis")
    history: Annotated[str | None, _text("Case.History")] = Field(description="Patient history")
    exam: Annotated[str | None, _text("Case.Exam")] = Field(description="Physical examination and laboratory")
    findings: Annotated[str | None, _text("Case.Findings")] = Field(description="Radiological findings")
    differential_diagnosis: Annotated[str | None, _text("Case.Differential Diagnosis")] = Field(
        description="Diagnoses that were considered"
    )
    diagnosis_by: Annotated[str | None, _text("Case.Diagnosis By")] = Field(description="How it was confirmed")
    discussion: Annotated[str | None, _text("Case.Discussion")] = Field(description="Discussion of the case")
    treatment_follow_up: Annotated[str | None, _text("Case.Treatment & Follow Up")] = Field(
        description="Treatment and follow-up"
    )
    media: Annotated[str | None, _text("Case.Media")] = Field(description="Name of a film, if there is one")
    topic: Topic
    modalities: Annotated[list[Modality], Stored(source="TAC, MRI")] = Field(description="Modalities of the images")
    planes: Annotated[list[str], Stored(source="Description.Plane")] = Field(description="Planes of the images")
    modality_details: Annotated[list[str], Stored(source="Description.Modality")] = Field(
        description="Sequences and protocols of the images", examples=[["MR - FLAIR", "MR - DWI"]]
    )
    image_count: Annotated[int, Stored(source="TAC, MRI")] = Field(description="Number of images")
    location: Annotated[str | None, _LOCATION] = Field(description="Anatomical location, one of 21")
    location_category: Annotated[LocationCategory | None, Stored(source="Location Category")] = Field(
        description="Body region, one of 5"
    )
    age: Annotated[int | None, _AGE] = Field(description="Age in years; 0 was recorded for unknown")
    sex: Annotated[Sex | None, _SEX] = Field(description="Sex; N/A was recorded for unknown")
    quality_flags: Annotated[list[str], Stored()] = Field(description=_FLAGS_ABOUT)


class SavedView(BaseModel):
    """A selection of images or cases that was saved under a name."""

    id: Annotated[str, Stored("_id")] = Field(description="Id of the view", pattern="^[0-9a-f]{32}$")
    name: Annotated[str, Stored("name")] = Field(description="Its name, of which a writer has one", max_length=100)
    of: Annotated[Literal["images", "cases"], Stored("of")] = Field(description="What it selects")
    query: Annotated[str, Stored("query", kind="text")] = Field(
        description="The parameters of `/images` or `/cases` that select it",
        max_length=MAX_VIEW_QUERY_CHARS,
        examples=["modality=CT&age__gte=60"],
    )
    total: Annotated[int, Stored("total")] = Field(description="How many it selected when it was saved")
    dataset_version: Annotated[str | None, Stored("dataset_version")] = Field(
        description="Version of the data when it was saved"
    )
    by: Annotated[str, Stored("by")] = Field(description="Name of the key that saved it", min_length=1, max_length=64)
    created_at: Annotated[str, Stored("created_at", kind="time")] = Field(
        description="When it was saved, UTC",
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        examples=["2026-05-14T09:30:00.000Z"],
    )


class Annotation(BaseModel):
    """An annotation with its provenance."""

    id: Annotated[str, Stored("_id")] = Field(description="Id of the annotation", pattern="^[0-9a-f]{32}$")
    image: Annotated[ImageId, Stored("image")] = Field(description="The image that it is about")
    u_id: Annotated[CaseId, Stored("U_id")] = Field(description="The case of the image")
    modality: Annotated[Modality | None, Stored("modality")] = Field(description="Corrected modality")
    location: Annotated[str | None, Stored("location")] = Field(description="Corrected location", max_length=100)
    location_category: Annotated[LocationCategory | None, Stored("location_category")] = Field(
        description="Corrected body region"
    )
    action: Annotated[Literal["create", "amend", "retract"], Stored("action")] = Field(
        description="Whether it is the first of its history, replaces an earlier one, or takes it back"
    )
    amends: Annotated[str | None, Stored("amends")] = Field(
        description="Id of the annotation that it replaces or takes back", pattern="^[0-9a-f]{32}$"
    )
    comment: Annotated[str | None, Stored("comment", kind="text")] = Field(
        description="What the annotator says", max_length=5000
    )
    by: Annotated[str, Stored("by")] = Field(description="Name of the key that wrote it", min_length=1, max_length=64)
    created_at: Annotated[str, Stored("created_at", kind="time")] = Field(
        description="When it was written, UTC",
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        examples=["2026-05-14T09:30:00.000Z"],
    )
    image_sha256: Annotated[Sha256, Stored("image_sha256")] = Field(description="Hash of the image file that was seen")
    dataset_version: Annotated[str | None, Stored("dataset_version")] = Field(
        description="Version of the data that was seen"
    )
