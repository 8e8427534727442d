"""JPEG files without their metadata, and those that would keep a decoder busy for minutes; by their markers alone."""

import re
from typing import Final

from app.core.exceptions import UnprocessableError
from app.serving.decode.exif import PREFIX

# Encoders write about ten scans; each one makes the decoder go through the whole image again.
MAX_SCANS: Final = 100
# Before the first scan. Encoders write about ten, and one more for every 64 KB of metadata.
MAX_SEGMENTS: Final = 1000

_SIGNATURE: Final = b"\xff\xd8"
_SCAN: Final = 0xDA
_END: Final = 0xD9
_WITHOUT_LENGTH: Final = frozenset({0x01, 0xD8})
# In coded data FF is followed by 00 or by a restart marker (D0 to D7); every other pair is a marker (ITU T.81, B.1.1).
_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_HEADER_MARKER: Final = re.compile(rb"\xff([\x01-\xfe])")
_FIRST_MARKER: Final = 0xC0  # Pillow refuses a header with a lower one
# Markers behind which Pillow expects no length: JPG, RST, SOI, EOI and JPG0 to JPG13.
_PILLOW_WITHOUT_LENGTH: Final = frozenset({0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_APP1, _APP2 = 0xE1, 0xE2
# APP1 to APP13, APP15 and comments; APP0 and APP14 say how colours are stored.
_METADATA: Final = frozenset({*range(_APP1, 0xEE), 0xEF, 0xFE})
# Multi-Picture Format, by which a file of several images is known; its index has about 50 bytes for each of them.
_MULTI_PICTURE: Final = b"MPF\0"
_MAX_INDEX: Final = 4096


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG file without the segments that nothing needs, and its Exif metadata.

    Pillow joins Exif segments by copying all that it has at each one, which takes minutes for 10 MB of short ones.

    Args:
        data: a file that starts with the signature.

    Returns:
        The same image, with all that follows a segment that is cut for the decoder to complain of; and the first Exif
        segment, empty where there is none.

    Raises:
        UnprocessableError: more than ``MAX_SEGMENTS`` before the first scan.
    """
    parts, exif = [_SIGNATURE], b""
    position, count = len(_SIGNATURE), 0
    while match := _HEADER_MARKER.search(data, position):  # what stands between segments is left out
        kind, start, position = match[1][0], match.start(), match.end()
        end = position
        if kind not in _PILLOW_WITHOUT_LENGTH:
            end += max(2, int.from_bytes(data[position : position + 2]))
        if kind == _SCAN or kind < _FIRST_MARKER or end > len(data):
            parts.append(data[start:])
            break
        count += 1
        if count > MAX_SEGMENTS:
            raise UnprocessableError(
                f"The JPEG file has more than {MAX_SEGMENTS} segments before its pixels; "
                "save it again as an ordinary JPEG or PNG."
            )
        content = data[position + 2 : end]
        if kind == _APP1 and not exif and content.startswith(PREFIX):
            exif = content
        is_index = kind == _APP2 and content.startswith(_MULTI_PICTURE) and len(content) <= _MAX_INDEX
        if kind not in _METADATA or is_index:
            parts.append(data[start:end])
        position = end
    return b"".join(parts), exif


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


def has_end(data: bytes) -> bool:
    """Whether a JPEG file with a start has an end as well, with whatever bytes behind it.

    Decoders may fill up an image that is cut, without a word.
    """
    position = len(_SIGNATURE)
    while match := _MARKER.search(data, position):
        kind, position = match[1][0], match.end()
        if kind == _END:
            return True
        if kind not in _WITHOUT_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2]))
    return False


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
