"""Uvicorn's HTTP protocol: a time limit on the head of a request, and one write for the head and body of a response."""

from asyncio import AbstractEventLoop, BaseTransport, TimerHandle, Transport
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class ResponseTransport:
    """A transport that sends the head of a response together with the body that follows it.

    Uvicorn writes them one after the other, and uvloop sends each write at once: two system calls, two packets, and a
    process killed between them leaves half a response, which no proxy can ask another replica for. A head that
    nothing follows at once goes out in the next iteration of the event loop.
    """

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold a head back, and send anything else behind the head that is held."""
        if not self._head and data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._send_head)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection when all is sent."""
        self._send_head()
        self._transport.close()

    def _send_head(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class HttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol with a limit on the time that a request line and its headers take.

    Uvicorn limits only the pause between two requests of a connection (``timeout_keep_alive``). The body has a limit
    of its own, in ``BodyLimit``. Responses go out as ``ResponseTransport`` says.
    """

    head_timeout_s: ClassVar[float] = 20.0
    _head_timer: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin to wait for the first request."""
        joined = ResponseTransport(cast("Transport", transport), self.loop)
        super().connection_made(cast("Transport", joined))
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
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._time_out)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _time_out(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:  # a pipelined head waits for the answer before it
            self.transport.close()
        else:
            self._expect_head()
