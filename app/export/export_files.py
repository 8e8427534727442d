"""Exports kept as files in the disk cache, so that data tools can read parts of them by their address."""

import asyncio
import errno
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import BinaryIO, Final

from app.core.disk_cache import DiskCache
from app.core.exceptions import InsufficientStorageError, UnavailableError

_MAX_BUILDS: Final = 2
_MAX_WAITING: Final = 32
# A file that is being written changes all the time; one that does not was left by a process that was killed.
_ABANDONED_S: Final = 600.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNFINISHED: Final = ".tmp"


class ExportFiles:
    """Makes each file once, whole or not at all, however many requests ask for it at the same time.

    A file that is being made is completed even if its request is gone: the next one finds it.

    Args:
        cache: keeps the folder within its budget; the files that nobody asked for the longest time are removed first.
    """

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._folder = cache.folder / "exports"
        self._builds: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_MAX_BUILDS)

    async def path(self, name: str, make: Callable[[], AsyncGenerator[bytes]]) -> Path:
        """A file of the cache.

        Args:
            name: of the file; it stands for the content.
            make: its bytes, where it is not there yet.

        Raises:
            InsufficientStorageError: the disk is full, or the file is larger than the whole cache may be.
            UnavailableError: too many files are being made.
        """
        path = self._folder / name
        if await asyncio.to_thread(_is_used, path):
            return path
        build = self._builds.get(name)
        if build is None:
            if len(self._builds) >= _MAX_WAITING:
                raise UnavailableError("Too many exports are being made. Try again shortly.")
            build = self._builds[name] = asyncio.create_task(self._build(path, make))
            build.add_done_callback(lambda done: self._forget(name, done))
        await asyncio.shield(build)  # others may wait for it too
        return path

    async def close(self) -> None:
        """Abort what is being made."""
        for build in list(self._builds.values()):
            build.cancel()
        await asyncio.gather(*self._builds.values(), return_exceptions=True)

    def _forget(self, name: str, build: asyncio.Task[None]) -> None:
        del self._builds[name]
        if not build.cancelled():
            build.exception()  # those who waited were told

    async def _build(self, path: Path, make: Callable[[], AsyncGenerator[bytes]]) -> None:
        async with self._slots:
            try:
                file, unfinished = await asyncio.to_thread(self._open)
                try:
                    with file:
                        await self._fill(file, make)
                    await asyncio.to_thread(unfinished.replace, path)
                finally:
                    unfinished.unlink(missing_ok=True)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise InsufficientStorageError(f"The file cannot be kept: {error.strerror}.") from error
        await asyncio.to_thread(self._cache.trim, path)

    def _open(self) -> tuple[BinaryIO, Path]:
        self._folder.mkdir(parents=True, exist_ok=True)
        for other in self._folder.glob(f"*{_UNFINISHED}"):
            with suppress(OSError):
                if time.time() - other.stat().st_mtime > _ABANDONED_S:
                    other.unlink()
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=_UNFINISHED)
        return os.fdopen(handle, "wb"), Path(name)

    async def _fill(self, file: BinaryIO, make: Callable[[], AsyncGenerator[bytes]]) -> None:
        size = 0
        async with aclosing(make()) as parts:
            async for part in parts:
                size += len(part)
                if size > self._cache.max_bytes:
                    budget = self._cache.max_bytes // 1024**2
                    raise InsufficientStorageError(
                        f"The file is larger than the cache may be, {budget} MiB (MEDPIX_CACHE_MAX_MB)."
                    )
                await asyncio.to_thread(file.write, part)
        await asyncio.to_thread(file.flush)


def _is_used(path: Path) -> bool:
    """Note that a file is used now; False if it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
