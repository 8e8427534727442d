"""A full disk in each phase: one sentence names it, what was there stays, and with room again the work goes on."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.files import explain_full_disk
from tests.cli.running import fails, medpix, running_up
from tests.service import is_ok, wait_for

_SIZE_MIB = 64


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m,mode=700", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(disk: Path) -> Callable[[], None]:
    """Leave no space; returns what gives it back."""
    ballast, left = disk / "ballast", os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)
    return ballast.unlink


def _is_named(disk: Path, text: str) -> bool:
    return (
        re.search(rf"The disk of {re.escape(str(disk))}\S* is full \(0 MiB free\): make room there\.", text) is not None
    )


def test_a_disk_with_room_is_not_full(disk: Path) -> None:
    assert explain_full_disk(disk, disk / "not made yet") == ""
    _fill(disk)
    assert _is_named(disk, explain_full_disk(disk.parent, disk))


def test_a_seeding_ends_with_a_sentence_and_the_next_one_completes_it(disk: Path, generated_dataset: Path) -> None:
    home = disk / "home"
    make_room = _fill(disk)
    message = fails(home, "seed", "--data", str(generated_dataset))
    assert _is_named(disk, message), message
    make_room()
    done = medpix(home, "seed", "--data", str(generated_dataset))
    assert done.returncode == 0, done.stderr


def test_the_service_waits_for_room_and_loses_nothing(disk: Path, generated_dataset: Path) -> None:
    home = disk / "home"
    with running_up(home, generated_dataset, "--no-train") as up:
        image = up.client.get("/images", params={"limit": 1}).json()["items"][0]["image"]
        make_room = _fill(disk)
        accepted: list[str] = []
        while len(accepted) < 1000:
            note = {"location": "Spine", "comment": str(len(accepted)) + "x" * 1000}
            answer = up.client.post(f"/images/{image}/annotations", json=note)
            if not answer.is_success:
                break
            accepted.append(note["comment"])
        assert answer.status_code == 503, answer.text
        assert up.client.get("/health/live").status_code == 200
        up.wait_until_said("mongod was killed by SIGABRT; it is started again in 1 s.")
        assert _is_named(disk, up.said())
        make_room()
        assert wait_for(up.client, "/health/ready", is_ok).status_code == 200
        kept = up.client.get("/export", params={"of": "annotations", "format": "csv"}).text
        assert [comment for comment in accepted if comment not in kept] == []
        up.stop()


def test_a_training_waits_for_room(disk: Path, tmp_path: Path, generated_dataset: Path) -> None:
    make_room = _fill(disk)
    variables = {"MEDPIX_MODELS_DIR": str(disk), "MEDPIX_TRAIN": "caption-location"}
    with running_up(tmp_path / "home", generated_dataset, **variables) as up:
        up.wait_until_said("The training ended with exit code 1; it is started again in ")
        assert _is_named(disk, up.said())
        make_room()
        models = wait_for(up.client, "/models", lambda answer: bool(answer.json()["items"]), seconds=120).json()
        assert [item["card"]["name"] for item in models["items"]] == ["caption-location"]
        up.stop()
