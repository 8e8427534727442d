"""JSON responses of the data endpoints: ETag over the content, conditional requests, the dataset's version."""

import asyncio
import gzip
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import Request, Response

from app.api.file_responses import etag_matches
from app.api.negotiation import accepts
from app.data.repository import Page, Repository
from app.data.serializers import encode, etag_of
from app.web.pages import prefix_of

# A copy may be kept, but is asked for again: a seeding or an annotation can change the answer.
_CACHE_CONTROL: Final = "no-cache"
# A single record is sent faster than it is compressed, and is parsed on the event loop faster than in a thread.
_LARGE_BYTES: Final = 16 * 1024
_GZIP_LEVEL: Final = 4


async def data_response(
    request: Request, repository: Repository, content: Any, *, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer about the data.

    Args:
        request: supplies If-None-Match.
        repository: knows the version of the dataset.
        content: what is answered; bytes are JSON already. Anything else is serialised in a thread.
        headers: further ones.
    """
    body = content if isinstance(content, bytes) else await asyncio.to_thread(encode, content)
    body = await with_prefix(body, prefix_of(request))
    etag = etag_of(body)
    unchanged = await not_modified(request, repository, etag, headers=headers)
    if unchanged:
        return unchanged
    sent = await _headers(repository, etag, headers)
    if len(body) >= _LARGE_BYTES and accepts(request.headers.get("accept-encoding", ""), "gzip") > 0:
        body = await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL, mtime=0)
        sent |= {"Content-Encoding": "gzip", "ETag": f"W/{etag}"}  # another representation of the same content
    return Response(body, headers=sent, media_type="application/json")


async def not_modified(
    request: Request, repository: Repository, etag: str, *, headers: Mapping[str, str] | None = None
) -> Response | None:
    """The 304 answer to a GET of a client that has the entity already; None for any other."""
    if request.method != "GET" or not etag_matches(request.headers.get("if-none-match"), etag):
        return None
    return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=await _headers(repository, etag, headers))


async def _headers(repository: Repository, etag: str, further: Mapping[str, str] | None) -> dict[str, str]:
    sent = {"ETag": etag, "Cache-Control": _CACHE_CONTROL, "Vary": "Accept-Encoding", **(further or {})}
    version = await repository.seed_runs.dataset_version()
    return {**sent, "X-Dataset-Version": version} if version else sent


async def with_prefix(body: bytes, prefix: str) -> bytes:
    """A JSON body whose addresses (the members of every ``links``) start with the prefix of the service."""
    if not prefix:
        return body
    if len(body) < _LARGE_BYTES:
        return _with_prefix(body, prefix)
    return await asyncio.to_thread(_with_prefix, body, prefix)


def _with_prefix(body: bytes, prefix: str) -> bytes:
    def prefixed(members: dict[str, Any]) -> dict[str, Any]:
        if isinstance(links := members.get("links"), dict):
            members["links"] = {name: prefix + link for name, link in links.items()}
        return members

    return encode(json.loads(body, object_hook=prefixed))


async def page_response(
    request: Request, repository: Repository, page: Page, items: Sequence[dict[str, Any]] | Sequence[bytes], limit: int
) -> Response:
    """The answer to a list request; the Link header names the first and the next page.

    Args:
        request: its address is that of the page.
        repository: knows the version of the dataset.
        page: the documents with their total and cursor.
        items: as they are answered; bytes are JSON already.
        limit: most items of a page.
    """
    prefix = prefix_of(request)
    address = prefix + request.scope["path"].removeprefix(prefix)
    parameters = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    links = [f'<{address}?{urlencode(parameters)}>; rel="first"']
    if page.next_cursor:
        following = urlencode([*parameters, ("cursor", page.next_cursor)])
        links.append(f'<{address}?{following}>; rel="next"')
    members = {
        "total": page.total,
        "total_is_exact": page.total_is_exact,
        "limit": limit,
        "next_cursor": page.next_cursor,
    }
    body = await asyncio.to_thread(_list_body, items, members)
    return await data_response(request, repository, body, headers={"Link": ", ".join(links)})


def _list_body(items: Sequence[Any], members: dict[str, Any]) -> bytes:
    encoded = b",".join(item if isinstance(item, bytes) else encode(item) for item in items)
    return b'{"items":[%s],%s' % (encoded, encode(members)[1:])
