"""Private folders, log files that do not grow without end, full disks, and the limit on open files."""

import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.core.exceptions import UserError

_REMEDY: Final = "Set MEDPIX_HOME to a folder that you may write."
_ENOUGH_FILES: Final = 65_536
MAX_LOG_BYTES: Final = 10 * 1024**2
# mongod writes blocks of some MiB, a checkpoint of a training has 20 MiB and more.
_FULL_BELOW: Final = 32 * 1024**2


class FolderError(UserError):
    """A folder of the service cannot be made or written."""


def make_private(folder: Path) -> Path:
    """Make a folder, and those above it, that its owner alone may enter; returns it.

    Raises:
        FolderError: it cannot be made, or cannot be written.
    """
    try:
        if not folder.parent.is_dir():
            make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{folder} cannot be made ({error.strerror}). {_REMEDY}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FolderError(f"{folder} cannot be written. {_REMEDY}")
    return folder


def rotate(log: Path, *, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Move what a log file holds to ``NAME.1`` once it is larger than its limit; an earlier ``NAME.1`` is replaced.

    The file itself is truncated: a process that appends to it goes on at its beginning. Where the disk has no room
    for the copy, only the newer lines that come are kept.
    """
    former = log.with_name(f"{log.name}.1")
    try:
        if log.stat().st_size <= max_bytes:
            return
        try:
            shutil.copyfile(log, former)
        except OSError:
            former.unlink(missing_ok=True)
        os.truncate(log, 0)
    except FileNotFoundError:
        return


def explain_full_disk(*folders: Path) -> str:
    """A sentence about the first folder whose disk has no room for a database or a model; empty where all have.

    A program that fails for want of space can often not even write that to its log.
    """
    for folder in folders:
        with suppress(OSError):
            if (free := shutil.disk_usage(folder).free) < _FULL_BELOW:
                return f"The disk of {folder} is full ({free / 1024**2:.0f} MiB free): make room there."
    return ""


class OpenFilesError(UserError):
    """The system lets this process open too few files."""


def raise_open_files(needed: int) -> None:
    """Let this process and its children open as many files as the system allows.

    Raises:
        OpenFilesError: that is fewer than are needed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise OpenFilesError(
            f"This process may open {soft} files at once, and {needed} are needed. Raise the limit: `ulimit -n 4096`."
        )
