"""A decoded upload, whatever its format."""

from dataclasses import dataclass
from typing import Final

from PIL import Image

from app.core.exceptions import ContentTooLargeError, UnprocessableError

# An image with a shorter side shows no anatomy.
MIN_SIDE: Final = 16


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of an uploaded file without its pixels.

    Attributes:
        sha256: of the uploaded bytes.
        width, height: in pixels, as stored.
        mode: of the file, such as L, P, RGB, RGBA, CMYK or I;16.
        notes: what was done to read it that a reader should know, in sentences.
        header_modality: Modality (0008,0060) of a DICOM file, such as CT, MR or CR; None where there is none.
    """

    sha256: str
    width: int
    height: int
    mode: str
    notes: tuple[str, ...] = ()
    header_modality: str | None = None


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded upload.

    Attributes:
        image: the decoded image in its own mode.
        info: the file that it came from.
    """

    image: Image.Image
    info: ImageInfo


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image by the size in its header, before its pixels are decoded.

    Args:
        width: in pixels.
        height: in pixels.
        max_pixels: the most pixels that are accepted.

    Raises:
        ContentTooLargeError: it has more pixels.
        UnprocessableError: a side is shorter than ``MIN_SIDE``.
    """
    pixels = width * height
    if pixels > max_pixels:
        raise ContentTooLargeError(
            f"The image has {width} x {height} pixels ({pixels / 1e6:.0f} megapixels), over {max_pixels / 1e6:.0f}."
        )
    if min(width, height) < MIN_SIDE:
        raise UnprocessableError(f"The image has {width} x {height} pixels; each side needs at least {MIN_SIDE}.")
