"""Private folders, files written whole or not at all, rotated logs, full disks, and the limit on open files."""

import glob
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on the disk.

    Raises:
        OSError: the disk is full or failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_running(pid: int) -> bool:
    """Whether there is a process with an id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path to write to that takes the place of ``path`` only when the block ends without an error.

    What earlier processes left half-written for the same path is removed. Threads may write the same path at once.

    Args:
        path: its folder is made where it is missing.
        durable: wait until the file is on the disk; not needed for what can be computed again.

    Raises:
        OSError: the disk is full or failed; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = stale.name.removeprefix(f".{path.name}.").partition("-")[0]
        if pid.isdigit() and not is_running(int(pid)):
            stale.unlink(missing_ok=True)
    # The suffix tells DiskCache that the file is being written.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
