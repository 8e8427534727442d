"""One page of a list, with the links to the pages around it."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response

from app.api.responses import data_response
from app.data.repository import Page, Repository


async def page_response(
    request: Request, repository: Repository, page: Page, items: Sequence[dict[str, Any]], limit: int
) -> Response:
    """The answer to a list request; the Link header names the first and the next page."""
    others = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    links = [f'<{request.url.path}?{urlencode(others)}>; rel="first"']
    if page.next_cursor:
        following = urlencode([*others, ("cursor", page.next_cursor)])
        links.append(f'<{request.url.path}?{following}>; rel="next"')
    content = {
        "items": items,
        "total": page.total,
        "total_is_exact": page.total_is_exact,
        "limit": limit,
        "next_cursor": page.next_cursor,
    }
    return await data_response(request, repository, content, headers={"Link": ", ".join(links)})
