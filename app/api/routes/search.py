"""Search over cases and captions."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.api.deps import CaseFilterDep, Limit, RepositoryDep
from app.api.errors import documented
from app.api.filter_parameters import filters
from app.api.projection import CaseProjectionDep, Projection
from app.api.responses import data_response
from app.api.schemas.records import CaseSummary, ChosenFields, ImageView
from app.api.serializers import case_view, image_view
from app.data.fields import CASE_FIELDS
from app.data.highlight import Match
from app.data.search import MAX_HITS, Hit

router = APIRouter(tags=["search"])

MAX_QUERY_CHARS = 300


class MatchView(BaseModel):
    """A field that holds looked-for words."""

    field: str = Field(examples=["findings"])
    snippet: str = Field(description="Part of the field's text around the first word, with … where text was left out")
    ranges: list[tuple[int, int]] = Field(description="Start and end of each word in the snippet, in characters")


class ImageHitView(BaseModel):
    """An image whose caption holds looked-for words."""

    score: float
    matches: list[MatchView]
    image: ImageView


class HitView(BaseModel):
    """A case that was found."""

    score: float = Field(description="Text score of the case plus that of its best caption")
    matches: list[MatchView]
    images: list[ImageHitView]
    case: CaseSummary | ChosenFields


class SearchPage(BaseModel):
    """One page of cases, best first."""

    items: list[HitView]
    total: int = Field(description=f"How many cases were found, at most {MAX_HITS}")
    limit: int
    offset: int


@router.get(
    "/search",
    response_model=SearchPage,
    responses=documented(422, 503, 504),
    openapi_extra=filters(CASE_FIELDS),
    summary="Search",
    operation_id="search",
)
async def search(
    request: Request,
    repository: RepositoryDep,
    selection: CaseFilterDep,
    projection: CaseProjectionDep,
    q: Annotated[
        str,
        Query(max_length=MAX_QUERY_CHARS, description='Words, "quoted phrases", -excluded', examples=["ureter stone"]),
    ],
    limit: Limit = 20,
    offset: Annotated[int, Query(ge=0, le=MAX_HITS, description="Hits to leave out")] = 0,
) -> Response:
    """Cases whose texts, or whose images' captions, hold any of the words; all of the quoted phrases.

    The filters of `/cases` apply too; `fields` chooses what is answered of each case.
    """
    found = await repository.search(q, selection, limit=limit, offset=offset)
    items = [_hit(hit, projection) for hit in found.hits]
    content = {"items": items, "total": found.total, "limit": limit, "offset": offset}
    return await data_response(request, repository, content)


def _hit(hit: Hit, projection: Projection) -> dict[str, Any]:
    images = [
        {
            "score": round(image.score, 4),
            "matches": _matches(image.matches),
            "image": image_view(image.document),
        }
        for image in hit.images
    ]
    return {
        "score": round(hit.score, 4),
        "matches": _matches(hit.matches),
        "images": images,
        "case": projection.apply(case_view(hit.document)),
    }


def _matches(matches: list[Match]) -> list[dict[str, Any]]:
    return [{"field": match.field, "snippet": match.snippet, "ranges": match.ranges} for match in matches]
