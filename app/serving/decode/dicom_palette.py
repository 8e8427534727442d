"""PALETTE COLOR: indices to RGB, with plain or segmented lookup tables.

pydicom's ``apply_color_lut`` is not used: it expands segments without a bound (10 MB of them can ask for 10^11
entries), and wraps indices of 16 bits around in a table of 8.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from app.core.exceptions import UnprocessableError
from app.serving.decode.dicom_header import numbers, table_entries
from ml.dataset.preprocess import strips

_COLOURS: Final = ("Red", "Green", "Blue")
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2
# An entry takes six words at most, as an indirect segment of one entry with words of 8 bits.
_MAX_WORDS: Final = 6 * 2**16
_UNUSABLE: Final = "The colour palette of the DICOM file cannot be used: {}."


def apply_palette(values: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """The colours of palette indices.

    Args:
        values: indices, (rows, columns).
        dataset: with the palette.

    Returns:
        Array (rows, columns, 3).

    Raises:
        UnprocessableError: the palette is missing, incomplete or damaged.
    """
    tables, firsts = zip(*(_table(dataset, colour) for colour in _COLOURS), strict=True)
    if len({len(table) for table in tables}) != 1 or len(set(firsts)) != 1:
        raise UnprocessableError(_UNUSABLE.format("its three tables differ in size"))
    palette = np.stack(tables, axis=1)
    if palette.max() > 255:
        palette >>= 8
    colours: NDArray[np.uint8] = palette.astype(np.uint8)
    coloured = np.empty((*values.shape, 3), dtype=np.uint8)
    for rows in strips(values):
        coloured[rows] = colours[np.clip(values[rows].astype(np.int64) - firsts[0], 0, len(colours) - 1)]
    return coloured


def _table(dataset: Dataset, colour: str) -> tuple[NDArray[np.uint16], int]:
    """The table of one colour, and the index that its first entry stands for."""
    descriptor = numbers(dataset, f"{colour}PaletteColorLookupTableDescriptor")
    if len(descriptor) != 3 or not all(number.is_integer() for number in descriptor):
        raise UnprocessableError(_UNUSABLE.format(f"it has no descriptor for {colour.lower()}"))
    entries, first, bits = (int(number) for number in descriptor)
    entries = entries % 2**16 or 2**16
    if dataset.PixelRepresentation == 1 and first >= 2**15:  # an implicit VR does not tell its sign
        first -= 2**16
    little = bool(dataset.original_encoding[1])
    plain = dataset.get(f"{colour}PaletteColorLookupTableData")
    if isinstance(plain, bytes) and plain:
        table = table_entries(plain, entries, bits, little=little)
        if table is None:
            raise UnprocessableError(_UNUSABLE.format(f"its table for {colour.lower()} has not {entries} entries"))
        return table.astype(np.uint16), first
    segmented = dataset.get(f"Segmented{colour}PaletteColorLookupTableData")
    if not isinstance(segmented, bytes) or not segmented:
        raise UnprocessableError(_UNUSABLE.format(f"it has no table for {colour.lower()}"))
    size = 1 if bits <= 8 else 2
    count = min(len(segmented) // size, _MAX_WORDS)
    words = np.frombuffer(segmented, dtype=f"{'<' if little else '>'}u{size}", count=count).tolist()
    try:
        expanded = _expanded(words, entries, size)
    except IndexError:
        expanded = []
    if len(expanded) < entries:
        raise UnprocessableError(_UNUSABLE.format(f"the segments for {colour.lower()} are cut or damaged"))
    return np.asarray(expanded, dtype=np.uint16), first


def _expanded(words: list[int], entries: int, size: int) -> list[int]:
    """The entries that segments stand for (PS3.3 C.7.9.2), and no more than there must be.

    Args:
        words: the segments.
        entries: of the whole table.
        size: bytes per word.

    Raises:
        IndexError: a segment is cut, without a length, or of an unknown kind.
    """
    table: list[int] = []
    position = 0
    while position + 1 < len(words) and len(table) < entries:
        kind, length = words[position : position + 2]
        position += 2
        if length == 0:  # such segments add nothing, and repeated by indirect ones they would take hours
            raise IndexError(position)
        if kind == _INDIRECT:
            # An offset in bytes, of four bytes or of two words with the lower one first; it must not lead to
            # another indirect segment.
            parts = words[position : position + 4 // size]
            source = sum(part << (8 * size * order) for order, part in enumerate(parts)) // size
            position += 4 // size
            for _ in range(length):
                if len(table) >= entries:
                    break
                source = _append(table, words, source, entries)
        else:
            position = _append(table, words, position - 2, entries)
    return table


def _append(table: list[int], words: list[int], position: int, entries: int) -> int:
    """Add a discrete or linear segment, by one entry at least or it raises ``IndexError``; the place behind it."""
    kind, length = words[position], words[position + 1]
    position += 2
    if length == 0 or position >= len(words):
        raise IndexError(position)
    if kind == _DISCRETE:
        table += words[position : position + length]
        position += length
    elif kind == _LINEAR:
        start, end = table[-1], words[position]
        steps = min(length, entries)
        table += np.around(start + (end - start) * np.arange(1, steps + 1) / max(1, length)).astype(int).tolist()
        position += 1
    else:
        raise IndexError(kind)
    del table[entries:]
    return position
