import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.core.files import atomic_write
from ml.registry.artifacts import (
    BusyError,
    DamagedFileError,
    atomic_folder,
    exclusive_lock,
    read_json,
    read_tensors,
    sha256_of,
    write_json,
    write_tensors,
)

# The child may write no file larger than 1 MB: the system refuses the rest, as a full disk would.
_LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from app.core.files import atomic_write
from ml.registry.artifacts import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    with atomic_write(Path(sys.argv[1])) as path:
        write_tensors(path, {"big": torch.zeros(1_000_000)})
except OSError as error:
    sys.exit(f"OSError: {error}")
"""

_KILLED = """
import os, signal, sys
from pathlib import Path
from ml.registry.artifacts import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_replaced_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "old"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert [child.name for child in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"small": torch.ones(3)})
    result = run(_LIMITED, str(path))
    assert result.returncode == 1
    assert "OSError" in result.stderr
    assert read_tensors(path)[0]["small"].tolist() == [1.0, 1.0, 1.0]
    assert [child.name for child in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_kill_leaves_no_folder_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "v1"
    assert run(_KILLED, str(target)).returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.glob(".writing-*"))) == 1
    with atomic_folder(target) as folder:
        (folder / "weights").write_bytes(b"whole")
    assert (target / "weights").read_bytes() == b"whole"
    assert [child.name for child in tmp_path.iterdir()] == ["v1"]


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    killed = f"""
import os, signal
from pathlib import Path
from app.core.files import atomic_write
with atomic_write(Path({str(path)!r})) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(killed).returncode == -signal.SIGKILL
    other = tmp_path / f".state.{os.getppid()}-1.tmp"
    other.write_text("another process writes it just now")
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert {child.name for child in tmp_path.iterdir()} == {"state", other.name}


def test_a_folder_of_a_running_process_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f".writing-v0-{os.getppid()}"
    other.mkdir()
    with atomic_folder(tmp_path / "v1"):
        pass
    assert other.is_dir()
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "v1"):
        pass


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.arange(6).reshape(2, 3).T}, {"images": ["x", "y"], "epochs": 3})
    tensors, metadata = read_tensors(path)
    assert tensors["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert metadata == {"images": ["x", "y"], "epochs": 3}


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(DamagedFileError, match=r"t\.safetensors is missing"):
        read_tensors(path)
    write_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedFileError, match=r"t\.safetensors is cut"):
        read_tensors(path)
    (tmp_path / "j.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"j\.json is cut"):
        read_json(tmp_path / "j.json")


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "j.json", {"b": 1, "a": "\u00fc"})
    assert read_json(tmp_path / "j.json") == {"b": 1, "a": "\u00fc"}
    assert len(sha256_of(tmp_path / "j.json")) == 64


def test_a_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / ".training" / "compact"
    with (
        exclusive_lock("compact is being trained", folder),
        pytest.raises(
            BusyError, match=rf"compact is being trained already, by process {os.getpid()}, into {tmp_path};"
        ),
        exclusive_lock("compact is being trained", folder),
    ):
        pass
    with exclusive_lock("compact is being trained", folder):
        pass
