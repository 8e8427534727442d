"""PNG files without their metadata: text, colour profiles and the like are never read, so they cannot be refused."""

import math
import zlib
from typing import Final

from app.core.exceptions import UnprocessableError

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Ancillary chunks that transparency and animation need. The last three make an animation known as one.
_KEPT: Final = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
_EXIF: Final = b"eXIf"
# Samples per pixel by the colour type: grey, RGB, palette, grey and RGB with alpha.
_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Of the interlacing: the first column and row, and the steps (PNG specification, 8.2).
_PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_SURPLUS: Final = 2**20  # some encoders write a little too much, and decoders pass over it
_INFLATED_AT_ONCE: Final = 2**20
_ANCILLARY: Final = 0x20  # of the first letter: lower case (PNG specification, 5.4)


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """A PNG file without ancillary chunks that nothing needs or whose checksum is wrong, and its Exif metadata.

    Decoders refuse files for a text chunk that is too long or a wrong checksum in metadata; browsers show them.
    Critical chunks stay as they are, so a damaged image is still found out.

    Args:
        data: a file that starts with the signature.

    Returns:
        The same image, with all that follows a chunk that is cut for the decoder to complain of; and the first Exif
        chunk, empty where there is none.
    """
    parts, exif = [SIGNATURE], b""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            break
        chunk = data[position:end]
        is_ancillary = bool(kind[0] & _ANCILLARY)
        is_needed = kind in _KEPT or (kind == _EXIF and not exif)
        if not is_ancillary:
            parts.append(chunk)
        elif is_needed and zlib.crc32(memoryview(chunk)[4:-4]) == int.from_bytes(chunk[-4:]):
            if kind == _EXIF:
                exif = chunk[8:-4]
            else:
                parts.append(chunk)
        position = end
        if kind == b"IEND":
            return b"".join(parts), exif
    parts.append(data[position:])
    return b"".join(parts), exif


def check_inflated(data: bytes) -> None:
    """Refuse a PNG file whose compressed pixels inflate to much more than its image takes.

    libpng inflates all of them, which takes minutes for 10 MB of zeros behind a small image.

    Args:
        data: without metadata; what is cut or damaged passes, for the decoder to complain of.

    Raises:
        UnprocessableError: by more than ``_SURPLUS``.
    """
    header = data[len(SIGNATURE) + 8 : len(SIGNATURE) + 21]
    width, height, depth, kind, interlaced = (
        *(int.from_bytes(header[at : at + 4]) for at in (0, 4)),
        *(int.from_bytes(header[at : at + 1]) for at in (8, 9, 12)),
    )
    bits = depth * _SAMPLES.get(kind, 1)
    limit = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            limit += rows * (1 + math.ceil(columns * bits / 8))
    inflater, position, size = zlib.decompressobj(), len(SIGNATURE), 0
    while position + 12 <= len(data) and not inflater.eof:
        length, kind_of_chunk = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        rest = data[position + 8 : position + 8 + length] if kind_of_chunk == b"IDAT" else b""
        while rest and not inflater.eof:
            try:
                size += len(inflater.decompress(rest, _INFLATED_AT_ONCE))
            except zlib.error:
                return
            if size > limit + _SURPLUS:
                raise UnprocessableError("The PNG file has more compressed pixels than its image; save it again.")
            rest = inflater.unconsumed_tail
        position += 12 + length


def has_deep_colour(data: bytes) -> bool:
    """Whether a PNG file has 16 bits per sample and more than one sample, which Pillow cuts to their upper 8 bits."""
    header = data[len(SIGNATURE) + 8 : len(SIGNATURE) + 18]
    return len(header) == 10 and header[8] == 16 and header[9] in (2, 4, 6)
