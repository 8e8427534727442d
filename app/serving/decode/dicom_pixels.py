"""The pixels of one DICOM frame as they are stored, with imagecodecs as pydicom's decoder for compressed frames.

imagecodecs is chosen over pydicom's other plugins because it alone decodes every DICOM codec (libjpeg-turbo for JPEG
of 8 and 12 bits and JPEG Lossless, CharLS, OpenJPEG and RLE) under the BSD licence. No frame can be larger than the
header says: RLE is decoded into a buffer of that size, and the sizes in other frames are compared with it before.
Nor is one shown that is cut: the decoders fill it up without a word.
"""

import math
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from app.core.exceptions import ApiError, UnprocessableError
from app.serving.decode.codestream import (
    CodestreamError,
    FrameHeader,
    check_tiles,
    jpeg_2000_codestream,
    jpeg_2000_header,
    jpeg_header,
)
from app.serving.decode.dicom_header import PIXEL_KEYWORDS
from app.serving.decode.jpeg import check_scans, has_end
from ml.dataset.preprocess import strips

_JPEG: Final = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1})
_JPEG_LS: Final = frozenset({JPEGLSLossless, JPEGLSNearLossless})
JPEG_2000_SYNTAXES: Final = frozenset({JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K})
COMPRESSED: Final = _JPEG | _JPEG_LS | JPEG_2000_SYNTAXES | {RLELossless}
NATIVE: Final = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})

_LONGEST_RUN: Final = 128  # of RLE, in bytes

_PLUGIN: Final = "imagecodecs"
DECODER_DEPENDENCIES: Final = dict.fromkeys(COMPRESSED, (_PLUGIN,))


