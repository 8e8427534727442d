"""Uploaded bytes to an image: everything that can be wrong with them is found here, before any queue."""

import hashlib
import io
import struct
from dataclasses import replace
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin

from app.core.exceptions import ContentTooLargeError, UnprocessableError, UnsupportedMediaTypeError
from app.core.settings import Settings
from app.serving.decode.codestream import jpeg_header
from app.serving.decode.decoded_image import DecodedImage, ImageInfo, check_size
from app.serving.decode.dicom import decode_dicom
from app.serving.decode.dicom_header import is_dicom
from app.serving.decode.exif import orientation
from app.serving.decode.jpeg import check_scans
from app.serving.decode.jpeg import without_metadata as jpeg_without_metadata
from app.serving.decode.levels import stretch_to_uint8
from app.serving.decode.png import SIGNATURE, check_inflated, has_deep_colour
from app.serving.decode.png import without_metadata as png_without_metadata

_JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
# What Pillow calls a JPEG that carries further ones behind it.
_MULTI_PICTURE: Final = "MPO"
_DEEP_GREY: Final = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


def decode(data: bytes, settings: Settings, sha256: str | None = None) -> DecodedImage:
    """Decode an uploaded PNG, JPEG or DICOM file.

    The header is read first: nothing is decoded that is over a limit. Animated files are refused,
    because only one of their frames would be analysed; of a JPEG with several images (MPO, as phones
    write them) the first one is the photograph, and is read. Metadata are left out before anything is
    decoded; of them only the Exif orientation is applied. 16 bits per sample become 8 between two
    percentiles.

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
    is_png = data.startswith(SIGNATURE)
    if not is_png and not data.startswith(_JPEG_SIGNATURE):
        if is_dicom(data):
            return decode_dicom(data, settings, sha256)
        raise UnsupportedMediaTypeError("The file is not an image of a known format (PNG, JPEG or DICOM).")
    data, exif = png_without_metadata(data) if is_png else jpeg_without_metadata(data)
    if not is_png:
        _check_codec(data)
    image = _open(data, is_png=is_png)
    _check_header(image, settings)
    check_scans(data)
    is_deep = is_png and has_deep_colour(data)
    if is_deep:  # Pillow stops by itself where the image is full
        check_inflated(data)
    info = ImageInfo(sha256, *image.size, image.mode)
    try:
        image.load()
        if is_deep:
            image = _deep_colour(data)
        elif image.mode in _DEEP_GREY:
            image = Image.fromarray(stretch_to_uint8(np.asarray(image)))
    except (OSError, SyntaxError, ValueError, EOFError, imagecodecs.PngError) as error:
        raise UnprocessableError(f"The image is cut or damaged: {error}.") from error
    if image.format == _MULTI_PICTURE:
        count = getattr(image, "n_frames", 2)
        info = replace(info, notes=(f"The JPEG file holds {count} images; the first one was analysed.",))
    method = orientation(exif)
    return DecodedImage(image if method is None else image.transpose(method), info)


def _open(data: bytes, *, is_png: bool) -> Image.Image:
    """The header of a PNG or JPEG file.

    ``Image.open`` is not used: it warns and refuses by a limit that holds for the whole process, and the limit of
    uploads is a setting.
    """
    stream = io.BytesIO(data)
    try:
        return PngImagePlugin.PngImageFile(stream) if is_png else JpegImagePlugin.jpeg_factory(stream)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnprocessableError(f"The image is cut or damaged: {error}.") from error
    except (struct.error, IndexError, KeyError, TypeError) as error:  # of headers that are cut; Image.open expects them
        raise UnprocessableError("The image is cut or damaged: its header cannot be read.") from error


def _check_codec(data: bytes) -> None:
    """Refuse JPEG files of a kind that is read within DICOM alone; Pillow would say that they are damaged.

    Raises:
        UnsupportedMediaTypeError: JPEG-LS, lossless JPEG, or another number of bits than 8.
    """
    header = jpeg_header(data)
    if header is None:
        return
    kind = {0xF7: "JPEG-LS", **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "JPEG Lossless")}.get(header.marker)
    if kind is None and header.precision != 8 and header.marker in range(0xC0, 0xD0):
        kind = f"a JPEG of {header.precision} bits per sample"
    if kind is not None:
        raise UnsupportedMediaTypeError(
            f"The file is {kind}, which is read within DICOM files alone; send it as JPEG of 8 bits, or as PNG."
        )


def _deep_colour(data: bytes) -> Image.Image:
    """A PNG with 16 bits per sample and several samples; transparency is not stretched."""
    values: NDArray[Any] = imagecodecs.png_decode(data)
    channels = values.shape[-1]
    if channels in (1, 3):
        return Image.fromarray(stretch_to_uint8(values))
    # What is fully transparent is not seen, and may hold any value.
    colours, alpha = stretch_to_uint8(values[..., :-1], values[..., -1] > 0), (values[..., -1:] >> 8).astype(np.uint8)
    return Image.fromarray(np.concatenate([colours, alpha], axis=-1))


def _check_header(image: Image.Image, settings: Settings) -> None:
    check_size(*image.size, settings.max_pixels)
    if getattr(image, "is_animated", False) and image.format != _MULTI_PICTURE:
        frames = getattr(image, "n_frames", 2)
        raise UnprocessableError(f"The file is an animation of {frames} frames; send one frame as PNG or JPEG.")
