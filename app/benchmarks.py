"""`medpix bench`: the benchmarks of a checkout, each in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from app.core.settings import MendableError

# What each one sets side by side; the modules are benchmarks/NAME.py.
BENCHMARKS: Final = {
    "data": "the data endpoints against python-eve and an empty route",
    "drivers": "PyMongo Async against Motor",
    "scale": "the data endpoints over two million images against the dataset",
    "seed": "seeding against a bare insert_many",
    "serve": "predictions against LitServe, a plain endpoint and a bare loop",
    "train": "the training loop against tensors in memory",
}
_CHECKOUT: Final = Path(__file__).parents[1]


class BenchmarkError(MendableError):
    """The benchmark is not known, or not here."""


def run_benchmark(name: str, arguments: Sequence[str]) -> int:
    """Run a benchmark, its output on this terminal; returns its exit status.

    Args:
        name: a key of ``BENCHMARKS``.
        arguments: passed on; ``--data`` is needed by all of them.

    Raises:
        BenchmarkError: no such benchmark, or the package was installed without its checkout.
    """
    if name not in BENCHMARKS:
        known = "; ".join(f"{key}: {what}" for key, what in BENCHMARKS.items())
        raise BenchmarkError(f"There is no benchmark {name!r}. Known are: {known}.")
    if not (_CHECKOUT / "benchmarks" / f"{name}.py").is_file():
        raise BenchmarkError("The benchmarks are part of the checkout, and this package was installed without it.")
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=_CHECKOUT, check=False).returncode
