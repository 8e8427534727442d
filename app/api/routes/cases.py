"""Cases: one with its topic and images, or a page of many."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.deps import CaseFilterDep, CaseIdDep, CaseOrderDep, Cursor, Limit, Raw, RepositoryDep
from app.api.errors import documented
from app.api.page_links import page_response
from app.api.projection import CaseProjectionDep
from app.api.responses import data_response
from app.api.schemas.records import CasePage, CaseView, StoredRecord
from app.api.serializers import case_view, image_view
from app.data.repository import CASES

router = APIRouter(tags=["cases"])


@router.get("/cases", response_model=CasePage, responses=documented(422, 503, 504), summary="List cases")
async def list_cases(
    request: Request,
    repository: RepositoryDep,
    selection: CaseFilterDep,
    order: CaseOrderDep,
    projection: CaseProjectionDep,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """Cases that pass a filter, page by page; any field can be one: `split=dev`, `title__contains=cyst`."""
    page = await repository.page(CASES, selection, order, limit=limit, after=cursor)
    items = [projection.apply(case_view(document)) for document in page.documents]
    return await page_response(request, repository, page, items, limit)


@router.get(
    "/cases/{u_id}",
    response_model=CaseView | StoredRecord,
    responses=documented(404, 422, 503, 504),
    summary="Read a case",
)
async def read_case(request: Request, u_id: CaseIdDep, repository: RepositoryDep, raw: Raw = False) -> Response:
    """One case with its topic and its images; any letter case of the id is taken."""
    if raw:
        return await data_response(request, repository, await repository.get(CASES, u_id))
    document, images = await repository.case_with_images(u_id)
    answer: dict[str, Any] = {**case_view(document), "images": [image_view(image) for image in images]}
    return await data_response(request, repository, answer)
