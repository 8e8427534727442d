import os
from pathlib import Path

import pytest

from app.core.cpus import usable_cpus


def _group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1)]
)
def test_a_quota_of_the_container_counts(tmp_path: Path, quota: str, expected: int) -> None:
    _group(tmp_path / "groups", cpu__max=quota)
    (tmp_path / "own").write_text("0::/\n")
    assert usable_cpus(tmp_path / "groups", tmp_path / "own") == expected


def test_the_least_quota_of_all_groups_around_counts(tmp_path: Path) -> None:
    _group(tmp_path / "groups" / "user" / "session", cpu__max="max 100000")
    _group(tmp_path / "groups" / "user", cpu__max="300000 100000")
    _group(tmp_path / "groups" / "other", cpu__max="100000 100000")
    (tmp_path / "own").write_text("0::/user/session\n")
    assert usable_cpus(tmp_path / "groups", tmp_path / "own") == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("400000", 4)])
def test_version_1_of_cgroups_is_read(tmp_path: Path, quota: str, expected: int) -> None:
    _group(tmp_path / "groups" / "cpu" / "docker", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000\n")
    (tmp_path / "own").write_text("3:memory:/docker\n2:cpu,cpuacct:/docker\n")
    assert usable_cpus(tmp_path / "groups", tmp_path / "own") == expected


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path / "none", tmp_path / "none") == 64
    (tmp_path / "own").write_text("0::/gone\n")
    _group(tmp_path / "groups", cpu__max="nonsense")
    assert usable_cpus(tmp_path / "groups", tmp_path / "own") == 64


def test_here_it_is_no_more_than_there_are() -> None:
    assert 1 <= usable_cpus() <= 64
