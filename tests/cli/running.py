"""Runs `medpix` as a person does: processes of their own, ended by signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.ports import free_port

PATIENCE_S = 90.0
# The same models on every machine, with a GPU and a network or without.
_TRAIN = {"MEDPIX_TRAIN": "modality,location"}


def environment(home: Path, port: int, **variables: str) -> dict[str, str]:
    """The environment of a command, with no setting but the given ones, and the default models to train."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEDPIX_")}
    return own | {"MEDPIX_HOME": str(home), "MEDPIX_PORT": str(port), "COLUMNS": "160"} | _TRAIN | variables


def medpix(home: Path, *arguments: str, port: int = 1, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app.main", *arguments],
        env=environment(home, port, **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def fails(home: Path, *arguments: str, port: int = 1, **variables: str) -> str:
    """The message of a command that cannot do its work."""
    done = medpix(home, *arguments, port=port, **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@dataclass(frozen=True, slots=True)
class Up:
    """A running `medpix up`."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    home: Path
    log: Path

    @property
    def port(self) -> int:
        """Where it serves."""
        return self.client.base_url.port or 0

    def said(self) -> str:
        """Everything that it has printed."""
        return self.log.read_text()

    def wait_until_said(self, words: str) -> None:
        """Wait for words in its output."""
        until(lambda: words in self.said() or not is_running(self.process.pid), f"{words!r} in the log")
        assert words in self.said(), self.said()

    def stop(self, kind: signal.Signals = signal.SIGTERM, *, seconds: float = 60) -> float:
        """Stop it with a signal; returns how many seconds that took."""
        started = time.monotonic()
        self.process.send_signal(kind)
        assert self.process.wait(seconds) == 0, self.said()
        return time.monotonic() - started


@contextmanager
def running_up(
    home: Path, data: Path, *options: str, command: str = "up", under: Sequence[str] = (), **variables: str
) -> Iterator[Up]:
    """A `medpix up` that has opened its port; whatever it leaves behind is killed.

    Args:
        home: MEDPIX_HOME.
        data: the dataset's folder.
        *options: of the command.
        command: up or serve.
        under: a command that replaces itself by the rest of its command line, such as taskset.
        **variables: of the environment.
    """
    port = free_port()
    log = home.parent / "up.log"
    former = log.stat().st_size if log.exists() else 0
    # A shell's background jobs ignore SIGINT, those of nohup SIGHUP; a terminal's do not.
    before = {kind: signal.signal(kind, signal.SIG_DFL) for kind in (signal.SIGINT, signal.SIGHUP)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*under, sys.executable, "-m", "app.main", command, "--data", str(data), *options],
            env=environment(home, port, **variables),
            stdout=output,
            stderr=output,
        )
    for kind, handler in before.items():
        signal.signal(kind, handler)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            up = Up(process, client, home, log)
            until(lambda: "Uvicorn running on " in up.said()[former:] or not is_running(process.pid), "the start")
            assert is_running(process.pid), up.said()
            yield up
    finally:
        children = descendants(process.pid)
        process.kill()
        process.wait()
        for child in children:
            if is_running(child):
                os.kill(child, signal.SIGKILL)


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[int]:
    """The processes that a process, or one of those, has started."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def child(pid: int, words: str) -> int:
    """The child whose command line has these words."""
    for each in children(pid):
        if words in Path(f"/proc/{each}/cmdline").read_text().replace("\0", " "):
            return each
    raise AssertionError(f"{pid} has no child {words!r}")
