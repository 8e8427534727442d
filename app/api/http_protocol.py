"""Hangs up connections that do not send a request: idle ones, and those that send its head byte by byte."""

from asyncio import BaseTransport, TimerHandle, Transport
from typing import ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol with a limit on the time that a request line and its headers take.

    Uvicorn limits only the pause between two requests of a connection (``timeout_keep_alive``). The body has a limit
    of its own, in ``BodyLimit``.
    """

    head_timeout_s: ClassVar[float] = 20.0
    _head_timer: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(cast("Transport", transport))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Outside of a request, this begins the head of the next one, or is nothing that ever becomes one."""
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """The head is here: the request is answered, however long that takes."""
        self._cancel_head_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._cancel_head_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._head_timer is None:  # what comes later does not lengthen the time
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._hang_up)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _hang_up(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:  # a pipelined head waits for the answer before it
            self.transport.close()
        else:
            self._expect_head()
