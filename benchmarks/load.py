"""Load for HTTP servers: closed and open loops on raw connections, so that the client costs them little."""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final

_BOUNDARY: Final = "benchmark-boundary"
_PROBE_EVERY_S: Final = 0.05

LIVE: Final = b"GET /health/live HTTP/1.1\r\nHost: benchmark\r\n\r\n"


@dataclass(slots=True)
class Load:
    """What a loop gave.

    Attributes:
        seconds: how long it ran.
        times: seconds per answer, by status; 0 stands for a lost connection.
        live: seconds per answer of GET /health/live meanwhile.
    """

    seconds: float = 0.0
    times: dict[int, list[float]] = field(default_factory=dict)
    live: list[float] = field(default_factory=list)

    def add(self, status: int, seconds: float) -> None:
        """Take in an answer."""
        self.times.setdefault(status, []).append(seconds)

    @property
    def rate(self) -> float:
        """Answers with status 200 per second."""
        return len(self.times.get(200, ())) / self.seconds

    @property
    def statuses(self) -> dict[int, int]:
        """How many answers had which status."""
        return dict(sorted(Counter({status: len(times) for status, times in self.times.items()}).items()))

    def quantile(self, percent: int, status: int = 200) -> float:
        """Milliseconds within which this many per cent of the answers with a status came."""
        return quantile(self.times.get(status, ()), percent)

    def describe(self) -> str:
        """One line for people."""
        cuts = "  ".join(f"p{percent} {self.quantile(percent):7.1f}" for percent in (50, 95, 99))
        return f"{self.rate:7.1f} images/s   {cuts} ms   {self.statuses}"


def quantile(seconds: Sequence[float], percent: int) -> float:
    """The quantile of some times, in milliseconds; NaN without any."""
    if len(seconds) < 2:
        return 1000 * seconds[0] if seconds else float("nan")
    return 1000 * statistics.quantiles(seconds, n=100)[percent - 1]


def request_bytes(path: str, image: bytes, *headers: str) -> bytes:
    """A whole HTTP request, made once."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: benchmark",
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """A connection that is opened when it is needed, and again after it was lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None
        self._reader = asyncio.StreamReader()

    async def ask(self, request: bytes) -> int:
        """Send a request and read its whole answer; returns the status, 0 where the connection was lost."""
        try:
            if self._reader.at_eof():  # a server hangs up on who was silent for some seconds
                self.close()
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writer.write(request)
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            await self._reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0
        if b"connection: close" in head:
            self.close()
        return int(head[9:12])

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


async def closed_loop(
    port: int, requests: Sequence[bytes], clients: int, seconds: float, *, count: int | None = None
) -> Load:
    """As many clients as said, each asking again as soon as it is answered, for some seconds or requests."""
    source = cycle(requests)
    load = Load()
    started = time.perf_counter()
    left = count if count is not None else 10**12

    async def client() -> None:
        nonlocal left
        with closing(Connection(port)) as connection:
            while (began := time.perf_counter()) < started + seconds and left > 0:
                left -= 1
                load.add(await connection.ask(next(source)), time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Requests that come by chance at a rate, answered or not; times count from when each was due.

    Meanwhile another connection asks for /health/live.
    """
    source, chance, load = cycle(requests), random.Random(0), Load()
    idle: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        connection = idle.pop() if idle else Connection(port)
        load.add(await connection.ask(next(source)), time.perf_counter() - due)
        idle.append(connection)

    started = due = time.perf_counter()
    probing = asyncio.create_task(_probe(port, load.live))
    while due < started + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
        due += chance.expovariate(rate)
    await asyncio.gather(*running)
    load.seconds = time.perf_counter() - started
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)
    for connection in idle:
        connection.close()
    return load


async def _probe(port: int, times: list[float]) -> None:
    with closing(Connection(port)) as connection:
        while True:
            began = time.perf_counter()
            await connection.ask(LIVE)
            times.append(time.perf_counter() - began)
            await asyncio.sleep(_PROBE_EVERY_S)
