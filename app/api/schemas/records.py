"""The answers of the data endpoints, as OpenAPI describes them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.data.repository import MAX_TOTAL

CaseId = Annotated[str, Field(pattern=r"^MPX\d{4,8}$", examples=["MPX1007"])]
ImageId = Annotated[str, Field(pattern=r"^MPX\d{4,8}_synpic\d{2,5}$", examples=["MPX1007_synpic46719"])]
Split = Literal["train", "dev", "test"]
Subsplit = Literal["train_1", "train_2"]
Modality = Literal["CT", "MR"]
Sex = Literal["male", "female"]


class ImageLinks(BaseModel):
    """Addresses of an image, relative to the service."""

    self: str
    case: str
    file: str
    thumbnail: str


class ImageView(BaseModel):
    """One image of the dataset; null stands for what was not recorded."""

    image: ImageId
    u_id: CaseId
    split: Split
    subsplit: Subsplit | None
    modality: Modality
    modality_detail: str = Field(examples=["CT - noncontrast"])
    plane: str | None = Field(examples=["Axial"])
    location: str | None = Field(examples=["Brain and Neuro"])
    location_category: str = Field(examples=["Head"])
    age: int | None
    sex: Sex | None
    caption: str | None
    figure_part: str | None
    acr_codes: str | None
    source_url: str | None
    article_url: str | None
    width: int
    height: int
    sha256: str
    quality_flags: list[str] = Field(examples=[["sex_unknown"]])
    links: ImageLinks


class TopicView(BaseModel):
    """The disease topic of a case."""

    title: str | None
    category: str | None
    acr_code: str | None
    disease_discussion: str | None
    keywords: str | None
    reference: str | None
    external_links: list[str]


class CaseLinks(BaseModel):
    """Addresses of a case, relative to the service."""

    self: str
    images: str


class CaseSummary(BaseModel):
    """One case without its images."""

    u_id: CaseId
    split: Split
    subsplit: Subsplit | None
    title: str | None
    diagnosis: str | None
    history: str | None
    exam: str | None
    findings: str | None
    differential_diagnosis: str | None
    diagnosis_by: str | None
    discussion: str | None
    treatment_follow_up: str | None
    media: str | None
    topic: TopicView
    modalities: list[Modality]
    planes: list[str]
    image_count: int
    location: str | None
    location_category: str | None
    age: int | None
    sex: Sex | None
    quality_flags: list[str]
    links: CaseLinks


class CaseView(CaseSummary):
    """One case with its images."""

    images: list[ImageView]


class ImageWithCase(ImageView):
    """One image with its case."""

    case: CaseSummary


class _PageModel(BaseModel):
    total: int = Field(description=f"How many pass the filter; counted to {MAX_TOTAL}")
    total_is_exact: bool = Field(description=f"False where more than {MAX_TOTAL} pass a filter")
    limit: int
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last page")


class ChosenFields(BaseModel):
    """What `fields=` names, and nothing else."""

    model_config = ConfigDict(extra="allow")


class StoredRecord(BaseModel):
    """A record as the dataset has it, for `raw=true`."""

    model_config = ConfigDict(extra="allow")

    U_id: CaseId


class CasePage(_PageModel):
    """One page of cases."""

    items: list[CaseSummary | ChosenFields]


class ImagePage(_PageModel):
    """One page of images."""

    items: list[ImageView | ImageWithCase | ChosenFields]
