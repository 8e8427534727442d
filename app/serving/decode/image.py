"""Uploaded bytes to a picture: everything that can be wrong with them is found here, before any queue."""

import hashlib
import io
from dataclasses import replace
from typing import Final

from PIL import Image, UnidentifiedImageError

from app.core.exceptions import ContentTooLargeError, UnprocessableError, UnsupportedMediaTypeError
from app.core.settings import Settings
from app.serving.decode.decoded_image import DecodedImage, ImageInfo
from app.serving.decode.dicom import decode_dicom, is_dicom
from app.serving.decode.jpeg import check_scans

FORMATS: Final = ("PNG", "JPEG")
# What Pillow calls a JPEG that carries further ones behind it.
_MULTI_PICTURE: Final = "MPO"

# Pillow's own limit warns or raises by the size of its build; ours is checked on the header of every file.
Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes, settings: Settings, sha256: str | None = None) -> DecodedImage:
    """Decode an uploaded PNG, JPEG or DICOM file.

    The header is read first: nothing is decoded that is over a limit. Animated files are refused,
    because only one of their frames would be judged; of a JPEG with several pictures (MPO, as phones
    write them) the first one is the photograph, and is read.

    Args:
        data: the file.
        settings: limits.
        sha256: of the file, where it is known already.

    Raises:
        ContentTooLargeError: over the limit of bytes or of pixels.
        UnsupportedMediaTypeError: not a PNG, JPEG or DICOM file, or one of a kind that is not read here.
        UnprocessableError: empty, cut, damaged, animated, too small, or made to keep a decoder busy.
    """
    if not data:
        raise UnprocessableError("The image is empty (0 bytes).")
    if len(data) > settings.max_image_bytes:
        limit = settings.max_image_bytes / 1024**2
        raise ContentTooLargeError(f"The image has {len(data) / 1024**2:.1f} MiB; the limit is {limit:.1f} MiB.")
    sha256 = sha256 or hashlib.sha256(data).hexdigest()
    if is_dicom(data):
        return decode_dicom(data, settings, sha256)
    image = _open(data)
    _check_header(image, settings)
    check_scans(data)
    width, height, mode = *image.size, image.mode
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnprocessableError(f"The image is cut or damaged: {error}.") from error
    info = ImageInfo(sha256, width, height, mode)
    if image.format == _MULTI_PICTURE:
        count = getattr(image, "n_frames", 2)
        info = replace(info, notes=(f"The JPEG file holds {count} pictures; the first one was judged.",))
    return DecodedImage(image, info)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnsupportedMediaTypeError("The file is not an image of a known format (PNG, JPEG or DICOM).") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnprocessableError(f"The image is cut or damaged: {error}.") from error


def _check_header(image: Image.Image, settings: Settings) -> None:
    width, height = image.size
    if width * height > settings.max_pixels:
        limit = settings.max_pixels / 1e6
        raise ContentTooLargeError(
            f"The image has {width} x {height} pixels ({width * height / 1e6:.0f} megapixels), over {limit:.0f}."
        )
    if min(width, height) < settings.min_side:
        raise UnprocessableError(
            f"The image has {width} x {height} pixels; each side needs at least {settings.min_side}."
        )
    if getattr(image, "is_animated", False) and image.format != _MULTI_PICTURE:
        frames = getattr(image, "n_frames", 2)
        raise UnprocessableError(f"The file is an animation of {frames} frames; send one frame as PNG or JPEG.")
