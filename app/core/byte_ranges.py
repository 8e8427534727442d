"""The Range header of requests for files."""

import re
import sys
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from app.core.exceptions import RangeNotSatisfiableError

_RANGE: Final = re.compile(r"([0-9]*)-([0-9]*)")
# More is an attack or a mistake; the whole file then serves as well.
_MAX_RANGES: Final = 100


def keep_satisfiable_ranges(scope: Scope, etag: str, size: int) -> None:
    """Leave in a request only the byte ranges that can be answered (RFC 9110, sections 13.1.5 and 14.2).

    A Range that is malformed, or whose If-Range names another content, is ignored: the whole file is the answer.
    Starlette's own answers to such requests are plain text.

    Args:
        scope: of the request; its Range and If-Range are replaced.
        etag: the quoted entity tag of the file.
        size: of the file in bytes.

    Raises:
        RangeNotSatisfiableError: no range lies inside the file.
    """
    headers = Headers(scope=scope)
    asked, condition = headers.get("range"), headers.get("if-range")
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in (b"range", b"if-range")]
    # If-Range compares strongly; a date in it says less than the tag, and is not compared.
    if asked is None or (condition is not None and condition.strip() != etag):
        return
    ranges = _byte_ranges(asked, size)
    if ranges is None:
        return
    if not ranges:
        message = f"The file has {size} bytes, and no range that was asked for begins inside it."
        raise RangeNotSatisfiableError(message, headers={"Content-Range": f"bytes */{size}"})
    value = "bytes=" + ",".join(f"{start}-{end}" for start, end in ranges)
    scope["headers"].append((b"range", value.encode()))


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
