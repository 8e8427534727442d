"""DICOM files to pictures: only what the pixels need is read; no field about the patient is."""

import io
import logging
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, config, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from app.core.exceptions import ApiError, ContentTooLargeError, UnprocessableError, UnsupportedMediaTypeError
from app.core.settings import Settings
from app.serving.decode.decoded_image import DecodedImage, ImageInfo
from app.serving.decode.jpeg import check_scans
from ml.dataset.preprocess import strips

# Values that do not keep to the standard would be quoted in warnings, and they may be a patient's.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

_MAGIC: Final = b"DICM"
_MAGIC_AT: Final = 128
_NATIVE: Final = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
# JPEG baseline and extended, JPEG 2000 lossless and lossy: what Pillow decodes.
_PILLOW: Final = frozenset(
    {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
)
# Its header lies in a zip stream that could unpack to any size.
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_HEADER_BYTES: Final = 4096
_GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_COLOUR: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SHAPE_TAGS: Final = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "PhotometricInterpretation",
)
_PIXEL_TAGS: Final = (
    *_SHAPE_TAGS,
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "PixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
_CONVERT: Final = "Convert it first, for example with `gdcmconv --raw`, or send a PNG."


@dataclass(frozen=True, slots=True)
class _Shape:
    rows: int
    columns: int
    frames: int
    photometric: str
    syntax: str


def is_dicom(data: bytes) -> bool:
    """Whether a file says that it is DICOM."""
    return data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def decode_dicom(data: bytes, settings: Settings, sha256: str) -> DecodedImage:
    """Decode a DICOM file as a reader would see it: its first window, MONOCHROME1 inverted, the middle frame.

    Args:
        data: the file.
        settings: limits.
        sha256: of the file.

    Returns:
        A picture of mode L or RGB; its notes say what was chosen.

    Raises:
        ContentTooLargeError: over the limit of pixels.
        UnsupportedMediaTypeError: compressed or coloured in a way that is not read here.
        UnprocessableError: without an image, cut, damaged or too small.
    """
    try:
        return _decode(data, settings, sha256)
    except ApiError:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises anything on a damaged file, and its words may quote the patient
        raise UnprocessableError("The DICOM file is cut or damaged.") from None


def _decode(data: bytes, settings: Settings, sha256: str) -> DecodedImage:
    if _DEFLATED in data[:_HEADER_BYTES]:
        raise UnsupportedMediaTypeError(f"The DICOM file is deflated, which is not read here. {_CONVERT}")
    shape = _shape(dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(_SHAPE_TAGS)), settings)
    dataset = dcmread(io.BytesIO(data), specific_tags=list(_PIXEL_TAGS))
    if "PixelData" not in dataset:
        raise UnprocessableError("The DICOM file has no image.")
    frame = shape.frames // 2
    if shape.syntax in _PILLOW:
        _check_frame(dataset, shape, frame)
    values = pixel_array(dataset, index=frame)
    notes = []
    if shape.frames > 1:
        notes.append(f"The DICOM file has {shape.frames} frames; frame {frame + 1}, the middle one, was judged.")
    if shape.photometric in _GREY:
        grey, note = _windowed(values, dataset)
        notes.append(note)
        image = Image.fromarray(255 - grey if shape.photometric == "MONOCHROME1" else grey)
    else:
        image = Image.fromarray(values.astype(np.uint8))
    mode = f"DICOM {shape.photometric}"
    info = ImageInfo(sha256, shape.columns, shape.rows, mode, tuple(notes))
    return DecodedImage(image, info)


def _shape(header: Dataset, settings: Settings) -> _Shape:
    syntax = str(header.file_meta.TransferSyntaxUID)
    if "Rows" not in header or "Columns" not in header:
        raise UnprocessableError("The DICOM file has no image.")
    rows, columns, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1)
    if rows * columns > settings.max_pixels:
        limit = settings.max_pixels / 1e6
        raise ContentTooLargeError(
            f"The image has {columns} x {rows} pixels ({rows * columns / 1e6:.0f} megapixels), over {limit:.0f}."
        )
    if min(rows, columns) < settings.min_side:
        raise UnprocessableError(
            f"The image has {columns} x {rows} pixels; each side needs at least {settings.min_side}."
        )
    photometric = str(header.get("PhotometricInterpretation"))
    samples, bits = int(header.get("SamplesPerPixel", 1)), int(header.BitsAllocated)
    known = (samples == 1 and bits in (8, 16) and photometric in _GREY) or (
        samples == 3 and bits == 8 and photometric in _COLOUR
    )
    if syntax not in _NATIVE | _PILLOW or not known or frames < 1:
        raise UnsupportedMediaTypeError(
            "The DICOM file is compressed or coloured in a way that is not read here: it must be grey of 8 or 16 bits "
            f"or colour of 8 bits, uncompressed, JPEG or JPEG 2000. {_CONVERT}"
        )
    return _Shape(rows, columns, frames, photometric, syntax)


def _check_frame(dataset: Dataset, shape: _Shape, index: int) -> None:
    """A compressed frame has a size of its own, which may be of another order than the one in the header."""
    frame = get_frame(dataset.PixelData, index, number_of_frames=shape.frames)
    check_scans(frame)
    with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
        if image.size != (shape.columns, shape.rows):
            raise UnprocessableError("The DICOM file contradicts itself about the size of its image.")


def _windowed(values: NDArray[Any], dataset: Dataset) -> tuple[NDArray[np.uint8], str]:
    """Grey values of 8 bits, and what was done: the first window of the file, else darkest to brightest."""

    def part(rows: slice) -> NDArray[np.float64]:
        return np.asarray(apply_modality_lut(values[rows], dataset), dtype=np.float64)

    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width >= 1:
        # PS3.3 C.11.2.1.2.1
        low, span, shift = centre - 0.5, max(width - 1, 1e-3), 0.5
        note = f"The DICOM file was read with its window: centre {centre:g}, width {width:g}."
    else:
        extents = [(float(strip.min()), float(strip.max())) for strip in map(part, strips(values))]
        low = min(low for low, _ in extents)
        span, shift = max(max(high for _, high in extents) - low, 1e-9), 0.0
        note = "The DICOM file has no window; it was read from its darkest to its brightest value."
    grey = np.empty(values.shape, dtype=np.uint8)
    for rows in strips(values):
        grey[rows] = (np.clip((part(rows) - low) / span + shift, 0.0, 1.0) * 255).round()
    return grey, note


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None where it is not a finite one."""
    if value is None:
        return None
    number = float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value)
    return number if np.isfinite(number) else None
