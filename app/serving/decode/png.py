"""PNG files without their metadata: text, colour profiles and the like are never read, so they cannot be refused."""

import zlib
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Ancillary chunks that transparency and animation need. The last three make an animation known as one.
_KEPT: Final = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
_EXIF: Final = b"eXIf"
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


def has_deep_colour(data: bytes) -> bool:
    """Whether a PNG file has 16 bits per sample and more than one sample, which Pillow cuts to their upper 8 bits."""
    header = data[len(SIGNATURE) + 8 : len(SIGNATURE) + 18]
    return len(header) == 10 and header[8] == 16 and header[9] in (2, 4, 6)
