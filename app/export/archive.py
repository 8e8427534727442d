"""A zip of images with their metadata, in the layout that Hugging Face calls ImageFolder."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Final

from app.export.sink import Sink

Row = dict[str, Any]

# A zip entry has a time; it is fixed, so that the same selection gives the same bytes.
_TIME: Final = (2024, 1, 1, 0, 0, 0)
_SPOOL_BYTES: Final = 8 * 1024**2


class ImageArchive:
    """``SPLIT/NAME.png`` for each image, and ``SPLIT/metadata.jsonl`` with its ``file_name`` and fields.

    ``load_dataset("imagefolder")`` guesses the type of a column in each split separately and refuses
    columns that differ, as one that is null throughout a split does. So a missing text is an empty
    one, a list is joined with semicolons, and a number that a whole split lacks is left out of all.

    PNG files are stored as they are: they are compressed already.
    """

    def __init__(self) -> None:
        # Sizes and check sums stand before each entry, so that the zip can be read while it arrives: the sink keeps an
        # entry until it is whole.
        self._sink = Sink()
        self._zip = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._lines: dict[str, SpooledTemporaryFile[bytes]] = {}
        # Per split, the number columns that have a value; and those that some split lacks.
        self._present: dict[str, set[str]] = {}
        self._missing: set[str] = set()

    def add(self, row: Row, numbers: set[str], file: Path) -> bytes:
        """Add an image; returns the bytes that are ready.

        Args:
            row: its fields.
            numbers: names of the columns that are integers.
            file: the PNG file.

        Raises:
            FileNotFoundError: the image file is not there.
        """
        split = row["split"]
        entry: Row = {"file_name": file.name}
        for name, value in row.items():
            # The image file itself becomes the column `image`.
            entry["image_id" if name == "image" else name] = value if name in numbers else _as_text(value)
        if split not in self._lines:
            self._lines[split] = SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115  # close() closes it
            self._present[split] = set()
        self._lines[split].write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._present[split] |= {name for name in numbers if row[name] is not None}
        self._missing = {name for name in numbers if any(name not in present for present in self._present.values())}
        self._zip.writestr(_entry(f"{split}/{file.name}", zipfile.ZIP_STORED), file.read_bytes())
        return self._sink.take()

    def end(self) -> Iterator[bytes]:
        """The metadata and the zip's directory."""
        for split, lines in self._lines.items():
            with lines, self._zip.open(_entry(f"{split}/metadata.jsonl", zipfile.ZIP_DEFLATED), "w") as target:
                lines.seek(0)
                for line in lines:
                    target.write(self._without_missing(line))
            yield from self._sink.take_parts()
        self._zip.close()
        yield from self._sink.take_parts()
        self.close()

    def close(self) -> None:
        """Close the temporary files, also of an archive that is not complete."""
        for lines in self._lines.values():
            lines.close()
        with suppress(ValueError):  # an entry is open
            self._zip.close()
        self._sink.close()

    def _without_missing(self, line: bytes) -> bytes:
        if not self._missing:
            return line
        record = {name: value for name, value in json.loads(line).items() if name not in self._missing}
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return "; ".join(value) if isinstance(value, list) else str(value)


def _entry(name: str, compression: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _TIME)
    info.compress_type = compression
    info.external_attr = 0o644 << 16
    return info
