"""The service against LitServe, a plain FastAPI endpoint and a bare loop, on the same real images.

    python -m benchmarks.serve --data ../shared/MedPix-2.0
    python -m benchmarks.serve --data ../shared/MedPix-2.0 --models compact --servers service --soak

Each server runs alone, in a process of its own, on the cores of this process, with the same network
(untrained: speed does not depend on the weights) and no cache. A closed loop of 1, 4, 16 and 64 clients
asks for modality, then an open loop at 50, 80 and 120 % of the best rate; every request is a whole image
file. Needs benchmarks/requirements.lock.
"""

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from app.config import Settings, load_settings
from app.data.client import connect
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.embedded import embedded_mongod, find_mongod
from app.data.schema import DATABASE
from app.data.seed import seed
from benchmarks.load import Load, closed_loop, open_loop, quantile, request_bytes
from benchmarks.serve_models import MODELS, Bare, bare_loop, build
from benchmarks.servers import PATHS, SERVERS, Running, server
from ml.models.image import ImageModel
from ml.records import load_records
from ml.registry import Registry

CLIENTS: Final = (1, 4, 16, 64)
SHARES: Final = (0.5, 0.8, 1.2)
# Every caller of the open loop has this long: at 120 % who would wait longer is sent away.
_PATIENCE: Final = "X-Request-Timeout: 4"
_SOAK: Final = 10_000
_SOAK_WARM: Final = 1_000


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements of one model share.

    Attributes:
        model: name.
        bare: its bare loop.
        images: files to send.
        seconds: length of each loop.
    """

    model: str
    bare: Bare
    images: list[bytes]
    seconds: float

    def say(self, kind: str, line: str) -> None:
        """Print a line as soon as it is known."""
        print(f"{self.model:<18} {kind:<9} {line}", flush=True)


def measure(bench: Bench, kind: str, running: Running) -> dict[int, Load]:
    """The closed loops and the open loops of a server that has just become ready."""
    requests = [request_bytes(PATHS[kind], image) for image in bench.images]
    first = asyncio.run(closed_loop(running.port, requests, 1, 60.0, count=1))
    asyncio.run(closed_loop(running.port, requests, 8, 2.0))  # warm
    found = {}
    for clients in CLIENTS:
        found[clients] = load = asyncio.run(closed_loop(running.port, requests, clients, bench.seconds))
        bench.say(kind, f"{clients:>3} clients {load.describe()}")
    alone = found[1].quantile(50)
    bench.say(
        kind,
        f"first request {first.quantile(50):.1f} ms, {first.quantile(50) / alone:.2f} of the median; "
        f"one request alone takes {alone - bench.bare.median_ms:+.1f} ms more than the bare call",
    )
    capacity = max(load.rate for load in found.values())
    patient = [request_bytes(PATHS[kind], image, _PATIENCE) for image in bench.images]
    for share in SHARES:
        load = asyncio.run(open_loop(running.port, patient, share * capacity, 3 * bench.seconds))
        bench.say(
            kind,
            f"{share:4.0%} open   {load.describe()}   503 p99 {load.quantile(99, 503):.1f} ms   "
            f"/health/live p99 {quantile(load.live, 99):.1f} ms",
        )
    bench.say(kind, f"peak memory {running.memory.peak_mb:.0f} MiB")
    return found


def soak(bench: Bench, kind: str, running: Running) -> None:
    """Whether memory stays flat over many requests."""
    requests = [request_bytes(PATHS[kind], image) for image in bench.images]
    asyncio.run(closed_loop(running.port, requests, 16, 3600.0, count=_SOAK_WARM))
    before = running.memory.now_mb()
    for part in range(1, 6):
        load = asyncio.run(closed_loop(running.port, requests, 16, 3600.0, count=_SOAK // 5))
        now = running.memory.now_mb()
        change = f"{before:.0f} to {now:.0f} MiB, {now / before - 1:+.1%}"
        bench.say(kind, f"{part * _SOAK // 5:>6} requests {change}   {load.statuses}")


def compare(bench: Bench, found: dict[str, dict[int, Load]]) -> None:
    """Print the ratios."""
    for kind, loads in found.items():
        shares = "  ".join(f"{clients}: {load.rate / bench.bare.rate:.2f}" for clients, load in loads.items())
        bench.say(kind, f"/ bare loop   {shares}")
    for kind in [kind for kind in found if kind != "service" and "service" in found]:
        pairs = ((n, found["service"][n].rate / found[kind][n].rate) for n in CLIENTS)
        bench.say("service", f"/ {kind:<9}   " + "  ".join(f"{n}: {ratio:.2f}" for n, ratio in pairs))


def run(options: argparse.Namespace, settings: Settings, data: Path, uri: str) -> None:
    """All measurements."""
    images = [path.read_bytes() for path in islice(sorted((data / IMAGE_FOLDER).glob("*.png")), 0, 2000, 10)]
    with connect(uri, settings, timeout_s=0) as client:
        database = client.get_default_database(DATABASE)
        seed(database, data)
        dev = load_records(database, data / IMAGE_FOLDER, ("dev",))
        for name in options.models:
            model: ImageModel = build(name)
            Registry(database, settings.model_files_dir).register(model)
            bench = Bench(name, bare_loop(model, settings, dev, images, options.seconds), images, options.seconds)
            bench.say("bare loop", bench.bare.describe())
            found = {}
            for kind in options.servers:
                with server(kind, name, uri, settings) as running:
                    if options.soak:
                        soak(bench, kind, running)
                    else:
                        found[kind] = measure(bench, kind, running)
            compare(bench, found)


def main() -> None:
    """Read the arguments, start a database, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="MedPix 2.0 folder")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each closed loop")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument(
        "--precision", choices=("auto", "fp32"), default="auto", help="of the service and the bare loop"
    )
    parser.add_argument("--soak", action="store_true", help=f"only look at the memory over {_SOAK} requests")
    options = parser.parse_args()
    data = find_dataset(options.data)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(home=Path(folder), data_dir=data, device="cpu", precision=options.precision)
        with embedded_mongod(settings.home / "db", settings.home / "run", find_mongod()) as uri:
            run(options, settings, data, uri)


if __name__ == "__main__":
    main()
