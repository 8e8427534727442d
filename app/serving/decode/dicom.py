"""DICOM files to images: what a viewer shows of them."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from app.core.exceptions import ApiError, UnprocessableError, UnsupportedMediaTypeError
from app.core.settings import Settings
from app.serving.decode.decoded_image import DecodedImage, ImageInfo, check_size
from app.serving.decode.dicom_grey import grey_levels
from app.serving.decode.dicom_header import PIXEL_KEYWORDS, code, functional_groups, integer, numbers, read_header
from app.serving.decode.dicom_palette import apply_palette
from app.serving.decode.dicom_pixels import COMPRESSED, JPEG_2000_SYNTAXES, NATIVE, has_unread_pixels, stored_pixels
from app.serving.decode.levels import stretch_to_uint8

_SEND_PNG: Final = "Export the image from your viewer as PNG or JPEG and send that."
_COLOURS: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_JPEG_2000_COLOURS: Final = frozenset({"YBR_ICT", "YBR_RCT"})  # of its own colour transforms
# Of the standard's later editions, which pydicom does not name yet.
_NEWER_SYNTAXES: Final = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
_PALETTE: Final = "PALETTE COLOR"
_MONOCHROME: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
# Larger than any detector's; a header that says more is wrong.
_LARGEST_ASPECT: Final = 10.0


def decode_dicom(data: bytes, settings: Settings, sha256: str) -> DecodedImage:
    """Decode a DICOM file as a viewer shows it.

    The middle frame, with its VOI LUT or window or else stretched between percentiles, padding black, MONOCHROME1
    inverted, palettes and YBR as RGB, pixels that are not square resampled.

    Args:
        data: the file.
        settings: limits.
        sha256: of the file.

    Returns:
        An image of mode L or RGB; its notes say what was chosen.

    Raises:
        ContentTooLargeError: over the limit of pixels, or of bytes when inflated.
        UnsupportedMediaTypeError: the codec or the kind of pixels is not supported.
        UnprocessableError: without an image, cut, damaged, contradictory or too small.
    """
    try:
        dataset = read_header(data, max_inflated=2 * settings.max_pixels + settings.max_image_bytes)
    except ApiError:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises anything on a damaged file, and its words may quote the patient
        raise UnprocessableError("The header of the DICOM file is cut or damaged.") from None
    try:
        return _decode(dataset, settings, sha256)
    except ApiError:
        raise
    except Exception:  # noqa: BLE001 - as above
        raise UnprocessableError("The DICOM file is cut or damaged, or its header contradicts itself.") from None


def _decode(dataset: Dataset, settings: Settings, sha256: str) -> DecodedImage:
    _check_content(dataset)
    frames = _check_shape(dataset, settings)
    _check_pixels(dataset)
    frame = frames // 2
    values, photometric = stored_pixels(dataset, frame)
    notes = []
    if frames > 1:
        notes.append(f"The DICOM file has {frames} frames; frame {frame + 1}, the middle one, was analysed.")
    if has_unread_pixels(dataset):
        notes.append(
            "There are more pixel data in the DICOM file than its header says (Rows, Columns, NumberOfFrames); "
            "the rest was not read."
        )
    if photometric in _MONOCHROME:
        levels, more = grey_levels(values, dataset, frame)
        notes += more
    elif photometric == _PALETTE:
        levels = apply_palette(values, dataset)
    else:
        levels = _eight_bit_colours(values, dataset)
    image, note = _square_pixels(Image.fromarray(levels), dataset, frame, settings.max_pixels)
    notes += [note] if note else []
    info = ImageInfo(
        sha256=sha256,
        width=int(dataset.Columns),
        height=int(dataset.Rows),
        mode=f"DICOM {code(dataset, 'PhotometricInterpretation')}",
        notes=tuple(notes),
        header_modality=code(dataset, "Modality"),
    )
    return DecodedImage(image, info)


def _check_content(dataset: Dataset) -> None:
    """Whether there are pixels, and a codec for them."""
    syntax: UID = dataset.file_meta.TransferSyntaxUID
    if not any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        name = _standard_name(UID(str(dataset.get("SOPClassUID") or "")))
        kind = f": it is of the kind {name}" if name else ""
        raise UnprocessableError(f"The DICOM file has no image{kind}. There are no pixel data in it, or it is cut.")
    if syntax not in COMPRESSED | NATIVE | {DeflatedExplicitVRLittleEndian}:
        name = _standard_name(syntax) or _NEWER_SYNTAXES.get(str(syntax))
        codec = f"{name} ({syntax})" if name else "a private or unknown transfer syntax"
        raise UnsupportedMediaTypeError(f"The DICOM file is encoded as {codec}, which is not supported. {_SEND_PNG}")
    encapsulated = "PixelData" in dataset and dataset["PixelData"].is_undefined_length
    if encapsulated != (syntax in COMPRESSED):
        if dataset.is_syntax_guessed:
            raise UnprocessableError(
                "The DICOM file cannot be read: it has no transfer syntax (file meta information); its pixel data are "
                f"compressed, and it does not say how. {_SEND_PNG}"
            )
        state = "compressed" if encapsulated else "not compressed"
        raise UnprocessableError(
            f"The DICOM file contradicts itself: its transfer syntax is {syntax.name}, and its pixel data are {state}. "
            f"{_SEND_PNG}"
        )


def _standard_name(uid: UID) -> str | None:
    """The name that the standard has for a UID; only such a name may be quoted from a header."""
    return uid.name if uid and uid.name != str(uid) else None


def _check_shape(dataset: Dataset, settings: Settings) -> int:
    """Check the size of the image, and return the number of frames."""
    rows, columns = (integer(dataset, keyword, 0) for keyword in ("Rows", "Columns"))
    frames = integer(dataset, "NumberOfFrames", 1)
    if rows < 1 or columns < 1 or frames < 0:
        raise UnprocessableError("The DICOM file has no image: its header lacks Rows, Columns or a number of frames.")
    check_size(columns, rows, settings.max_pixels)
    dataset.NumberOfFrames = frames = max(1, frames)
    return frames


def _check_pixels(dataset: Dataset) -> None:
    """Check the kind of pixels, and write defaults for what a header may lack."""
    samples, bits = integer(dataset, "SamplesPerPixel", 1), integer(dataset, "BitsAllocated", 0)
    photometric = code(dataset, "PhotometricInterpretation") or ("MONOCHROME2" if samples == 1 else "RGB")
    if bits == 0:
        raise UnprocessableError("The DICOM file cannot be read: its header lacks BitsAllocated.")
    grey = samples == 1 and (photometric in _MONOCHROME or photometric == _PALETTE) and bits in (1, 8, 16, 32, 64)
    depths = {"RGB": (8, 16, 32), **dict.fromkeys(_JPEG_2000_COLOURS, (8, 16))}.get(photometric or "", (8,))
    colour = samples == 3 and photometric in _COLOURS and bits in depths
    if not grey and not colour:
        raise UnsupportedMediaTypeError(
            f"The pixels of the DICOM file are not supported: {samples} sample(s) of {bits} bits, {photometric}. "
            f"{_SEND_PNG}"
        )
    syntax: UID = dataset.file_meta.TransferSyntaxUID
    if photometric in _JPEG_2000_COLOURS and syntax not in JPEG_2000_SYNTAXES:
        raise UnprocessableError(
            f"The DICOM file contradicts itself: {photometric} are colours of JPEG 2000, and its transfer syntax is "
            f"{syntax.name}. {_SEND_PNG}"
        )
    stored = integer(dataset, "BitsStored", bits)
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.PhotometricInterpretation = samples, bits, photometric
    dataset.BitsStored = stored = stored if 1 <= stored <= bits else bits
    high = integer(dataset, "HighBit", stored - 1)
    dataset.HighBit = high if stored <= high < bits else stored - 1
    dataset.PixelRepresentation = integer(dataset, "PixelRepresentation", 0)
    if samples > 1:
        dataset.PlanarConfiguration = integer(dataset, "PlanarConfiguration", 0)


def _eight_bit_colours(values: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    if values.dtype == np.uint8 and int(dataset.BitsStored) == 8:
        return values
    return stretch_to_uint8(values)


def _square_pixels(image: Image.Image, dataset: Dataset, frame: int, max_pixels: int) -> tuple[Image.Image, str | None]:
    """Resample an image whose pixels are not square: anatomy would be stretched in it.

    Returns:
        The image and a note; the image as it is, and None, where nothing is to be done.
    """
    groups = list(functional_groups(dataset, frame, "PixelMeasuresSequence"))
    spacings = [
        spacing
        for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
        for group in groups
        if len(spacing := numbers(group, keyword)) == 2 and all(side > 0 for side in spacing)
    ]
    if not spacings:
        return image, None
    vertical, horizontal = spacings[0]
    aspect = vertical / horizontal  # height of a pixel in widths
    if abs(aspect - 1) < 0.01 or not 1 / _LARGEST_ASPECT <= aspect <= _LARGEST_ASPECT:
        return image, None
    width, height = (image.width, image.height * aspect) if aspect > 1 else (image.width / aspect, image.height)
    shrink = min(1.0, math.sqrt(max_pixels / (width * height)))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    note = f"The pixels are {vertical:g} high and {horizontal:g} wide; the image was resampled to square ones."
    return image.resize(size, Image.Resampling.BILINEAR), note
