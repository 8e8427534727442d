"""`medpix doctor`: what the service needs, what is there, and what to do about the difference."""

import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import typer
from rich.text import Text

from app.cli.common import DataOption, console, load_settings
from app.core.exceptions import UserError

if TYPE_CHECKING:
    from app.core.settings import Settings

_MIB: Final = 1024**2
_GIB: Final = 1024**3
# Database, models and caches of a first start took 1.1 GB, the dataset 0.2 GB.
_DISK_WANTED: Final = 3 * _GIB
_DISK_NEEDED: Final = _GIB // 2
# The training of efficientnet took 4.2 GiB, serving the default models 1.5 GiB.
_MEMORY_WANTED: Final = 5 * _GIB
_MEMORY_NEEDED: Final = 3 * _GIB // 2
_FILES_NEEDED: Final = 128
_COLOURS: Final = {"ok": "green", "warning": "yellow", "error": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: ok, warning, or error where the service cannot run so.
        detail: what is there.
        remedy: what to do; empty where nothing is.
    """

    subject: str
    state: Literal["ok", "warning", "error"]
    detail: str
    remedy: str = ""


def doctor(data: DataOption = None) -> None:
    """Check disk, caches, memory, cores, device, mongod, data, models and port; say what is wrong and what to do."""
    settings = load_settings(data)
    findings = list(examine(settings))
    for finding in findings:
        colour = _COLOURS[finding.state]
        console.print(
            Text.assemble((f"{finding.state:8}", colour), " ", (f"{finding.subject:9}", "bold")),
            finding.detail,
            highlight=False,
            soft_wrap=True,
        )
        if finding.remedy:
            console.print(f"{'':19}{finding.remedy}", highlight=False, soft_wrap=True)
    if any(finding.state == "error" for finding in findings):
        raise typer.Exit(1)


def examine(settings: "Settings") -> Iterator[Finding]:
    """Every check; one that fails by itself is reported as an error of its subject."""
    checks: dict[str, Callable[[Settings], Finding]] = {
        "system": _system,
        "disk": _disk,
        "cache": _cache,
        "memory": _memory,
        "cores": _cores,
        "files": _open_files,
        "port": _port,
        "data": _data,
        "mongod": _mongod,
        "database": _database,
        "models": _models,
        "device": _device,
    }
    for subject, check in checks.items():
        try:
            yield check(settings)
        except (UserError, OSError, subprocess.SubprocessError) as error:
            yield Finding(subject, "error", str(error))


def _system(_settings: "Settings") -> Finding:
    from importlib.metadata import version

    name = platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else ""
    detail = f"medpix {version('medpix-service')}, Python {platform.python_version()}, {name or platform.platform()}"
    return Finding("system", "ok", detail)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _disk(settings: "Settings") -> Finding:
    # With a database elsewhere, serving writes caches alone: the rest may be read-only, as in the container.
    target = settings.home if settings.mongo_uri is None else settings.cache_dir
    folder = _existing(target)
    free = shutil.disk_usage(folder).free
    detail = f"{_size(free)} free for {target}"
    if not os.access(folder, os.W_OK):
        return Finding("disk", "error", f"{folder} cannot be written", "Set MEDPIX_HOME to a folder of your own.")
    if free < _DISK_NEEDED or (free < _DISK_WANTED and not settings.home.exists()):
        state: Literal["warning", "error"] = "error" if free < _DISK_NEEDED else "warning"
        return Finding("disk", state, detail, f"A first start needs {_size(_DISK_WANTED)}. Set MEDPIX_HOME elsewhere.")
    return Finding("disk", "ok", detail)


def _cache(settings: "Settings") -> Finding:
    from app.core.disk_cache import DiskCache

    sizes = DiskCache(settings.cache_dir, settings.cache_max_mb * 1024**2).sizes()
    parts = "".join(f", {name} {size / _MIB:.0f} MiB" for name, size in sorted(sizes.items()))
    detail = f"{sum(sizes.values()) / _MIB:.0f} of {settings.cache_max_mb} MiB used (MEDPIX_CACHE_MAX_MB){parts}"
    return Finding("cache", "ok", detail)


def _memory(_settings: "Settings") -> Finding:
    available = _available_memory()
    detail = f"{_size(available)} available"
    if available < _MEMORY_NEEDED:
        return Finding("memory", "error", detail, f"Serving needs {_size(_MEMORY_NEEDED)}.")
    if available < _MEMORY_WANTED:
        advice = (
            f"Training needs {_size(_MEMORY_WANTED)}: train on another machine, and start with `medpix up --no-train`."
        )
        return Finding("memory", "warning", detail, advice)
    return Finding("memory", "ok", detail)


def _available_memory() -> int:
    """Bytes that this process may still take, of the machine and of its cgroup."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    groups = Path("/sys/fs/cgroup")
    for limit, used, details in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        with suppress(OSError, ValueError):  # "max" is no number: there is no limit
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
            # The kernel gives the cache of files back when memory is short.
            stat = dict(line.split() for line in (groups / details).read_text().splitlines())
            available = min(available, left + int(stat.get("inactive_file", 0)))
    return available


def _cores(_settings: "Settings") -> Finding:
    from app.core.cpus import usable_cpus

    count = usable_cpus()
    if count == 1:
        return Finding("cores", "warning", "1 core", "Training takes twice the time that it takes on two.")
    return Finding("cores", "ok", f"{count} cores")


def _open_files(_settings: "Settings") -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < _FILES_NEEDED:
        return Finding("files", "error", f"{limit} open files", "Raise the limit: `ulimit -n 4096`.")
    return Finding("files", "ok", f"{'any number of' if limit < 0 else limit} open files")


def _port(settings: "Settings") -> Finding:
    from app.cli.port import PortInUseError, check_port

    address = f"{settings.host} port {settings.port}"
    try:
        check_port(settings)
    except PortInUseError as error:
        return Finding("port", "warning", str(error))
    open_to_all = not settings.is_local and not settings.api_keys
    if open_to_all and settings.anonymous_writes:
        return Finding("port", "warning", f"{address}: every machine that reaches it may write", "Set MEDPIX_API_KEYS.")
    return Finding("port", "ok", f"{address} is free")


def _data(settings: "Settings") -> Finding:
    from app.data.dataset import IMAGE_FOLDER, DatasetNotFoundError, find_dataset

    try:
        folder = find_dataset(settings.dataset_dir)
    except DatasetNotFoundError as error:
        if settings.data_dir is None:
            return Finding("data", "ok", f"not there yet; `medpix up` downloads it to {settings.dataset_dir}")
        return Finding("data", "error", str(error))
    count = sum(1 for _ in (folder / IMAGE_FOLDER).iterdir())
    return Finding("data", "ok", f"{folder} with {count} image files")


def _mongod(settings: "Settings") -> Finding:
    from app.data.client import redact
    from app.data.mongod import find_mongod

    if settings.mongo_uri:
        return Finding("mongod", "ok", f"not needed: MEDPIX_MONGO_URI is {redact(settings.mongo_uri)}")
    program = find_mongod(settings.mongod)
    if not os.access(program, os.X_OK):
        return Finding("mongod", "ok", f"{program}, which has not been run yet")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        remedy = "It needs the libraries libcurl4 and libssl3; `docker compose up` works without it."
        return Finding("mongod", "error", f"{program}: {done.stderr.strip() or done.stdout.strip()}", remedy)
    return Finding("mongod", "ok", f"{done.stdout.splitlines()[0]}, {program}")


def _database(settings: "Settings") -> Finding:
    from pymongo.errors import PyMongoError

    from app.data import schema
    from app.data.client import connect, reason_of
    from app.data.mongod import Mongod, find_mongod

    uri = settings.mongo_uri
    if uri is None:
        if not (settings.home / "db").exists():
            return Finding("database", "ok", f"not there yet; `medpix up` makes it in {settings.home / 'db'}")
        server = Mongod(settings.home / "db", settings.run_dir, find_mongod(settings.mongod))
        if not server.answers():
            return Finding("database", "ok", f"{settings.home / 'db'}; the service does not run")
        uri = server.uri
    try:
        with connect(uri, settings) as client:
            database = client.get_default_database(schema.DATABASE)
            counts = [database[name].estimated_document_count() for name in (schema.CASES, schema.IMAGES)]
            version = client.server_info()["version"]
    except PyMongoError as error:
        question = "Is MongoDB running, and is MEDPIX_MONGO_URI its address?"
        return Finding("database", "error", reason_of(error), question)
    detail = f"MongoDB {version} with {counts[0]} cases and {counts[1]} images"
    if not all(counts):
        return Finding("database", "warning", detail, "Load the dataset with `medpix seed`.")
    return Finding("database", "ok", detail)


def _models(settings: "Settings") -> Finding:
    folder = settings.model_files_dir
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if not names:
        return Finding("models", "warning", f"none in {folder}", "`medpix up` or `medpix train --missing` trains them.")
    return Finding("models", "ok", f"{', '.join(names)} in {folder}")


def _device(settings: "Settings") -> Finding:
    from importlib.util import find_spec

    import torch

    from ml.training.device import cuda_fault

    # One of the packages that `make up` installs for an NVIDIA GPU alone.
    has_all = find_spec("triton") is not None
    packages = f"packages for {'an NVIDIA GPU' if has_all else 'a CPU'}"
    if torch.cuda.is_available():
        properties: Any = torch.cuda.get_device_properties(0)
        detail = f"{properties.name}, {_size(properties.total_memory)}, CUDA {torch.version.cuda}, {packages}"
        if not has_all:
            return Finding("device", "warning", detail, "Install what a GPU needs: `make install GPU=1`.")
        return Finding("device", "ok", detail)
    fault = cuda_fault()
    if fault is None:
        state: Literal["ok", "error"] = "error" if settings.device == "cuda" else "ok"
        return Finding("device", state, f"CPU; there is no NVIDIA GPU ({packages})")
    return Finding("device", "error" if settings.device == "cuda" else "warning", f"CPU: {fault} ({packages})")


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB"
