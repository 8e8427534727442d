"""The service against LitServe, a plain FastAPI endpoint and a bare loop, on the same real images.

    python -m benchmarks.serve --data ../shared/MedPix-2.0
    python -m benchmarks.serve --data ../shared/MedPix-2.0 --models compact --servers service --device cuda

Each server runs alone, in a process of its own, on the cores of this process, with the same network
(untrained: speed does not depend on the weights) and no cache. The peers run it twice: with eager PyTorch, and as
`...-openvino` with the graph, precision, threads and decoding of the service. A closed loop of 1, 4, 16 and 64 clients
asks for modality, then an open loop at 50, 80 and 120 % of the best rate, then the service answers 10,000
requests; every request is a whole image file. At the end each goal is said to be reached or not, which
the exit status tells too. Needs benchmarks/requirements.lock.
"""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from app.core.settings import Settings, load_settings
from app.data.client import connect
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import DATABASE
from app.data.seed import seed
from benchmarks.load import closed_loop, open_loop, quantile, request_bytes
from benchmarks.serve_goals import AT, Measured, goals
from benchmarks.serve_models import MODELS, Bare, bare_loop, build
from benchmarks.servers import SERVERS, Running, path_of, server
from ml.dataset.records import load_records
from ml.models.image_model import ImageModel
from ml.registry.registry import Registry

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


def measure(bench: Bench, kind: str, running: Running) -> Measured:
    """The closed loops and the open loops of a server that has just become ready."""
    requests = [request_bytes(path_of(kind), image) for image in bench.images]
    first = asyncio.run(closed_loop(running.port, requests, 1, 60.0, count=1))
    asyncio.run(closed_loop(running.port, requests, 8, 2.0))  # warm
    measured = Measured(first_ms=first.quantile(50))
    for clients in CLIENTS:
        measured.closed[clients] = load = asyncio.run(closed_loop(running.port, requests, clients, bench.seconds))
        bench.say(kind, f"{clients:>3} clients {load.describe()}")
    bench.say(
        kind,
        f"first request {measured.first_ms:.1f} ms, {measured.first_ms / measured.alone_ms:.2f} of the median; "
        f"one request alone takes {measured.alone_ms - bench.bare.median_ms:+.1f} ms more than the bare call",
    )
    capacity = max(load.rate for load in measured.closed.values())
    patient = [request_bytes(path_of(kind), image, _PATIENCE) for image in bench.images]
    for share in SHARES:
        measured.overload = load = asyncio.run(open_loop(running.port, patient, share * capacity, 3 * bench.seconds))
        bench.say(
            kind,
            f"{share:4.0%} open   {load.describe()}   503 p99 {load.quantile(99, 503):.1f} ms   "
            f"/health/live p99 {quantile(load.live, 99):.1f} ms",
        )
    return measured


def soak(bench: Bench, kind: str, running: Running, count: int) -> float:
    """How much memory grows over many requests, 0.05 for 5 %."""
    requests = [request_bytes(path_of(kind), image) for image in bench.images]
    asyncio.run(closed_loop(running.port, requests, AT, 3600.0, count=_SOAK_WARM))
    before = running.memory.now_mb()
    growth = 0.0
    for part in range(1, 6):
        load = asyncio.run(closed_loop(running.port, requests, AT, 3600.0, count=count // 5))
        now = running.memory.now_mb()
        growth = max(growth, now / before - 1)
        change = f"{before:.0f} to {now:.0f} MiB, {now / before - 1:+.1%}"
        bench.say(kind, f"{part * count // 5:>6} requests {change}   {load.statuses}")
    return growth


def compare(bench: Bench, measured: dict[str, Measured]) -> bool:
    """Print the ratios and the goals; returns whether all of these were reached."""
    for kind, result in measured.items():
        shares = "  ".join(f"{clients}: {load.rate / bench.bare.rate:.2f}" for clients, load in result.closed.items())
        bench.say(kind, f"/ bare loop   {shares}")
    for kind in [kind for kind in measured if kind != "service" and "service" in measured]:
        pairs = ((n, measured["service"].closed[n].rate / measured[kind].closed[n].rate) for n in CLIENTS)
        bench.say("service", f"/ {kind:<9}   " + "  ".join(f"{n}: {ratio:.2f}" for n, ratio in pairs))
    reached = goals(bench.model, bench.bare, measured)
    for goal in reached:
        bench.say("goal", goal.describe())
    return all(goal.is_met for goal in reached)


def run(options: argparse.Namespace, settings: Settings, data: Path, uri: str) -> bool:
    """All measurements; returns whether all goals were reached."""
    reached = True
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
            measured = {}
            for kind in options.servers:
                with server(kind, name, uri, settings, bench.bare.precision) as running:
                    measured[kind] = measure(bench, kind, running)
                    if options.soak and kind == "service":
                        measured[kind].growth = soak(bench, kind, running, options.soak)
                    bench.say(kind, f"peak memory {running.memory.peak_mb:.0f} MiB")
            reached &= compare(bench, measured)
    return reached


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all servers and the bare loop")
    parser.add_argument("--soak", type=int, default=_SOAK, help="requests over which memory is watched; 0: none")
    options = parser.parse_args()
    data = find_dataset(options.data)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(home=Path(folder), data_dir=data, device=options.device, precision=options.precision)
        with embedded_mongod(settings.home / "db", settings.home / "run", find_mongod()) as uri:
            reached = run(options, settings, data, uri)
    sys.exit(not reached)


if __name__ == "__main__":
    main()
