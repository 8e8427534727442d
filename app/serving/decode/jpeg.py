"""JPEG files that would keep a decoder busy for minutes, recognised by their markers alone."""

import re
from typing import Final

from app.core.exceptions import UnprocessableError

# Encoders write about ten scans; each one makes the decoder go through the whole image again.
MAX_SCANS: Final = 100

_SIGNATURE: Final = b"\xff\xd8"
_SCAN: Final = 0xDA
_END: Final = 0xD9
_WITHOUT_LENGTH: Final = frozenset({0x01, 0xD8})
# In coded data FF is followed by 00 or by a restart marker (D0 to D7); every other pair is a marker (ITU T.81, B.1.1).
_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def check_scans(data: bytes) -> None:
    """Refuse a JPEG of more scans than any encoder writes; other files pass.

    A progressive JPEG of 0.2 MB with a thousand empty scans takes the decoder many seconds, and one of
    10 MB an hour; neither the size of the file nor that of its image says so.

    Raises:
        UnprocessableError: more than ``MAX_SCANS``.
    """
    # Cheap and never too low; metadata and what follows the end of the image can make it too high.
    if data.startswith(_SIGNATURE) and data.count(b"\xff\xda") > MAX_SCANS and _has_more_scans(data, MAX_SCANS):
        raise UnprocessableError(
            f"The JPEG file has more than {MAX_SCANS} scans; save it again as an ordinary JPEG or PNG."
        )


def _has_more_scans(data: bytes, limit: int) -> bool:
    scans, position = 0, len(_SIGNATURE)
    while match := _MARKER.search(data, position):
        kind, position = match[1][0], match.end()
        if kind == _END:
            return False
        if kind not in _WITHOUT_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2]))
        scans += kind == _SCAN
        if scans > limit:
            return True
    return False
