"""Answers that are files: conditional, ranged, cacheable for good."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import Request, Response
from fastapi.responses import FileResponse

from app.core.byte_ranges import keep_satisfiable_ranges
from app.core.exceptions import PreconditionFailedError

_CACHE_CONTROL: Final = "public, max-age=31536000, immutable"


async def image_response(request: Request, etag: str, find: Callable[[], Path], media_type: str) -> Response:
    """A file of an image with a content hash as its ETag: 304 if the client has it, 206 for a range.

    Args:
        request: supplies If-Match, If-None-Match, If-Range and Range.
        etag: the quoted entity tag.
        find: finds or makes the file; runs in a thread.
        media_type: of the file.

    Raises:
        NotFoundError: the file is not there.
        PreconditionFailedError: If-Match names other content.
        RangeNotSatisfiableError: the range lies outside the file.
    """
    headers = {"ETag": etag, "Cache-Control": _CACHE_CONTROL}
    unchanged = not_modified(request, headers)
    if unchanged:
        return unchanged
    return await file_response(request, await asyncio.to_thread(find), media_type, headers)


def not_modified(request: Request, headers: dict[str, str]) -> Response | None:
    """The 304 answer to a client that has the entity of the ETag among the headers; None for any other.

    Raises:
        PreconditionFailedError: If-Match does not name the entity; it comes before If-None-Match (RFC 9110, 13.2.2).
    """
    if_match = request.headers.get("if-match")
    # Compared strongly: a weak tag matches nothing (RFC 9110, 13.1.1).
    if if_match is not None and not {"*", headers["ETag"]} & {tag.strip() for tag in if_match.split(",")}:
        raise PreconditionFailedError(f"The content has another entity tag than If-Match names: {headers['ETag']}.")
    if etag_matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return None


async def file_response(request: Request, path: Path, media_type: str, headers: dict[str, str]) -> Response:
    """A file, or the ranges of it that were asked for; its headers alone for HEAD.

    Args:
        request: supplies If-Range and Range.
        path: the file.
        media_type: of it.
        headers: of the answer, an ETag among them.

    Raises:
        RangeNotSatisfiableError: the range lies outside the file.
    """
    status = await asyncio.to_thread(path.stat)
    if request.scope["state"]["is_head"]:
        described = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(status.st_size)}
        return Response(headers=described, media_type=media_type)
    keep_satisfiable_ranges(request.scope, headers["ETag"], status.st_size)
    response = FileResponse(path, headers=headers, media_type=media_type, stat_result=status)
    # The file's time says when it was written here, not when the content changed.
    del response.headers["last-modified"]
    return response


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names an entity tag; weak and strong tags compare alike."""
    if if_none_match is None:
        return False
    named = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in named or etag.removeprefix("W/") in named
