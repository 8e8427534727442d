"""A file that is written to, and whose bytes are taken away as they come."""

import io
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Final

_MEMORY_BYTES: Final = 8 * 1024**2
_PART_BYTES: Final = 256 * 1024


class Sink(io.RawIOBase):
    """Collects what is written until it is taken; what was not taken can still be overwritten.

    So a zip can complete the header of an entry after its content, as in a file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting = SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115  # close() closes it
        self._taken = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, as far back as nothing was taken."""
        return True

    def tell(self) -> int:
        """Where the next byte goes, counted from the first that was ever written."""
        return self._taken + self._waiting.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place among the bytes that were not taken.

        Raises:
            io.UnsupportedOperation: they were taken, or the place is not counted from the start.
        """
        if whence != io.SEEK_SET or offset < self._taken:
            raise io.UnsupportedOperation("what was taken cannot be changed")
        return self._taken + self._waiting.seek(offset - self._taken)

    def write(self, data: object) -> int:
        """Keep bytes until they are taken."""
        return self._waiting.write(data)  # type: ignore[call-overload, no-any-return]  # bytes or a buffer

    def take(self) -> bytes:
        """All that was written since the last time."""
        return b"".join(self.take_parts())

    def take_parts(self) -> Iterator[bytes]:
        """The same in parts of bounded size."""
        self._waiting.seek(0)
        while part := self._waiting.read(_PART_BYTES):
            self._taken += len(part)
            yield part
        self._waiting.seek(0)
        self._waiting.truncate()

    def close(self) -> None:
        """Drop what was not taken."""
        self._waiting.close()
        super().close()
