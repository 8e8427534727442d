"""What bad clients cost a good one: memory, threads, descriptors and latency before, during and after.

    python -m benchmarks.overload --data ../shared/MedPix-2.0

200 clients send an upload byte by byte, 500 connections say nothing, 3,000 small requests come 50 at a time, and 100
uploads break off half way. Meanwhile one client asks for a case, for a prediction and for /health/live in turn.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from itertools import cycle
from pathlib import Path
from typing import Final

from app.core.settings import load_settings
from app.data.client import connect
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import DATABASE, IMAGES
from app.data.seed import seed
from benchmarks.load import LIVE, Connection, Load, closed_loop, request_bytes
from benchmarks.serve_models import MODELS, build
from benchmarks.servers import Running, server
from ml.registry.registry import Registry

SLOW: Final = 200
IDLE: Final = 500
SMALL: Final = 3_000
BROKEN: Final = 100
_PAUSE_S: Final = 0.05
_HOST: Final = "127.0.0.1"
Phase = Callable[[int, bytes], AbstractAsyncContextManager[None]]


def main() -> None:
    """Start a service with one untrained model, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="MedPix 2.0 folder")
    parser.add_argument("--seconds", type=float, default=10.0, help="least length of each phase")
    parser.add_argument("--model", choices=MODELS, default="compact")
    options = parser.parse_args()
    data = find_dataset(options.data)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(home=Path(folder), data_dir=data, device="cpu")
        with embedded_mongod(settings.home / "db", settings.home / "run", find_mongod()) as uri:
            with connect(uri, settings, timeout_s=0) as client:
                database = client.get_default_database(DATABASE)
                seed(database, data)
                Registry(database, settings.model_files_dir).register(build(options.model))
                image = database[IMAGES].find_one(sort=[("_id", 1)])
            assert image is not None
            file = next((data / IMAGE_FOLDER).glob(f"{image['_id']}.*")).read_bytes()
            with server("service", options.model, uri, settings, "fp32") as running:
                asyncio.run(measure(running, image["U_id"], file, options.seconds))


async def measure(running: Running, case: str, image: bytes, seconds: float) -> None:
    """All phases, a line each."""
    upload = request_bytes("/predict/modality", image)
    good = {
        "case": f"GET /cases/{case} HTTP/1.1\r\nHost: benchmark\r\n\r\n".encode(),
        "predict": upload,
        "live": LIVE,
    }
    phases: dict[str, Phase] = {
        "before": _nothing,
        f"{SLOW} slow uploads": _slow_bodies,
        f"{SLOW} slow headers": _slow_headers,
        f"{IDLE} idle connections": _idle,
        f"{SMALL} small requests": _small,
        f"{BROKEN} broken uploads": _broken,
        "after": _nothing,
    }
    await closed_loop(running.port, list(good.values()), 4, 3.0)  # warm
    print(f"{'phase':24}{'MiB':>6}{'threads':>9}{'files':>7}" + "".join(f"{f'{n} p50/p99 ms':>22}" for n in good))
    for name, phase in phases.items():
        async with phase(running.port, upload):
            loads = await _good_client(running.port, good, seconds)
            row = f"{name:24}{running.memory.now_mb():6.0f}{_threads(running):9}{_files(running):7}"
        cells = [f"{loads[kind].quantile(50):.1f} / {loads[kind].quantile(99):.1f}" for kind in good]
        failed = {kind: loads[kind].statuses for kind in good if set(loads[kind].statuses) != {200}}
        print(row + "".join(f"{cell:>22}" for cell in cells), failed or "", flush=True)


async def _good_client(port: int, requests: dict[str, bytes], seconds: float) -> dict[str, Load]:
    loads = {kind: Load() for kind in requests}
    end = time.perf_counter() + seconds
    with closing(Connection(port)) as connection:
        for kind in cycle(requests):
            if (began := time.perf_counter()) > end:
                return loads
            loads[kind].add(await connection.ask(requests[kind]), time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_S)
    return loads


@asynccontextmanager
async def _nothing(_port: int, _upload: bytes) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _running(clients: Sequence[Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Run clients meanwhile; those that are not done by then are hung up."""
    tasks = [asyncio.create_task(client) for client in clients]
    await asyncio.sleep(1.0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drip(port: int, start: bytes, remainder: bytes) -> None:
    """Send a part, and then a byte every half second until the server hangs up."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection(_HOST, port)
        try:
            writer.write(start)
            for byte in remainder:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.5)
        finally:
            writer.close()


def _slow_bodies(port: int, upload: bytes) -> AbstractAsyncContextManager[None]:
    head = upload.index(b"\r\n\r\n") + 4
    return _running([_drip(port, upload[: head + 1000], upload[head + 1000 :]) for _ in range(SLOW)])


def _slow_headers(port: int, upload: bytes) -> AbstractAsyncContextManager[None]:
    return _running([_drip(port, upload[:20], upload[20:]) for _ in range(SLOW)])


def _idle(port: int, _upload: bytes) -> AbstractAsyncContextManager[None]:
    return _running([_silent(port) for _ in range(IDLE)])


async def _silent(port: int) -> None:
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(_HOST, port)
        try:
            await reader.read()  # until the server hangs up
        finally:
            writer.close()


def _small(port: int, _upload: bytes) -> AbstractAsyncContextManager[None]:
    async def ask() -> None:
        await closed_loop(port, [LIVE], 50, 3600.0, count=SMALL)

    return _running([ask()])


def _broken(port: int, upload: bytes) -> AbstractAsyncContextManager[None]:
    async def break_off(number: int) -> None:
        await asyncio.sleep(number * 0.05)
        with suppress(OSError):
            _, writer = await asyncio.open_connection(_HOST, port)
            writer.write(upload[: len(upload) // 2])
            await writer.drain()
            writer.transport.abort()

    return _running([break_off(number) for number in range(BROKEN)])


def _threads(running: Running) -> int:
    status = Path(f"/proc/{running.memory.pid}/status").read_text()
    return int(status.partition("Threads:")[2].split()[0])


def _files(running: Running) -> int:
    return sum(1 for _ in Path(f"/proc/{running.memory.pid}/fd").iterdir())


if __name__ == "__main__":
    main()
