"""Answers that are files: conditional, ranged, cacheable for good."""

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import Request, Response
from fastapi.responses import FileResponse

from app.core.exceptions import RangeNotSatisfiableError
from app.data.repository import NotFoundError

_RANGE: Final = re.compile(r"bytes=\s*((\d+-\d*|-\d+)\s*(,\s*(\d+-\d*|-\d+)\s*)*)")
_CACHE_CONTROL: Final = "public, max-age=31536000, immutable"


async def file_response(request: Request, etag: str, image: str, find: Callable[[], Path], media_type: str) -> Response:
    """A file with a content hash as its ETag: 304 if the client has it, 206 for a range.

    Args:
        request: supplies If-None-Match and Range.
        etag: the quoted entity tag.
        image: whose file it is, for the error message.
        find: finds or makes the file; runs in a thread.
        media_type: of the file.

    Raises:
        NotFoundError: the file is not there.
        RangeNotSatisfiableError: the range lies outside the file.
    """
    headers = {"ETag": etag, "Cache-Control": _CACHE_CONTROL}
    if etag_matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    try:
        path = await asyncio.to_thread(find)
    except FileNotFoundError as error:
        message = f"The file of image {image} is not in this service's dataset folder."
        raise NotFoundError(message) from error
    response = FileResponse(path, headers=headers, media_type=media_type, stat_result=path.stat())
    # The file's time says when it was copied here, not when the picture changed.
    del response.headers["last-modified"]
    _check_range(request, path.stat().st_size)
    return response


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names an entity tag; weak and strong tags compare alike."""
    if if_none_match is None:
        return False
    named = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in named or etag.removeprefix("W/") in named


def _check_range(request: Request, size: int) -> None:
    """Forget a malformed Range, as RFC 9110 asks; refuse one that lies outside the file."""
    asked = request.headers.get("range")
    if asked is None:
        return
    match = _RANGE.fullmatch(asked)
    if match is None:
        request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
        return
    starts = [part.strip().partition("-")[0] for part in match[1].split(",")]
    if all(start and int(start) >= size for start in starts):
        message = f"The file has {size} bytes."
        raise RangeNotSatisfiableError(message, headers={"Content-Range": f"bytes */{size}"})
