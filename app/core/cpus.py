"""How many processors this process may use, which in a container is seldom how many the machine has."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def usable_cpus(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """The processors of this process's affinity, or fewer where its cgroup has a quota; at least 1.

    Args:
        groups: where the kernel shows the cgroups, version 1 or 2.
        own: the file that names those of this process.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas(groups, own))]))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """The quotas of this process's groups and of all that they lie in, in processors."""
    lines: list[str] = []
    with suppress(OSError):
        lines = own.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version_2 = not controllers
        if not version_2 and "cpu" not in controllers.split(","):
            continue
        root = groups if version_2 else groups / "cpu"
        inner = root / path.lstrip("/")
        # A container sees its own group as the root, whatever the file says.
        for folder in {root, *(each for each in (inner, *inner.parents) if root in each.parents)}:
            with suppress(OSError, ValueError, ZeroDivisionError):
                yield _quota_v2(folder) if version_2 else _quota_v1(folder)


def _quota_v2(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period)  # "max" is no number: there is none


def _quota_v1(folder: Path) -> float:
    quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota <= 0:
        raise ValueError("there is no quota")
    return quota / period
