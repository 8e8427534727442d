"""Servers under measurement, each in a process of its own: the service and its peers, with their resident memory."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from app.core.settings import Settings

SERVICE: Final = "service"
_PEERS: Final = ("plain", "litserve")
# The peers run PyTorch eagerly, as their documentation does, and the graph, precision and threads of the service.
SERVERS: Final = (SERVICE, *_PEERS, *(f"{peer}-openvino" for peer in _PEERS))
# The service embeds all texts for the search by meaning at its first start: that is not what is measured.
_READY: Final = {
    "service": ("/health/ready", "/search?q=stroke&mode=meaning"),
    "plain": ("/docs",),
    "litserve": ("/health",),
}
_COMMANDS: Final = {
    "service": ("app.main", "serve"),
    "plain": ("benchmarks.serve_plain",),
    "litserve": ("benchmarks.serve_litserve",),
}
_LOOK_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers.

    Attributes:
        port: where.
        memory: of its process tree.
    """

    port: int
    memory: "Memory"


class Memory:
    """Looks at the resident memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0
        self._thread.start()

    def now_mb(self) -> float:
        """Resident memory of the whole tree now, in MiB."""
        pages = sum(_resident_pages(pid) for pid in _tree(self.pid))
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self.peak_mb = max(self.peak_mb, self.now_mb())


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for parent in pids:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                pids += map(int, children.read_text().split())
    return pids


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def path_of(kind: str) -> str:
    """Where a server answers a prediction."""
    return "/predict/modality" if kind == SERVICE else "/predict"


@contextmanager
def server(kind: str, model: str, uri: str, settings: Settings, precision: str) -> Iterator[Running]:
    """A server that is ready; ``precision`` is that of peers on OpenVINO."""
    port = _free_port()
    program, _, backend = kind.partition("-")
    arguments = () if kind == SERVICE else (model, str(port), backend or "torch")
    own = {"mongo_uri": uri, "model_modality": model, "cache_entries": 0}
    environment = {**_environment(settings, port, **own), "PEER_PRECISION": precision}
    with _process([*_COMMANDS[program], *arguments], environment) as process:
        memory = Memory(process.pid)
        try:
            _wait_until_ready(port, kind, process)
            yield Running(port, memory)
        finally:
            memory.stop()


@contextmanager
def data_service(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the service once it answers. In one process with its client each would wait for the other."""
    port = _free_port()
    environment = _environment(settings, port, mongo_uri=settings.mongo_uri)
    with (
        _process(_COMMANDS[SERVICE], environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        _wait_for_answers(client, ("/health/live",), SERVICE, process)
        yield client


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _environment(settings: Settings, port: int, **own: object) -> dict[str, str]:
    own |= {name: getattr(settings, name) for name in ("home", "data_dir", "device", "precision")}
    own |= {"port": port, "log_level": "error"}
    return os.environ | {f"MEDPIX_{name.upper()}": str(value) for name, value in own.items()}


@contextmanager
def _process(module: Sequence[str], environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", *module]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        with suppress(ProcessLookupError):  # LitServe leaves its workers behind
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_ready(port: int, kind: str, process: "subprocess.Popen[bytes]") -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        _wait_for_answers(client, _READY[kind.partition("-")[0]], kind, process)


def _wait_for_answers(
    client: httpx.Client, paths: Sequence[str], kind: str, process: "subprocess.Popen[bytes]"
) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            raise SystemExit(f"{kind} ended before it served; is benchmarks/requirements.lock installed?")
        with suppress(httpx.TransportError):
            if all(client.get(path).status_code == httpx.codes.OK for path in paths):
                return
        time.sleep(0.05)
    raise SystemExit(f"{kind} did not serve within minutes")
