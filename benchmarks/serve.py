"""The service against LitServe, a plain FastAPI endpoint and a bare loop, on the same real images.

    python -m benchmarks.serve --data ../shared/MedPix-2.0

Each server runs alone, in a process of its own, on the cores of this process, with the same network
(untrained: speed does not depend on the weights) and no cache. A closed loop of 1, 4, 16 and 64 clients
asks for modality; every request is a whole image file. Needs benchmarks/requirements.lock.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import httpx

from app.config import load_settings
from app.data.client import connect
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.embedded import embedded_mongod, find_mongod
from app.data.schema import DATABASE
from app.data.seed import seed
from benchmarks.serve_models import MODELS, bare_loop, build
from ml.registry import Registry

CLIENTS: Final = (1, 4, 16, 64)
SERVERS: Final = ("service", "plain", "litserve")
PATHS: Final = {"service": "/predict/modality", "plain": "/predict", "litserve": "/predict"}
_BOUNDARY: Final = "benchmark-boundary"


@dataclass(frozen=True, slots=True)
class Load:
    """What one closed loop gave: images per second, milliseconds per answer, errors."""

    rate: float
    p50: float
    p95: float
    p99: float
    errors: int


def request_bytes(path: str, image: bytes) -> bytes:
    """A whole HTTP request, made once, so that the client costs the servers little of their cores."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: benchmark",
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head.startswith(b"http/1.1 200")


async def closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> Load:
    """As many clients as said, each asking again as soon as it is answered."""
    source = cycle(requests)
    times: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            while (started := time.perf_counter()) < end:
                if await ask(reader, writer, next(source)):
                    times.append(time.perf_counter() - started)
                else:
                    errors += 1

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    rate = len(times) / (time.perf_counter() - started)
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
    return Load(rate, *(1000 * cuts[place - 1] for place in (50, 95, 99)), errors)


@contextmanager
def server(kind: str, model: str, uri: str, home: Path) -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks.serve_peers", kind, model, str(port)]
    if kind == "service":
        command = [sys.executable, "-m", "app.cli", "serve"]
    own = {"HOME": home, "MONGO_URI": uri, "PORT": port, "CACHE_ENTRIES": 0, "DEVICE": "cpu", "LOG_LEVEL": "error"}
    environment = os.environ | {f"MEDPIX_{name}": str(value) for name, value in own.items()}
    environment["MEDPIX_MODEL_MODALITY"] = model
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until_served(port, kind, process)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_served(port: int, kind: str, process: "subprocess.Popen[bytes]") -> None:
    path = {"service": "/health/ready", "plain": "/docs", "litserve": "/health"}[kind]
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"{kind} ended before it served; is benchmarks/requirements.lock installed?")
        try:
            if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{kind} did not serve within two minutes")


def measure(kind: str, model: str, uri: str, home: Path, images: list[bytes], seconds: float) -> dict[int, Load]:
    requests = [request_bytes(PATHS[kind], image) for image in images]
    found = {}
    with server(kind, model, uri, home) as port:
        asyncio.run(closed_loop(port, requests, 8, 2.0))  # warm
        for clients in CLIENTS:
            found[clients] = load = asyncio.run(closed_loop(port, requests, clients, seconds))
            print(
                f"{model:<18} {kind:<9} {clients:>3} clients {load.rate:8.1f} images/s   "
                f"p50 {load.p50:7.1f}  p95 {load.p95:7.1f}  p99 {load.p99:7.1f} ms   {load.errors} errors",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="MedPix 2.0 folder")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each closed loop")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    options = parser.parse_args()
    data = find_dataset(options.data)
    images = [path.read_bytes() for path in islice(sorted((data / IMAGE_FOLDER).glob("*.png")), 0, 2000, 10)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = load_settings(home=home, data_dir=data, device="cpu")
        with (
            embedded_mongod(home / "db", home / "run", find_mongod()) as uri,
            connect(uri, settings, timeout_s=0) as client,
        ):
            database = client.get_default_database(DATABASE)
            seed(database, data)
            for model in options.models:
                Registry(database, settings.model_files_dir).register(build(model))
                bare, alone = bare_loop(model, settings, images, options.seconds)
                print(f"{model:<18} bare loop             {bare:8.1f} images/s   p50 {alone:7.1f} ms", flush=True)
                found = {kind: measure(kind, model, uri, home, images, options.seconds) for kind in options.servers}
                for kind, loads in found.items():
                    shares = "  ".join(f"{clients}: {load.rate / bare:.2f}" for clients, load in loads.items())
                    print(f"{model:<18} {kind:<9} / bare loop    {shares}")
                for kind in set(found) - {"service"} if "service" in found else ():
                    pairs = ((n, found["service"][n].rate / found[kind][n].rate) for n in CLIENTS)
                    ratios = "  ".join(f"{n}: {ratio:.2f}" for n, ratio in pairs)
                    print(f"{model:<18} service / {kind:<9}   {ratios}")


if __name__ == "__main__":
    main()
