import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.disk_cache import DiskCache


def _write(path: Path, size: int, used_at: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used_at, used_at))


def test_what_was_unused_for_longest_goes_first(tmp_path: Path) -> None:
    _write(tmp_path / "thumbnails" / "ab" / "old.jpg", 400, 1_000)
    _write(tmp_path / "openvino" / "key" / "graph.blob", 500, 2_000)
    _write(tmp_path / "thumbnails" / "cd" / "new.jpg", 300, 3_000)
    assert DiskCache(tmp_path, 1_200).trim() == {"thumbnails": 700, "openvino": 500}
    assert DiskCache(tmp_path, 1_000).trim() == {"thumbnails": 300, "openvino": 500}
    assert DiskCache(tmp_path, 100).trim() == {}
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_file_read_of_late_stays(tmp_path: Path) -> None:
    _write(tmp_path / "thumbnails" / "a.jpg", 400, 1_000)
    _write(tmp_path / "thumbnails" / "b.jpg", 400, 2_000)
    os.utime(tmp_path / "thumbnails" / "a.jpg", (3_000, 1_000))
    DiskCache(tmp_path, 500).trim()
    assert [path.name for path in (tmp_path / "thumbnails").iterdir()] == ["a.jpg"]


def test_what_is_needed_or_being_written_stays(tmp_path: Path) -> None:
    now = time.time()
    for name, used_at in (("made.zip", 1_000), ("other.zip", 2_000), ("killed.tmp", now - 3_600), ("next.tmp", now)):
        _write(tmp_path / "exports" / name, 400, used_at)
    assert DiskCache(tmp_path, 100).trim(tmp_path / "exports" / "made.zip") == {"exports": 800}
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {"made.zip", "next.tmp"}


def test_a_folder_that_is_missing_is_empty(tmp_path: Path) -> None:
    assert DiskCache(tmp_path / "nothing", 0).trim() == {}


def test_a_folder_that_is_removed_during_the_walk_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "thumbnails" / "a.jpg", 400, 1_000)
    _write(tmp_path / "openvino" / "key" / "graph.blob", 500, 2_000)
    scandir = os.scandir

    def remove_and_scan(path: Path | str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "key":
            (Path(path) / "graph.blob").unlink()
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove_and_scan)
    assert DiskCache(tmp_path, 1_000).trim() == {"thumbnails": 400}
