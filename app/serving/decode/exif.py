"""The orientation that Exif metadata give an image, read without a TIFF parser.

Pillow's parser is not used: it reads every tag of the metadata, wherever in them each tag says that its value is.
"""

from typing import Final, Literal

from PIL import Image

PREFIX: Final = b"Exif\0\0"
_ORDERS: Final[dict[bytes, Literal["little", "big"]]] = {b"II*\0": "little", b"MM\0*": "big"}
_ORIENTATION: Final = 0x0112
_SHORT: Final = 3
_ENTRY: Final = 12  # bytes: tag, type, count, value
_METHODS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(exif: bytes) -> Image.Transpose | None:
    """How an image must be turned to be upright.

    Args:
        exif: a TIFF header and what follows it, with or without the prefix that JPEG files have.

    Returns:
        None where the image is upright, and where the metadata are missing or damaged.
    """
    exif = exif.removeprefix(PREFIX)
    order = _ORDERS.get(exif[:4])
    if order is None:
        return None
    start = int.from_bytes(exif[4:8], order)
    end = start + 2 + _ENTRY * int.from_bytes(exif[start : start + 2], order)
    for at in range(start + 2, min(end, len(exif) - _ENTRY + 1), _ENTRY):
        tag, kind = (int.from_bytes(exif[place : place + 2], order) for place in (at, at + 2))
        if tag == _ORIENTATION:
            return _METHODS.get(int.from_bytes(exif[at + 8 : at + 10], order)) if kind == _SHORT else None
    return None
