"""Sizes that compressed frames declare in their own headers: checked before any decoder allocates memory for them."""

import re
from dataclasses import dataclass
from typing import Final

_JPEG_START: Final = b"\xff\xd8"
# SOC followed by SIZ, which must come first (ITU T.800, A.5.1).
_JPEG_2000_START: Final = b"\xff\x4f\xff\x51"
# Start-of-frame markers: C0 to CF without DHT, JPG and DAC (ITU T.81, B.1.1), and JPEG-LS's F7 (ITU T.87, C.1).
_FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_MARKER: Final = re.compile(rb"\xff([\x01-\xfe])")
_END_OF_HEADER: Final = frozenset({0xD9, 0xDA})


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a compressed frame says of itself.

    Attributes:
        width, height: in pixels.
        components: samples per pixel.
        precision: bits per sample, the most of any component.
    """

    width: int
    height: int
    components: int
    precision: int


def jpeg_header(data: bytes) -> FrameHeader | None:
    """The frame header of a JPEG or JPEG-LS file; None where there is none."""
    if not data.startswith(_JPEG_START):
        return None
    position = len(_JPEG_START)
    while match := _MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker in _END_OF_HEADER:
            return None
        if marker in _WITHOUT_LENGTH:
            continue
        segment = data[position : position + 8]
        if len(segment) < 8:
            return None
        if marker in _FRAME_MARKERS:
            height, width = int.from_bytes(segment[3:5]), int.from_bytes(segment[5:7])
            return FrameHeader(width, height, components=segment[7], precision=segment[2])
        position += max(2, int.from_bytes(segment[:2]))
    return None


def jpeg_2000_codestream(data: bytes) -> bytes | None:
    """The bare codestream, without the JP2 boxes that some writers put around it; None where there is none."""
    start = data.find(_JPEG_2000_START)
    return None if start < 0 else data[start:]


def jpeg_2000_header(codestream: bytes) -> FrameHeader | None:
    """The SIZ segment of a JPEG 2000 codestream (ITU T.800, A.5.1); None where it is cut."""
    size = codestream[len(_JPEG_2000_START) : len(_JPEG_2000_START) + 39]
    if len(size) < 39:
        return None
    right, bottom, left, top = (int.from_bytes(size[at : at + 4]) for at in (4, 8, 12, 16))
    components = int.from_bytes(size[36:38])
    start = len(_JPEG_2000_START) + 38
    depths = codestream[start : start + 3 * components : 3] or size[38:]
    return FrameHeader(right - left, bottom - top, components, precision=max(depth & 0x7F for depth in depths) + 1)
