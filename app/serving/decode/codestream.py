"""What compressed frames declare in their own headers: checked before any decoder allocates memory for them."""

import math
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

# The decoder keeps about 12 KiB for every tile, of however few pixels. Encoders write one tile for a frame, or tiles
# of 128 x 128 pixels and more, of which the largest image that is accepted has about 1,600.
MAX_TILES: Final = 4096
# Encoders write about ten, and up to 256 more for packed packet headers.
_MAX_SEGMENTS: Final = 1000
_START_OF_TILE, _END_OF_CODESTREAM = 0xFF90, b"\xff\xd9"
_TILE_HEADER: Final = 12
# Component transforms of Part 2 (ITU T.801, A.3): CBD, MCT, MCC and MCO. DICOM has them only in syntaxes of their own,
# which no decoder here reads; OpenJPEG copies them for every tile.
_PART_2: Final = frozenset({0xFF74, 0xFF75, 0xFF77, 0xFF78})


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a compressed frame says of itself.

    Attributes:
        width, height: in pixels.
        components: samples per pixel.
        precision: bits per sample, the most of any component.
        marker: of the start of the frame, which tells a JPEG's process; 0 of JPEG 2000.
    """

    width: int
    height: int
    components: int
    precision: int
    marker: int = 0


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
            return FrameHeader(width, height, components=segment[7], precision=segment[2], marker=marker)
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


class CodestreamError(ValueError):
    """A JPEG 2000 codestream that must not be decoded; the message ends a sentence that begins with the codec."""


def check_tiles(codestream: bytes) -> None:
    """Check the tiles of a JPEG 2000 codestream, from its main header and the headers of its tile-parts (ITU T.800, A).

    OpenJPEG takes memory for all of them before it reads any, and leaves those black that are missing.

    Args:
        codestream: with a whole SIZ segment.

    Raises:
        CodestreamError: more than ``MAX_TILES``, transforms of Part 2, a main header of too many segments, or tiles or
            tile-parts that are missing.
    """
    size = codestream[len(_JPEG_2000_START) + 4 : len(_JPEG_2000_START) + 36]
    right, bottom, _, _, width, height, left, top = (int.from_bytes(size[at : at + 4]) for at in range(0, 32, 4))
    if width == 0 or height == 0 or right <= left or bottom <= top:
        raise CodestreamError("is damaged: its tiles have no size")
    tiles = math.ceil((right - left) / width) * math.ceil((bottom - top) / height)
    if tiles > MAX_TILES:
        raise CodestreamError(f"is divided into {tiles} tiles; at most {MAX_TILES} are read")
    parts = _tile_parts(codestream, _end_of_main_header(codestream))
    if len(parts) < tiles:
        raise CodestreamError(f"is cut: {len(parts)} of its {tiles} tiles are there")
    if any(found < declared for found, declared in parts.values()):
        raise CodestreamError("is cut: parts of its tiles are missing")


def _end_of_main_header(codestream: bytes) -> int:
    """Where the first tile-part starts, or the codestream ends."""
    position = len(_JPEG_2000_START) - 2  # of the marker SIZ
    for _ in range(_MAX_SEGMENTS):
        marker = int.from_bytes(codestream[position : position + 2])
        if marker == _START_OF_TILE or position + 4 > len(codestream):
            return position
        if marker in _PART_2:
            raise CodestreamError("has component transforms of JPEG 2000 Part 2, which are not supported")
        position += 2 + max(2, int.from_bytes(codestream[position + 2 : position + 4]))
    raise CodestreamError(f"has more than {_MAX_SEGMENTS} segments before its pixels")


def _tile_parts(codestream: bytes, position: int) -> dict[int, tuple[int, int]]:
    """By the index of each tile: how many parts of it there are, and how many it says that there are (0: unknown)."""
    parts: dict[int, tuple[int, int]] = {}
    while int.from_bytes(codestream[position : position + 2]) == _START_OF_TILE:
        header = codestream[position : position + _TILE_HEADER]
        if len(header) < _TILE_HEADER:
            break
        tile, length, declared = int.from_bytes(header[4:6]), int.from_bytes(header[6:10]), header[11]
        found, before = parts.get(tile, (0, 0))
        parts[tile] = found + 1, max(before, declared)
        if length == 0:  # up to the end of the codestream
            if not codestream.rstrip(b"\0").endswith(_END_OF_CODESTREAM):
                raise CodestreamError("is cut: it has no end")
            break
        position += max(_TILE_HEADER, length)
    return parts
