"""Search over cases and captions."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.api.deps import MAX_QUERY_CHARS, CaseFilterDep, Limit, OnlyDigits, RepositoryDep
from app.api.errors import documented
from app.api.filter_parameters import filters
from app.api.projection import CaseProjectionDep, Projection
from app.api.responses import data_response
from app.api.schemas.records import CaseSummary, ChosenFields, ImageView
from app.data.fields import CASE_FIELDS
from app.data.highlight import Match
from app.data.search import MAX_HITS, Hit, Mode, SearchResult
from app.data.serializers import case_view, encode, image_view

router = APIRouter(tags=["search"])


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

    score: float = Field(description="Higher is better; comparable within one answer")
    matches: list[MatchView]
    images: list[ImageHitView]
    case: CaseSummary | ChosenFields


class SearchPage(BaseModel):
    """One page of cases, best first."""

    items: list[HitView]
    total: int = Field(description=f"How many cases were found, at most {MAX_HITS}")
    mode: Mode = Field(
        description="How the cases were found; `words` in place of `hybrid` while the embeddings are being computed"
    )
    matched: Literal["all", "any"] | None = Field(
        description="Of the cases found by words. all: each holds every term; any: none does, these hold at least one"
    )
    did_you_mean: str | None = Field(description="The query as it was probably meant", examples=["meningioma"])
    exact_id: str | None = Field(
        description="The query is the id of this case or image; its case is the only item", examples=["MPX2175"]
    )
    ignored: list[str] = Field(description="Words of the query that nearly every case holds, and were left out")
    limit: int
    offset: int


@router.get(
    "/search",
    response_model=SearchPage,
    responses=documented(422, 429, 503, 504),
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
        Query(
            max_length=MAX_QUERY_CHARS,
            description='Words, prefixes (aort*), "quoted phrases", -excluded ones, or the id of a case or an image',
            examples=["ureter stone"],
        ),
    ],
    mode: Annotated[
        Mode,
        Query(description="words; meaning: nearest by sentence embedding; hybrid: both, fused by reciprocal rank"),
    ] = "words",
    limit: Limit = 20,
    offset: Annotated[int, Query(ge=0, le=MAX_HITS, description="Hits to leave out"), OnlyDigits] = 0,
) -> Response:
    """Cases whose texts and whose images' captions together hold every word and quoted phrase.

    Where no case holds all, those that hold any are answered, with `"matched": "any"`. Letter case,
    accents, apostrophes and hyphens make no difference, and other forms of a word are found too.

    The filters of `/cases` apply too; `fields` chooses what is answered of each case.
    """
    result = await repository.search(q, selection, mode=mode, limit=limit, offset=offset)
    body = await asyncio.to_thread(_body, result, projection, limit, offset)
    # The same address answers differently once the embeddings are there.
    headers = {"Cache-Control": "no-store"} if mode == "hybrid" and result.mode == "words" else None
    return await data_response(request, repository, body, headers=headers)


def _body(result: SearchResult, projection: Projection, limit: int, offset: int) -> bytes:
    content = {
        "items": [_hit(hit, projection) for hit in result.hits],
        "total": result.total,
        "mode": result.mode,
        "matched": result.matched,
        "did_you_mean": result.did_you_mean,
        "exact_id": result.exact_id,
        "ignored": result.ignored,
        "limit": limit,
        "offset": offset,
    }
    return encode(content)


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
