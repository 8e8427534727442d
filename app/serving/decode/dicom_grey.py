"""DICOM grey values to the grey levels that a viewer shows: modality LUT, VOI LUT or window, padding, inversion."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_windowing
from pydicom.valuerep import DSfloat

from app.serving.decode.dicom_header import code, functional_groups, numbers, table_entries
from app.serving.decode.levels import NOTHING, linear, percentile_range
from ml.dataset.preprocess import strips

Floats: TypeAlias = NDArray[np.float64]
Transform: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]

_VOI_FUNCTIONS: Final = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})
_NO_CONTRAST: Final = "The {} of the DICOM file shows no contrast and was not used."


@dataclass(frozen=True, slots=True)
class _View:
    """A VOI transformation: from the values of the modality to those that are shown.

    Attributes:
        levels: from such values to grey levels, 0 to 255.
        is_window: it is one, so that grey levels never fall where values rise.
        name: of the window or lookup table; None where it is made from the values themselves.
        note: that says so.
    """

    levels: Transform
    is_window: bool
    name: str | None
    note: str


def grey_levels(values: NDArray[Any], dataset: Dataset, frame: int) -> tuple[NDArray[np.uint8], list[str]]:
    """A frame as a viewer shows it.

    Padding is left out of the range and drawn black. The first VOI LUT or window of the file is used; those that would
    leave an image without any contrast are passed over. Without one, the image is stretched between two percentiles.

    Args:
        values: as stored, (rows, columns).
        dataset: of the file.
        frame: index from 0, for what the functional groups say of it.

    Returns:
        Grey levels, 0 black and 255 white, and notes in sentences.
    """
    is_padding = _padding(values, dataset)
    rescale, note, is_calibrated = _modality(dataset, frame)
    notes = [note] if note else []
    inverted = (
        code(dataset, "PhotometricInterpretation") == "MONOCHROME1"
        or code(dataset, "PresentationLUTShape") == "INVERSE"
    )
    levels = np.zeros(values.shape, dtype=np.uint8)
    extremes: Floats | None = None
    for view in _views(values, dataset, frame, rescale, is_padding, use_window=is_calibrated):
        if view.is_window:  # two values tell, and a file can have many windows
            extremes = _extremes(values, rescale, is_padding) if extremes is None else extremes
            if np.ptp(_eight_bits(view.levels(extremes))) == 0:
                notes.append(_NO_CONTRAST.format(view.name))
                continue
        low, high, padded = 255, 0, False
        for rows in strips(values):
            grey = _eight_bits(view.levels(rescale(values[rows])))
            levels[rows] = 255 - grey if inverted else grey
            if (hidden := is_padding(values[rows])) is not None and hidden.any():
                levels[rows][hidden] = 0
                grey, padded = grey[~hidden], True
            if grey.size:
                low, high = min(low, int(grey.min())), max(high, int(grey.max()))
        if low < high:
            break
        if view.name is not None:
            notes.append(_NO_CONTRAST.format(view.name))
    notes.append(view.note)
    if padded:
        notes.append("The padding around the image was left out of the range and drawn black.")
    return levels, notes


def _eight_bits(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey levels, 0 to 255, as bytes; a float pixel that is no number is black."""
    finite: NDArray[Any] = np.nan_to_num(levels.round(), nan=0.0, posinf=255.0, neginf=0.0)
    return finite.astype(np.uint8)


def _extremes(
    values: NDArray[Any], rescale: Transform, is_padding: Callable[[NDArray[Any]], NDArray[np.bool_] | None]
) -> Floats:
    """The lowest and the highest value of the modality without padding; zeros where all is padding."""
    found = []
    for rows in strips(values):
        part, hidden = rescale(values[rows]), is_padding(values[rows])
        if (part := part if hidden is None else part[~hidden]).size:
            found += [part.min(), part.max()]
    return np.array([min(found), max(found)] if found else [0, 0], dtype=np.float64)


