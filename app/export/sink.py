"""A file that is only written to, and whose bytes are taken away as they come."""

import io


class Sink(io.RawIOBase):
    """Collects what is written until it is taken; can neither be read nor rewound."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is not: what was taken is gone."""
        return False

    def tell(self) -> int:
        """How many bytes were written."""
        return self._position

    def write(self, data: object) -> int:
        """Keep bytes until they are taken."""
        part = bytes(data)  # type: ignore[call-overload]
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def take(self) -> bytes:
        """All that was written since the last time."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