def is_available(uid: str) -> bool:
    """Whether this plugin decodes a transfer syntax; pydicom asks."""
    return uid in COMPRESSED


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Decode one compressed frame; pydicom calls this, and shapes and converts what comes back."""
    syntax = runner.transfer_syntax
    if syntax == RLELossless:
        runner.set_option("planar_configuration", 1)
        return _decode_rle(source, runner)
    samples = runner.samples_per_pixel
    if syntax in _JPEG:
        # The colours as they are stored: pydicom knows from the header which ones they are.
        space = {1: "GRAYSCALE", 3: "YCBCR"}.get(samples)
        values = imagecodecs.jpeg8_decode(source, colorspace=space, outcolorspace=space)
    elif syntax in _JPEG_LS:
        values = imagecodecs.jpegls_decode(source)
    else:
        values = imagecodecs.jpeg2k_decode(source, planar=False)
        if samples == 3 and runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
            runner.set_option("photometric_interpretation", "RGB")  # OpenJPEG has undone the transform
    if values.size != runner.rows * runner.columns * samples:
        raise ValueError("the frame has another size than the header says")
    runner.set_option("bits_allocated", values.dtype.itemsize * 8)
    if samples > 1:
        runner.set_option("planar_configuration", 0)
    return values.tobytes()


def _decode_rle(source: bytes, runner: DecodeRunner) -> bytes:
    """An RLE frame (PS3.5 Annex G), in planes.

    ``imagecodecs.dicomrle_decode`` is not used: it leaves what is missing black, and refuses a segment that is longer
    than it must be by a byte of padding.

    Raises:
        ValueError: another number of segments than the header says, or one that is cut.
    """
    pixels, samples, size = runner.rows * runner.columns, runner.samples_per_pixel, runner.bits_allocated // 8
    offsets = np.frombuffer(source, dtype="<u4", count=16)
    if int(offsets[0]) != samples * size or not size:
        raise ValueError("the frame has another number of segments than the header says")
    ends = [*offsets[2 : samples * size + 1].tolist(), len(source)]
    out = np.empty((samples, pixels, size), dtype=np.uint8)
    buffer = bytearray(pixels + _LONGEST_RUN)
    for index, (start, end) in enumerate(zip(offsets[1:].tolist(), ends, strict=False)):
        try:
            written = len(imagecodecs.packbits_decode(source[start:end], out=buffer))
        except imagecodecs.ImcdError as error:
            if "OUTPUT_TOO_SMALL" not in str(error):
                raise
            written = pixels  # the run that did not fit started behind them
        if written < pixels:
            raise ValueError("a segment of the frame is cut")
        sample, byte = divmod(index, size)
        out[sample, :, size - 1 - byte] = np.frombuffer(buffer, dtype=np.uint8, count=pixels)
    return out.tobytes()


for _syntax in COMPRESSED:
    get_decoder(_syntax).add_plugin(_PLUGIN, (__name__, decode_frame.__name__))


def stored_pixels(dataset: Dataset, frame: int) -> tuple[NDArray[Any], str]:
    """The values of one frame and their photometric interpretation.

    Args:
        dataset: with checked Rows, Columns, NumberOfFrames, SamplesPerPixel and BitsAllocated.
        frame: index from 0.

    Returns:
        Array (rows, columns) or (rows, columns, 3) of the stored type, YBR colours converted to RGB.

    Raises:
        UnprocessableError: the pixel data do not fit the header, or are cut or damaged.
    """
    syntax: UID = dataset.file_meta.TransferSyntaxUID
    try:
        if syntax in COMPRESSED:
            source = get_frame(dataset.PixelData, frame, number_of_frames=dataset.NumberOfFrames)
            # pydicom sees this one frame alone, so that it decodes what was checked.
            dataset.PixelData = encapsulate([_checked_frame(source, dataset, syntax)])
            dataset.NumberOfFrames, frame = 1, 0
        else:
            _check_length(dataset)
        values, properties = _decoded(dataset, frame)
    except ApiError:
        raise
    except Exception:  # noqa: BLE001 - pydicom and the codecs raise anything, and their words may quote the header
        name = f"{syntax.name} " if syntax in COMPRESSED else ""
        raise UnprocessableError(f"The {name}pixel data of the DICOM file are cut or damaged.") from None
    photometric = str(properties["photometric_interpretation"])
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        for rows in strips(values):  # pydicom converts in float32, which takes many times the memory
            values[rows] = convert_color_space(values[rows], photometric, "RGB")
        photometric = "RGB"
    return values, photometric


def _decoded(dataset: Dataset, frame: int) -> tuple[NDArray[Any], dict[str, Any]]:
    """A frame by pydicom, with its values in the low bits.

    Old files have them in the upper bits of a word, and say so by a HighBit above BitsStored - 1; pydicom reads the
    lower bits whatever it says. Where the lowest bits are in use, HighBit is wrong and is left out of account.
    """
    syntax, stored, high = dataset.file_meta.TransferSyntaxUID, int(dataset.BitsStored), int(dataset.HighBit)
    decoder = get_decoder(syntax)
    shift = high + 1 - stored
    if shift > 0 and syntax not in COMPRESSED:
        dataset.BitsStored = high + 1
        values, properties = decoder.as_array(dataset, index=frame, raw=True)
        dataset.BitsStored = stored
        if values.dtype.kind in "iu" and not int(np.bitwise_or.reduce(values, axis=None)) % 2**shift:
            values >>= shift
            return values, properties
    return decoder.as_array(dataset, index=frame, raw=True, decoding_plugin=_PLUGIN)


def has_unread_pixels(dataset: Dataset) -> bool:
    """Whether there are more pixel data than a header says; compressed ones are not counted.

    A byte that makes an odd length even is none, and zeros of less than a row are padding; other bytes are pixels of
    rows that may be longer than Columns says.
    """
    if dataset.file_meta.TransferSyntaxUID in COMPRESSED:
        return False
    expected, actual = _lengths(dataset)
    surplus = actual - expected
    if surplus <= expected % 2:
        return False
    row = int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated)
    return surplus * 8 >= row or any(dataset[_pixel_keyword(dataset)].value[expected:])


def _pixel_keyword(dataset: Dataset) -> str:
    [keyword] = [keyword for keyword in PIXEL_KEYWORDS if keyword in dataset]
    return keyword


def _lengths(dataset: Dataset) -> tuple[int, int]:
    """How many bytes of pixel data there must be, and how many there are."""
    rows, columns, frames = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
    bits = rows * columns * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) * frames
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        bits = bits * 2 // 3
    return math.ceil(bits / 8), len(dataset[_pixel_keyword(dataset)].value or b"")


def _check_length(dataset: Dataset) -> None:
    rows, columns, frames = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
    expected, actual = _lengths(dataset)
    if actual < expected:
        raise UnprocessableError(
            f"The DICOM header and its pixel data contradict each other: {frames} x {rows} rows x {columns} columns "
            f"take {expected} bytes, and there are {actual}. The file is cut or damaged, or its header is wrong."
        )


def _checked_frame(frame: bytes, dataset: Dataset, syntax: UID) -> bytes:
    """A compressed frame, whose own size may be of another order than the one in the header.

    JP2 boxes are taken off: pydicom reads them in a loop that does not end where a box has no length. ``BitsStored`` is
    raised to the bits of the frame where these are more and values are unsigned.
    """
    if syntax == RLELossless:
        return frame  # it has no header of its own, and is decoded into a buffer of the expected size
    header: FrameHeader | None
    if syntax in JPEG_2000_SYNTAXES:
        frame = jpeg_2000_codestream(frame) or b""
        header = jpeg_2000_header(frame)
    else:
        check_scans(frame)
        header = jpeg_header(frame)
    if header is None:
        raise UnprocessableError(f"The pixel data of the DICOM file are cut or damaged: no {syntax.name} in them.")
    expected = (int(dataset.Columns), int(dataset.Rows), int(dataset.SamplesPerPixel))
    if (header.width, header.height, header.components) != expected:
        raise UnprocessableError(
            "The DICOM file contradicts itself about the size of its image: the header says "
            f"{expected[0]} x {expected[1]} pixels of {expected[2]} sample(s), the compressed frame "
            f"{header.width} x {header.height} of {header.components}."
        )
    if syntax in JPEG_2000_SYNTAXES:
        try:
            check_tiles(frame)
        except CodestreamError as error:
            raise UnprocessableError(f"The {syntax.name} frame of the DICOM file {error}.") from None
    elif syntax in _JPEG and not has_end(frame):  # of JPEG-LS the decoder says so itself
        raise UnprocessableError(f"The {syntax.name} pixel data of the DICOM file are cut: they have no end.")
    allocated = int(dataset.BitsAllocated)
    if header.precision > allocated:  # pydicom would keep the lower bits alone
        raise UnprocessableError(
            f"The DICOM file contradicts itself: BitsAllocated is {allocated}, and the compressed frame has "
            f"{header.precision} bits per sample."
        )
    # Encoders may write signed values without their sign in the upper bits; BitsStored tells where it is.
    if header.precision > int(dataset.BitsStored) and dataset.PixelRepresentation == 0:
        dataset.BitsStored, dataset.HighBit = header.precision, header.precision - 1
    return frame
