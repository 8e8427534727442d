"""PNG files without their metadata: text, colour profiles and the like are never read, so they cannot be refused."""

import zlib
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# What pixels, transparency, orientation and animation need. The last three make an animation known as one.
_KEPT: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"})
_ANCILLARY: Final = 0x20  # of the first letter: lower case (PNG specification, 5.4)


def without_metadata(data: bytes) -> bytes:
    """A PNG file without ancillary chunks that nothing needs, and without needed ones whose checksum is wrong.

    Decoders refuse files for a text chunk that is too long or a wrong checksum in metadata; browsers show them.
    Critical chunks stay as they are, so a damaged image is still found out.

    Args:
        data: a file that starts with the signature.

    Returns:
        The same image; whatever follows a chunk that is cut is kept for the decoder to complain of.
    """
    parts = [SIGNATURE]
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            break
        chunk = data[position:end]
        is_ancillary = bool(kind[0] & _ANCILLARY)
        checksum = int.from_bytes(chunk[-4:])
        if not is_ancillary or (kind in _KEPT and zlib.crc32(memoryview(chunk)[4:-4]) == checksum):
            parts.append(chunk)
        position = end
        if kind == b"IEND":
            return b"".join(parts)
    parts.append(data[position:])
    return b"".join(parts)


def has_deep_colour(data: bytes) -> bool:
    """Whether a PNG file has 16 bits per sample and more than one sample, which Pillow cuts to their upper 8 bits."""
    header = data[len(SIGNATURE) + 8 : len(SIGNATURE) + 18]
    return len(header) == 10 and header[8] == 16 and header[9] in (2, 4, 6)
