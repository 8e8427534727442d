"""The header of a DICOM file: what its pixels need and its modality; no element about the patient is kept."""

import io
import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator, MutableSequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset, read_sequence
from pydicom.hooks import hooks, raw_element_value
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from app.core.exceptions import ContentTooLargeError, UnprocessableError

# Values that do not keep to the standard would be quoted in warnings, and they may be a patient's.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom\.")

_MAGIC: Final = b"DICM"
_PREAMBLE: Final = 128
# At all depths; pydicom takes about a second for so many. A frame of a multi-frame image has about 60.
_MAX_ELEMENTS: Final = 200_000
_ELEMENT_HEADER: Final = 8  # bytes
# Of an element that is a number or a code; no attribute that is used has more.
_MAX_VALUES: Final = 16
_MAX_VALUE_BYTES: Final = 1024
# Items of sequences and fragments of pixel data; pydicom takes seconds for the million that fit into an upload.
_MAX_ITEMS: Final = 100_000
_ITEM: Final = b"\xfe\xff\x00\xe0"
_LAST_TAG: Final = 0x7FE00010  # PixelData
PIXEL_KEYWORDS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_KEYWORDS: Final = (
    *PIXEL_KEYWORDS,
    "SOPClassUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PresentationLUTShape",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *(
        f"{kind}{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
)
_TAGS: Final[list[BaseTag | int]] = [
    BaseTag(tag) for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None
]
# Numbers that are written as text (VR DS or IS).
_TEXTS: Final = frozenset(
    {
        "NumberOfFrames",
        "RescaleSlope",
        "RescaleIntercept",
        "WindowCenter",
        "WindowWidth",
        "PixelSpacing",
        "ImagerPixelSpacing",
        "NominalScannedPixelSpacing",
        "PixelAspectRatio",
    }
)
_EXPLICIT_VR: Final = re.compile(rb"[A-Z]{2}")
_TEXT_VR: Final = (None, "DS", "IS", "UN")
_CODE: Final = re.compile(r"[A-Z0-9_ ]{1,16}")
# Group 0008 (or 0002, the file meta information) is the first of every data set.
_FIRST_GROUPS: Final = (b"\x08\x00", b"\x02\x00", b"\x00\x08")


def is_dicom(data: bytes) -> bool:
    """Whether a file is DICOM; the preamble, the prefix and the file meta information may be missing."""
    if data[_PREAMBLE : _PREAMBLE + len(_MAGIC)] == _MAGIC or data.startswith(_MAGIC):
        return True
    if data[:2] not in _FIRST_GROUPS or len(data) < 16:
        return False
    if _EXPLICIT_VR.fullmatch(data[4:6]):
        return True
    length = int.from_bytes(data[4:8], "little")  # implicit: the length stands in the place of the VR
    return data[0] != 0 and data[3] == 0 and length < min(len(data), 1024) and length % 2 == 0


def read_header(data: bytes, max_inflated: int) -> Dataset:
    """The elements of a DICOM file that are needed to show its image, with the transfer syntax in ``file_meta``.

    Where the file does not say its transfer syntax, the attribute ``is_syntax_guessed`` of the data set is true.

    The file meta information is read alone before anything else. pydicom's own reader would inflate a deflated
    data set without a bound.

    Args:
        data: the file.
        max_inflated: bytes that a deflated data set may have.

    Raises:
        ContentTooLargeError: a deflated data set is larger.
        UnprocessableError: a deflated data set is cut or damaged, or there are more elements or sequence items than
            any device writes.
    """
    stream = _HeaderStream(data)
    prefixed = data[_PREAMBLE : _PREAMBLE + len(_MAGIC)] == _MAGIC
    stream.seek(_PREAMBLE + len(_MAGIC) if prefixed else len(_MAGIC) if data.startswith(_MAGIC) else 0)
    meta = _file_meta(stream, data)
    _shorten(meta, "TransferSyntaxUID")
    syntax = UID(str(meta.get("TransferSyntaxUID") or "").strip("\0 "))
    if syntax == DeflatedExplicitVRLittleEndian:
        stream = _HeaderStream(_inflate(data[stream.tell() :], max_inflated))
    is_guessed = not syntax
    if is_guessed:
        syntax = _guessed_syntax(data[stream.tell() : stream.tell() + 6])
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    if stream.getvalue().count(_ITEM if little else _ITEM[1::-1] + _ITEM[:1:-1]) > _MAX_ITEMS:
        raise UnprocessableError(f"The DICOM file has more than {_MAX_ITEMS} sequence items or fragments.")
    dataset = read_dataset(
        stream, implicit, little, stop_when=lambda tag, *_: int(tag) > _LAST_TAG, specific_tags=_TAGS
    )
    dataset.set_original_encoding(implicit, little)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.is_syntax_guessed = is_guessed
    if "SOPClassUID" not in dataset:
        dataset.SOPClassUID = meta.get("MediaStorageSOPClassUID")
    _shorten(dataset, "SOPClassUID")
    return dataset


class _HeaderStream(io.BytesIO):
    """A data set that refuses to be read where it has more elements than any device writes.

    pydicom reads the header of every element and sequence item in a call of its own, also of those that it then skips.
    Values of the same length are counted too.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of the base class.

        Raises:
            UnprocessableError: more than ``_MAX_ELEMENTS`` were read.
        """
        if size == _ELEMENT_HEADER:
            self._count += 1
            if self._count > _MAX_ELEMENTS:
                raise UnprocessableError(f"The header of the DICOM file has more than {_MAX_ELEMENTS} elements.")
        return super().read(size)


def _convert_value(
    raw: RawDataElement,
    data: dict[str, Any],
    *,
    encoding: str | MutableSequence[str] | None = None,
    ds: Dataset | None = None,
    **kwargs: Any,
) -> None:
    """Convert a raw value as pydicom does, and count the elements of a sequence that has a length as well.

    Such a sequence is kept as bytes until something asks for it.

    Raises:
        UnprocessableError: more than ``_MAX_ELEMENTS`` in the sequence.
    """
    if data["VR"] == "SQ" and raw.value:
        stream, encodings = _HeaderStream(raw.value), encoding or "iso8859"
        data["value"] = read_sequence(
            stream, raw.is_implicit_VR, raw.is_little_endian, len(raw.value), encodings, raw.value_tell
        )
    else:
        raw_element_value(raw, data, encoding=encoding, ds=ds, **kwargs)


hooks.register_callback("raw_element_value", _convert_value)


def _file_meta(stream: io.BytesIO, data: bytes) -> Dataset:
    """Read the file meta information, empty where there is none, and leave the stream behind it."""
    start = stream.tell()
    if data[start : start + 2] != b"\x02\x00":
        return Dataset()
    implicit = _EXPLICIT_VR.fullmatch(data[start + 4 : start + 6]) is None  # against the standard, but it occurs
    return read_dataset(stream, implicit, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2)


def _guessed_syntax(first: bytes) -> UID:
    """The syntax of a data set without file meta information, from its first element: tag and VR or length."""
    if _EXPLICIT_VR.fullmatch(first[4:6]) is None:
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if first[0] == 0 else ExplicitVRLittleEndian


def _inflate(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, limit + 1)
    except zlib.error:
        raise UnprocessableError("The deflated data set of the DICOM file is damaged.") from None
    if len(inflated) > limit:
        raise ContentTooLargeError(
            f"The deflated data set of the DICOM file has more than {limit / 1024**2:.0f} MiB when it is inflated."
        )
    if not inflater.eof:
        raise UnprocessableError("The deflated data set of the DICOM file is cut.")
    return inflated


def functional_groups(dataset: Dataset, frame: int, macro: str) -> Iterator[Dataset]:
    """Where to look for an attribute of a frame: its own functional group, the shared one, the data set itself.

    Args:
        dataset: of the file.
        frame: index from 0.
        macro: keyword of the functional group macro's sequence.
    """
    for keyword, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(keyword) or []
        if index < len(groups) and (items := groups[index].get(macro)):
            yield items[0]
    yield dataset


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The values of a numeric element, NaN for those that are none; empty where there is no value.

    Of more than ``_MAX_VALUES`` only the first are returned. Decimal strings may have a comma for the point, as some
    devices write them.
    """
    if keyword not in dataset:
        return []
    _shorten(dataset, keyword)
    element = dataset.get_item(keyword)
    value: Any = element.value
    if isinstance(value, bytes) and element.VR in _TEXT_VR and keyword in _TEXTS:
        texts = value.decode("ascii", "replace").strip("\0 ").split("\\")
        return [] if texts == [""] else [_number(text.replace(",", ".")) for text in texts[:_MAX_VALUES]]
    value = dataset[keyword].value
    if value is None or value == "":
        return []
    many = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
    return [_number(one) for one in many[:_MAX_VALUES]]


def table_entries(data: bytes, entries: int, bits: int, *, little: bool) -> NDArray[Any] | None:
    """The entries of a lookup table; None where there are fewer than its descriptor says.

    Args:
        data: words of 16 bits, or bytes where the entries have 8 bits or fewer.
        entries: how many the descriptor says.
        bits: of each entry, as the descriptor says.
        little: whether the file is little-endian.
    """
    if len(data) >= 2 * entries:
        return np.frombuffer(data, dtype="<u2" if little else ">u2", count=entries)
    if bits <= 8 and entries <= len(data) <= entries + 1:  # an odd number of bytes is padded
        return np.frombuffer(data, dtype="u1", count=entries)
    return None


def _shorten(dataset: Dataset, keyword: str) -> None:
    """Cut a value of which only the start is used: it can be as long as the file, and pydicom converts all of it."""
    element: Any = dataset.get_item(keyword) if keyword in dataset else None
    if isinstance(element, RawDataElement) and element.value and len(element.value) > _MAX_VALUE_BYTES:
        dataset[keyword] = element._replace(value=element.value[:_MAX_VALUE_BYTES], length=_MAX_VALUE_BYTES)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if np.isfinite(number) else math.nan


def integer(dataset: Dataset, keyword: str, default: int) -> int:
    """A whole number of the header.

    Raises:
        UnprocessableError: the element has another value.
    """
    values = numbers(dataset, keyword)
    if not values:
        return default
    if not values[0].is_integer():
        raise UnprocessableError(f"The DICOM header cannot be used: {keyword} is not a whole number.")
    return int(values[0])


def code(dataset: Dataset, keyword: str) -> str | None:
    """A code string such as CT or MONOCHROME2; None where it is missing or no code."""
    _shorten(dataset, keyword)
    value = dataset.get(keyword)
    text = str(value).strip("\0 ").upper() if value is not None else ""
    return text if _CODE.fullmatch(text) else None
