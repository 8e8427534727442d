"""Answers that are files: conditional, ranged, cacheable for good."""

import asyncio
import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import Request, Response
from fastapi.responses import FileResponse

from app.core.exceptions import RangeNotSatisfiableError
from app.data.repository import NotFoundError

_RANGE: Final = re.compile(r"([0-9]*)-([0-9]*)")
# More is an attack or a mistake; the whole file then serves as well.
_MAX_RANGES: Final = 100
_CACHE_CONTROL: Final = "public, max-age=31536000, immutable"


async def image_response(
    request: Request, etag: str, image: str, find: Callable[[], Path], media_type: str
) -> Response:
    """A file of an image with a content hash as its ETag: 304 if the client has it, 206 for a range.

    Args:
        request: supplies If-None-Match, If-Range and Range.
        etag: the quoted entity tag.
        image: whose file it is, for the error message.
        find: finds or makes the file; runs in a thread.
        media_type: of the file.

    Raises:
        NotFoundError: the file is not there.
        RangeNotSatisfiableError: the range lies outside the file.
    """
    headers = {"ETag": etag, "Cache-Control": _CACHE_CONTROL}
    unchanged = not_modified(request, headers)
    if unchanged:
        return unchanged
    try:
        path = await asyncio.to_thread(find)
    except FileNotFoundError as error:
        message = f"The file of image {image} is not in this service's dataset folder."
        raise NotFoundError(message) from error
    return await file_response(request, path, media_type, headers)


def not_modified(request: Request, headers: dict[str, str]) -> Response | None:
    """The 304 answer to a client that has the entity of the ETag among the headers; None for any other."""
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
    _set_range(request, headers["ETag"], status.st_size)
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


def _set_range(request: Request, etag: str, size: int) -> None:
    """Leave in the request only the byte ranges that can be answered (RFC 9110, sections 13.1.5 and 14.2).

    A Range that is malformed, or whose If-Range names another content, is ignored: the whole file is the answer.

    Raises:
        RangeNotSatisfiableError: no range lies inside the file.
    """
    header, condition = request.headers.get("range"), request.headers.get("if-range")
    request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] not in (b"range", b"if-range")]
    # If-Range compares strongly, and no Last-Modified is sent that a date could equal.
    if header is None or (condition is not None and condition.strip() != etag):
        return
    ranges = _byte_ranges(header, size)
    if ranges is None:
        return
    if not ranges:
        message = f"The file has {size} bytes, and no range that was asked for begins inside it."
        raise RangeNotSatisfiableError(message, headers={"Content-Range": f"bytes */{size}"})
    value = "bytes=" + ",".join(f"{start}-{end}" for start, end in ranges)
    request.scope["headers"].append((b"range", value.encode()))


def _byte_ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """The satisfiable ranges of a Range header, as first and last byte; None where the header is to be ignored."""
    unit, separator, listed = header.partition("=")
    parts = [part.strip() for part in listed.split(",") if part.strip()]
    if unit.strip().lower() != "bytes" or not separator or not 0 < len(parts) <= _MAX_RANGES:
        return None
    ranges = []
    for part in parts:
        match = _RANGE.fullmatch(part)
        if match is None or not (match[1] or match[2]):
            return None
        first, last = _position(match[1]), _position(match[2])
        if first is None:  # a suffix: the last bytes
            first, last = max(0, size - (last or 0)), size - 1
        elif last is None:
            last = size - 1
        elif last < first:
            return None
        if first < size:
            ranges.append((first, min(last, size - 1)))
    return ranges


def _position(digits: str) -> int | None:
    """A number of any length; Python refuses to read more than some thousand digits."""
    if not digits:
        return None
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= len(str(sys.maxsize)) else sys.maxsize
