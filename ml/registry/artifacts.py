"""Tensors, arrays and JSON values in files, folders that are whole or not there at all, and locks."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_numpy_file

from app.core.exceptions import UserError
from app.core.files import is_running, sync

if TYPE_CHECKING:
    from torch import Tensor


class DamagedFileError(UserError):
    """A file is not what was written; the message names it."""


class BusyError(UserError):
    """Another process works on the same files."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that becomes ``path`` only when the block ends without an error.

    What earlier processes left half-written for the same path is removed.

    Raises:
        OSError: the disk is full or failed; nothing of the new folder is left.
        FileExistsError: ``path`` is there already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(".writing-*"):
        if not is_running(int(stale.name.rpartition("-")[2])):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = path.parent / f".writing-{path.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.iterdir()):
            sync(file)
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def exclusive_lock(activity: str, folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets it go when the process ends, however it does.

    Args:
        activity: what the process does, for the error, as "compact is being trained".
        folder: two levels below the one that the error names.

    Raises:
        BusyError: another process holds it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise BusyError(
                f"{activity} already, by process {lock.read()}, into {folder.parents[1]}; wait for it, or stop it"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors, and JSON values as metadata, to a safetensors file.

    Raises:
        OSError: the disk is full or failed.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 - a service on OpenVINO needs no PyTorch

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _system_errors():
        save_file(on_cpu, path, _as_text(metadata))


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any] | None = None) -> None:
    """``write_tensors`` for NumPy arrays; the files are the same.

    Raises:
        OSError: the disk is full or failed.
    """
    with _system_errors():
        save_numpy_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, _as_text(metadata))


def _as_text(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: json.dumps(value, sort_keys=True) for name, value in (metadata or {}).items()}


@contextmanager
def _system_errors() -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        # The library wraps what the operating system said, as "No space left on device (os error 28)".
        raise OSError(str(error).rpartition("I/O error: ")[2]) from error


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        DamagedFileError: the file is missing, cut or no safetensors file.
    """
    return _read(path, "pt")


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """``read_tensors`` as NumPy arrays, without PyTorch.

    Raises:
        DamagedFileError: the file is missing, cut or no safetensors file.
    """
    return _read(path, "np")


def read_array(path: Path, name: str) -> NDArray[Any]:
    """One array of a safetensors file; the others are not read.

    Raises:
        DamagedFileError: the file is missing, cut, or has no such array.
    """
    try:
        with safe_open(path, framework="np") as file:
            array: NDArray[Any] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(f"{path.name} in {path.parent} cannot be read: {error}") from error
    return array


def _read(path: Path, framework: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(path, framework=framework) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path.name} is missing from {path.parent}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(f"{path.name} is cut or not a safetensors file: {error}") from error
    return tensors, metadata


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON in ASCII, keys in the order given."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n", encoding="ascii", newline="\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DamagedFileError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path.name} is missing from {path.parent}") from error
    except ValueError as error:
        raise DamagedFileError(f"{path.name} is cut or not JSON: {error}") from error
