"""The answers of the data endpoints, as OpenAPI describes them."""

from pydantic import BaseModel, ConfigDict, Field

from app.data.record import Annotation, Case, CaseId, Image
from app.data.repository import MAX_TOTAL


class ImageLinks(BaseModel):
    """Addresses of an image, relative to the service."""

    self: str
    case: str
    file: str
    thumbnail: str


class ImageView(Image):
    """One image of the dataset with its addresses; null stands for what was not recorded."""

    links: ImageLinks


class CaseLinks(BaseModel):
    """Addresses of a case, relative to the service."""

    self: str
    images: str


class CaseSummary(Case):
    """One case without its images."""

    links: CaseLinks


class CaseView(CaseSummary):
    """One case with its images."""

    images: list[ImageView]


class ImageWithCase(ImageView):
    """One image with its case."""

    case: CaseSummary


class ImageDetail(ImageWithCase):
    """One image with its case and its annotations."""

    annotations: list[Annotation] = Field(description="Current annotations, newest first, at most 100")


class PageModel(BaseModel):
    """What every page of a list says beside its items."""

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


class CasePage(PageModel):
    """One page of cases."""

    items: list[CaseSummary | ChosenFields]


class ImagePage(PageModel):
    """One page of images."""

    items: list[ImageView | ImageWithCase | ChosenFields]
