"""Private folders, and log files that do not grow without end."""

import shutil
from pathlib import Path
from typing import Final

MAX_LOG_BYTES: Final = 10 * 1024**2


def make_private(folder: Path) -> Path:
    """Make a folder, and those above it, that its owner alone may enter; returns it."""
    if not folder.parent.is_dir():
        make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def rotate(log: Path, *, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Move what a log file holds to ``NAME.1`` once it is larger than its limit; an earlier ``NAME.1`` is replaced.

    The file itself is truncated: a process that appends to it goes on at its beginning.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        with log.open("r+b") as file:
            file.truncate(0)
    except FileNotFoundError:
        return
