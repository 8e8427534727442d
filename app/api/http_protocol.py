"""Uvicorn's HTTP protocol: limits on the head of a request, and one write for the head and body of a response."""

import json
import uuid
from asyncio import AbstractEventLoop, BaseTransport, TimerHandle, Transport
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_HEAD_BYTES: Final = 64 * 1024
# How long what a client still sends is read and dropped, so that a reset does not overtake the answer.
_LINGER_S: Final = 2.0


class HeadTooLargeError(Exception):
    """A request line with its headers is over the limit."""


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
    """Uvicorn's protocol with limits on the time that a request line and its headers take, and on their size.

    Uvicorn limits only the pause between two requests of a connection (``timeout_keep_alive``). The body has a limit
    of its own, in ``BodyLimit``. Its parser takes a head of any size; here one over 64 KiB is answered with 431.
    Responses go out as ``ResponseTransport`` says.
    """

    head_timeout_s: ClassVar[float] = 20.0
    _head_timer: TimerHandle | None = None
    _heads = 0
    _is_in_head = False
    _head_bytes = 0
    _unfinished_bytes = 0
    _is_refused = False

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin to wait for the first request."""
        joined = ResponseTransport(cast("Transport", transport), self.loop)
        super().connection_made(cast("Transport", joined))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Outside of a request, this begins the head of the next one, or is nothing that ever becomes one."""
        if self._is_refused:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
        head = self._heads
        super().data_received(data)
        # The parser keeps a header until it is whole. Data in which the head began may hold other requests too.
        if self._is_in_head and head == self._heads:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > _MAX_HEAD_BYTES and not self._is_refused:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._heads += 1
        self._is_in_head = True
        self._head_bytes = self._unfinished_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise HeadTooLargeError  # ends the parsing

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed."""
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        self._is_refused = True
        self._cancel_head_timer()
        if self.cycle is None or self.cycle.response_complete:  # else it would end up inside the answer before it
            self.transport.write(_head_too_large())
        self.loop.call_later(_LINGER_S, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head is here: the request is answered, however long that takes."""
        self._is_in_head = False
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


def _head_too_large() -> bytes:
    """The answer: a problem document, as all errors are, though no application sees the request."""
    status, request_id = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, uuid.uuid4().hex
    problem = {
        "type": "urn:medpix:problem:request-header-fields-too-large",
        "title": status.phrase,
        "status": status.value,
        "detail": f"The address and the headers together have more than {_MAX_HEAD_BYTES // 1024} KiB. Send less.",
        "instance": "",
        "request_id": request_id,
    }
    body = json.dumps(problem).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\nX-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
