"""Cases: one with its topic and images, or a page of many."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.api.deps import CaseIdDep, CaseOrderDep, CaseSelectionDep, Cursor, Limit, Raw, RepositoryDep
from app.api.errors import documented
from app.api.filter_parameters import filters
from app.api.projection import CaseProjectionDep
from app.api.responses import data_response, not_modified, page_response
from app.api.schemas.records import CasePage, CaseView, StoredRecord
from app.data.fields import CASE_FIELDS
from app.data.repository import CASES
from app.data.serializers import case_view
from app.web.pages import prefix_of

router = APIRouter(tags=["cases"])


@router.get(
    "/cases",
    response_model=CasePage,
    responses=documented(422, 429, 503, 504),
    openapi_extra=filters(CASE_FIELDS),
    summary="List cases",
    operation_id="list_cases",
)
async def list_cases(
    request: Request,
    repository: RepositoryDep,
    selection: CaseSelectionDep,
    order: CaseOrderDep,
    projection: CaseProjectionDep,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """Cases that pass a filter, page by page; any field can be one: `split=dev`, `title__contains=cyst`."""
    whole = projection.names is None
    page = await repository.page(CASES, selection, order, limit=limit, after=cursor, summaries=whole)
    if whole:
        return await page_response(request, repository, page, [each["summary"] for each in page.documents], limit)
    items = await asyncio.to_thread(lambda: [projection.apply(case_view(document)) for document in page.documents])
    return await page_response(request, repository, page, items, limit)


@router.get(
    "/cases/{u_id}",
    response_model=CaseView | StoredRecord,
    responses=documented(404, 422, 503, 504),
    summary="Read a case",
    operation_id="get_case",
)
async def read_case(request: Request, u_id: CaseIdDep, repository: RepositoryDep, raw: Raw = False) -> Response:
    """One case with its topic and its images; any letter case of the id is taken."""
    if raw:
        return await data_response(request, repository, await repository.get(CASES, u_id))
    # Links with a prefix make another entity, whose tag is not stored.
    if request.headers.get("if-none-match") and not prefix_of(request):
        etag = (await repository.answer(CASES, u_id, "etag"))["etag"]
        unchanged = await not_modified(request, repository, etag)
        if unchanged:
            return unchanged
    return await data_response(request, repository, (await repository.answer(CASES, u_id, "whole"))["whole"])
