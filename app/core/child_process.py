"""Child processes that end with their parent, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

# A program of its own, because code between fork and exec (preexec_fn) is not safe beside threads. The kernel sends
# the signal when the parent's thread ends; PR_SET_PDEATHSIG (1) survives the exec. Where the parent has ended before
# that, nobody needs the child any more.
_LAUNCHER: Final = """
import ctypes, os, sys
parent, niceness, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(parent):
    sys.exit("the parent process has ended")
os.nice(int(niceness))
os.execv(command[0], command)
"""


def start_bound(
    command: Sequence[str], *, log: Path | None = None, environment: Mapping[str, str] | None = None, niceness: int = 0
) -> subprocess.Popen[bytes]:
    """Start a process that gets SIGTERM when the calling thread ends, even by SIGKILL (Linux).

    It has a session of its own: Ctrl-C in the terminal reaches the parent alone, which decides what to stop when.

    Args:
        command: the program's path and its arguments.
        log: file that its output is appended to; default: the parent's output.
        environment: its environment; default: the parent's.
        niceness: added to the parent's.
    """
    output = log.open("ab") if log else None
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(niceness), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )
    finally:
        if output is not None:
            output.close()


def describe_exit(code: int) -> str:
    """How a process ended, from its return code: "was killed by SIGKILL", "ended with exit code 1"."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
