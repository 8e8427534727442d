"""Keeps the folder of what can be computed again within its disk budget."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

_UNFINISHED_S: Final = 600.0


class _Entry(NamedTuple):
    used_at: float
    size: int
    path: Path


class DiskCache:
    """The cache folder: a subfolder each for thumbnails, converted graphs, embeddings, exports.

    Every file in it may be removed at any time; it is made again when it is needed.

    Args:
        folder: may be missing.
        max_bytes: the budget.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def trim(self, keep: Path | None = None) -> dict[str, int]:
        """Remove the files unused for longest while there are more bytes than the budget.

        Args:
            keep: is needed now. Files that are being written stay too: ``.tmp``, for ten minutes.

        Returns:
            Bytes that are left, by subfolder.
        """
        now = time.time()
        entries = sorted(self._entries())
        excess = sum(entry.size for entry in entries) - self.max_bytes
        remaining = []
        for entry in entries:
            is_needed = entry.path == keep or (entry.path.suffix == ".tmp" and now - entry.used_at < _UNFINISHED_S)
            if excess > 0 and not is_needed:
                with suppress(OSError):
                    entry.path.unlink()
                    excess -= entry.size
                    continue
            remaining.append(entry)
        return self._by_subfolder(remaining)

    def sizes(self) -> dict[str, int]:
        """Bytes by subfolder."""
        return self._by_subfolder(self._entries())

    def _by_subfolder(self, entries: list[_Entry]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for entry in entries:
            name = entry.path.relative_to(self.folder).parts[0]
            sizes[name] = sizes.get(name, 0) + entry.size
        return sizes

    def _entries(self) -> list[_Entry]:
        entries = []
        # Not Path.rglob: it raises FileNotFoundError where a folder is removed during the walk.
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder, name) for name in names):
                with suppress(OSError):  # removed meanwhile
                    status = path.lstat()
                    if path.is_file():
                        # Many file systems do not record every access: the later of the two times counts.
                        entries.append(_Entry(max(status.st_atime, status.st_mtime), status.st_size, path))
        return entries