def _padding(values: NDArray[Any], dataset: Dataset) -> Callable[[NDArray[Any]], NDArray[np.bool_] | None]:
    """Tells which stored values are padding: PixelPaddingValue, or the range to PixelPaddingRangeLimit."""
    is_float = values.dtype.kind == "f"
    prefix = ("DoubleFloat" if values.dtype.itemsize == 8 else "Float") if is_float else ""
    names = [f"{prefix}PixelPadding{end}" for end in ("Value", "RangeLimit")]
    edges = [number for name in names for number in numbers(dataset, name) if math.isfinite(number)]
    if is_float:
        if not edges:
            return lambda part: ~np.isfinite(part)
        least, most = (values.dtype.type(edge) for edge in (min(edges), max(edges)))
        return lambda part: ~np.isfinite(part) | ((part >= least) & (part <= most))
    if not edges:
        return lambda _: None
    # Devices write a negative value as an unsigned one; as bits of the stored type both are the same. So they are as
    # the bits that are stored, of which padding may have more.
    info, (lowest, highest) = np.iinfo(values.dtype), _stored_range(dataset)
    wrapped = sorted(_wrapped(edge, int(info.min), int(info.max)) for edge in edges)
    if wrapped[0] > highest or wrapped[-1] < lowest:
        wrapped = sorted(_wrapped(edge, lowest, highest) for edge in edges)
    low, high = wrapped[0], wrapped[-1]
    return lambda part: (part >= low) & (part <= high)


def _wrapped(value: float, lowest: int, highest: int) -> int:
    """The integer of a range that has the same lower bits as a value."""
    return (int(value) - lowest) % (highest - lowest + 1) + lowest


def _stored_range(dataset: Dataset) -> tuple[int, int]:
    """The lowest and the highest value that stored pixels can have; for float ones an idea of it."""
    bits = int(dataset.BitsStored)
    is_signed = dataset.PixelRepresentation == 1 or "PixelData" not in dataset
    lowest = -(2 ** (bits - 1)) if is_signed else 0
    return lowest, lowest + 2**bits - 1


def _modality(dataset: Dataset, frame: int) -> tuple[Transform, str | None, bool]:
    """The modality LUT or rescale as a function, a note where it cannot be used, and whether windows then apply."""
    tables = dataset.get("ModalityLUTSequence")
    if tables and ("LUTDescriptor" in tables[0] or "LUTData" in tables[0]):  # an empty item stands for none
        table = _lookup_table(tables[0], dataset, least=_stored_range(dataset)[0])
        if table is not None:
            return table[0], None, True
        note = "The DICOM file's modality lookup table cannot be used; the values were read as they are stored."
        return lambda part: np.asarray(part, dtype=np.float64), note, False
    groups = list(functional_groups(dataset, frame, "PixelValueTransformationSequence"))
    slope = next((values[0] for group in groups if (values := numbers(group, "RescaleSlope"))), 1.0)
    intercept = next((values[0] for group in groups if (values := numbers(group, "RescaleIntercept"))), 0.0)
    if not math.isfinite(slope) or not math.isfinite(intercept) or slope == 0:
        note = "The DICOM file's rescale slope or intercept cannot be used; the values were read as they are stored."
        return lambda part: np.asarray(part, dtype=np.float64), note, False
    return lambda part: np.asarray(part, dtype=np.float64) * slope + intercept, None, True


