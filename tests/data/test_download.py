import hashlib
import io
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.data import dataset
from app.data.download import FetchError, fetch
from tests.file_server import FileServer


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, in seconds; none is made."""
    made: list[float] = []
    # Of this module alone: other threads of the process go on sleeping.
    monkeypatch.setattr("app.core.download.time", SimpleNamespace(sleep=made.append))
    return made


@pytest.fixture
def archive(generated_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The generated dataset as the repository's archive, with the hashes that go with it."""
    texts = generated_dataset / "splitted_dataset"
    hashes = {name: hashlib.sha256((texts / name).read_bytes()).hexdigest() for name in dataset.SHA256}
    monkeypatch.setattr(dataset, "SHA256", hashes)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(generated_dataset, "MedPix-2.0-d3bc431/MedPix-2-0")
        _add_text(tar, "MedPix-2.0-d3bc431/code/evaluate.py", b"not wanted")
        _add_text(tar, "MedPix-2.0-d3bc431/MedPix-2-0/../../escaped", b"not wanted")
        _add_text(tar, "MedPix-2.0-d3bc431/MedPix-2-0/images/../../../escaped", b"not wanted")
        link = tarfile.TarInfo("MedPix-2.0-d3bc431/MedPix-2-0/images/escaped")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


def _add_text(tar: tarfile.TarFile, name: str, text: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(text)
    tar.addfile(info, io.BytesIO(text))


def test_the_archive_is_fetched_unpacked_and_checked(archive: bytes, tmp_path: Path, generated_dataset: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    server = FileServer(archive)
    with server.running() as url:
        folder = fetch(tmp_path / "data", url=url, progress=lambda done, total: seen.append((done, total)))
    assert server.ranges == [None]
    assert seen[-1] == (len(archive), len(archive))
    for path in generated_dataset.rglob("*.png"):
        assert (folder / "images" / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"MedPix-2-0"}
    assert not list(tmp_path.rglob("escaped"))


def test_a_broken_download_goes_on_where_it_stopped(archive: bytes, tmp_path: Path) -> None:
    server = FileServer(archive, break_after=[1000, 500])
    with server.running() as url:
        fetch(tmp_path, url=url)
    assert server.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_the_pause_before_each_further_attempt_grows(archive: bytes, tmp_path: Path, pauses: list[float]) -> None:
    with FileServer(archive, break_after=[0] * 5).running() as url, pytest.raises(FetchError, match="off 5 times"):
        fetch(tmp_path, url=url)
    assert pauses == [1, 2, 4, 8]
    pauses.clear()
    with FileServer(archive, status=503).running() as url, pytest.raises(FetchError, match="broke off 5 times"):
        fetch(tmp_path, url=url)
    assert pauses == [1, 2, 4, 8]


def test_a_next_run_goes_on_too(archive: bytes, tmp_path: Path) -> None:
    with FileServer(archive, break_after=[1000] + [0] * 4).running() as url:
        with pytest.raises(FetchError, match="0 MB are kept"):
            fetch(tmp_path, url=url)
        fetch(tmp_path, url=url)
    server = FileServer(archive, break_after=[2000] + [0] * 4)
    other = tmp_path / "other"
    with server.running() as url, pytest.raises(FetchError):
        fetch(other, url=url)
    server = FileServer(archive, tag='"changed"')
    with server.running() as url:
        fetch(other, url=url)
    assert server.ranges == ["bytes=2000-"]


def test_an_incomplete_folder_in_the_way_is_refused_before_the_download(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "MedPix-2-0" / "images").mkdir(parents=True)
    server = FileServer(archive)
    with server.running() as url:
        with pytest.raises(FetchError, match=r"MedPix-2-0 is not the whole dataset\. Remove it"):
            fetch(tmp_path, url=url)
        assert server.ranges == []
        (tmp_path / "MedPix-2-0" / "images").rmdir()
        assert fetch(tmp_path, url=url) == tmp_path / "MedPix-2-0"


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_or_foreign_archive_leaves_nothing(archive: bytes, tmp_path: Path, damage: str) -> None:
    data = archive[: len(archive) // 2] if damage == "cut" else b"a page of a captive portal"
    with FileServer(data).running() as url, pytest.raises(FetchError, match="damaged or not MedPix"):
        fetch(tmp_path, url=url)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_the_published_ones_are_refused(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dataset.SHA256, "data_dev.jsonl", "0" * 64)
    with FileServer(archive).running() as url, pytest.raises(FetchError, match=r"data_dev.jsonl is not the published"):
        fetch(tmp_path, url=url)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_address_and_no_connection_are_said(archive: bytes, tmp_path: Path) -> None:
    with FileServer(archive, status=404).running() as url, pytest.raises(FetchError, match="answers 404"):
        fetch(tmp_path, url=url)
    with pytest.raises(FetchError, match="Run `medpix fetch` again"):
        fetch(tmp_path, url=url)
