"""How soon `medpix serve` answers data and predictions, and what memory its process then holds.

    python -m benchmarks.start --data ../shared/MedPix-2.0 --home .medpix

The home has a seeded database and trained models; `medpix up` makes one. The service is started some times: the first
start fills what caches lack, the later ones are those of every day. Resident memory is that of the serving process
alone, without mongod and the supervisor, after each model has answered; the table says what holds it.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import httpx

from app.data.dataset import IMAGE_FOLDER, find_dataset

_LIMIT_S: Final = 900.0
_EVERY_S: Final = 0.02
# What a mapping of the process belongs to, by a part of its path; the first that fits.
_OWNERS: Final = ("torch", "openvino", "scipy", "sklearn", "pandas", "pyarrow", "numpy", "imagecodecs", "python3")


def until(answers: Callable[[], httpx.Response], started: float) -> float:
    """Seconds from the start until an answer has status 200."""
    while time.perf_counter() < started + _LIMIT_S:
        try:
            if answers().status_code == 200:
                return time.perf_counter() - started
        except httpx.TransportError:
            pass
        time.sleep(_EVERY_S)
    raise SystemExit(f"no answer within {_LIMIT_S:.0f} s")


def serving_process(supervisor: int) -> int:
    """The child that serves: `python -m app.main serve`."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == supervisor and b"serve" in arguments:
            return int(entry.name)
    raise SystemExit("the serving process was not found")


def memory(pid: int) -> tuple[float, dict[str, float]]:
    """Resident MiB of a process, and of which libraries' files and what kind of memory."""
    mib_by_kind: dict[str, float] = defaultdict(float)
    owner = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            path = words[5] if len(words) > 5 else ""
            owner = next((f"files of {name}" for name in _OWNERS if name in path), "other files")
            owner = "anonymous (heap, arrays, compiled graphs)" if not path or path.startswith("[") else owner
        elif words[0] == "Rss:":
            mib_by_kind[owner] += int(words[1]) / 1024
    return sum(mib_by_kind.values()), dict(sorted(mib_by_kind.items(), key=lambda item: -item[1]))


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; beside other work it says more than the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(options: argparse.Namespace, image: bytes) -> None:
    """Start the service once, and print what was measured."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"HOME": options.home, "DATA_DIR": find_dataset(options.data), "PORT": port, "LOG_LEVEL": "warning"}
    environment = os.environ | {f"MEDPIX_{name}": str(value) for name, value in own.items()}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "app.main", "serve"], env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            live = until(lambda: client.get("/health/live"), started)
            data = until(lambda: client.get("/cases?limit=1"), started)
            files = {"image": ("scan.png", image)}
            modality = until(lambda: client.post("/predict/modality", files=files), started)
            caption = {"caption": "Axial CT of the chest"}
            location = until(lambda: client.post("/predict/location", files=files, data=caption), started)
            pid = serving_process(process.pid)
            spent = cpu_seconds(pid)
            resident, kinds = memory(pid)
            heat = time.perf_counter()
            client.post("/explain/modality", files=files).raise_for_status()
            explained = time.perf_counter() - heat
            after, _ = memory(pid)
    finally:
        process.terminate()
        process.wait(60)
    print(
        f"live {live:.1f} s, data {data:.1f} s, modality {modality:.1f} s, location {location:.1f} s, "
        f"processor time {spent:.1f} s; "
        f"{resident:.0f} MiB resident; first explanation {explained:.1f} s, then {after:.0f} MiB",
        flush=True,
    )
    print("   " + ", ".join(f"{name} {size:.0f}" for name, size in kinds.items() if size >= 5), flush=True)


def main() -> None:
    """Read the arguments, start the service some times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="MedPix 2.0 folder")
    parser.add_argument("--home", type=Path, required=True, help="MEDPIX_HOME with a seeded database and models")
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    image = next(iter(sorted((find_dataset(options.data) / IMAGE_FOLDER).glob("*.png")))).read_bytes()
    for _ in range(options.starts):
        start(options, image)


if __name__ == "__main__":
    main()