def _views(
    values: NDArray[Any],
    dataset: Dataset,
    frame: int,
    rescale: Transform,
    is_padding: Callable[[NDArray[Any]], NDArray[np.bool_] | None],
    *,
    use_window: bool,
) -> Iterator[_View]:
    """Ways to show a frame, the best first; the last one always serves."""
    note = ""
    for group in functional_groups(dataset, frame, "FrameVOILUTSequence") if use_window else ():
        if sequence := group.get("VOILUTSequence"):
            # A table's first input is of the values behind the rescale, which can be negative where pixels are not.
            least = float(rescale(np.array(_stored_range(dataset), dtype=np.float64)).min())
            if (table := _lookup_table(sequence[0], dataset, least)) is not None:
                yield _lookup_view(*table)
            else:
                note = "The DICOM file's VOI lookup table cannot be used. "
        for view in _windows(group):
            yield replace(view, note=note + view.note)
    hidden = is_padding(values)
    low, high, name = percentile_range(values if hidden is None else values[~hidden], rescale) or NOTHING
    note += f"The DICOM file has no window that can be used; it was read from {name}: {low:g} to {high:g}."
    yield _View(lambda part: linear(part, low, high), is_window=False, name=None, note=note)


def _windows(group: Dataset) -> Iterator[_View]:
    """The first windows of a data set or functional group, of those that can be used."""
    centres, widths = numbers(group, "WindowCenter"), numbers(group, "WindowWidth")
    function = code(group, "VOILUTFunction")
    for centre, width in zip(centres, widths, strict=False):
        if not math.isfinite(centre) or not math.isfinite(width) or width <= 0:
            continue
        chosen = function if function in _VOI_FUNCTIONS else "LINEAR"
        if chosen == "LINEAR" and width < 1:  # not defined in PS3.3 C.11.2.1.2.1; what is meant is clear
            chosen = "LINEAR_EXACT"
        values = f"centre {centre:g}, width {width:g}" + (f", {chosen}" if chosen != "LINEAR" else "")
        note = f"The DICOM file was read with its window: {values}."
        yield _View(_windowing(centre, width, chosen), is_window=True, name=f"window ({values})", note=note)


def _windowing(centre: float, width: float, function: str) -> Transform:
    """Windowing by pydicom, told that the output has 8 bits unsigned."""
    view = Dataset()
    view.PhotometricInterpretation, view.PixelRepresentation, view.BitsStored = "MONOCHROME2", 0, 8
    view.VOILUTFunction = function
    view.WindowCenter, view.WindowWidth = (DSfloat(value, auto_format=True) for value in (centre, width))
    return lambda part: apply_windowing(part, view)


def _lookup_view(lookup: Transform, top: float) -> _View:
    note = "The DICOM file was read with its VOI lookup table."
    return _View(lambda part: lookup(part) * (255.0 / top), is_window=False, name="VOI lookup table", note=note)


def _lookup_table(item: Dataset, dataset: Dataset, least: float) -> tuple[Transform, float] | None:
    """A modality or VOI LUT as a function, and the largest value that it can give; None where it cannot be used.

    pydicom's own functions wrap around where a table has more entries than its values have bits for, or where its
    first input is negative.

    Args:
        item: of the sequence.
        dataset: of the file.
        least: of the values that are looked up; it tells the sign of the first input, which an implicit VR does not.
    """
    descriptor, data = numbers(item, "LUTDescriptor"), item.get("LUTData")
    if len(descriptor) != 3 or not all(number.is_integer() for number in descriptor) or data is None:
        return None
    entries, first, bits = (int(number) for number in descriptor)
    entries = entries % 2**16 or 2**16
    if least < 0 and first >= 2**15:
        first -= 2**16
    table: NDArray[Any] | None = np.atleast_1d(np.asarray(data))
    if isinstance(data, bytes):
        table = table_entries(data, entries, bits, little=bool(dataset.original_encoding[1]))
    if table is None or table.size < entries or table.dtype.kind not in "iu" or not 1 <= bits <= 16:
        return None
    values = table[:entries].astype(np.float64)

    def lookup(part: NDArray[Any]) -> NDArray[Any]:
        index = np.nan_to_num(np.rint(np.asarray(part, dtype=np.float64)) - first, nan=0.0)
        entries: NDArray[Any] = values[np.clip(index, 0, values.size - 1).astype(np.intp)]
        return entries

    return lookup, max(2.0**bits - 1, float(values.max()))
