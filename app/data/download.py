"""Downloads the MedPix 2.0 archive at its pinned commit, and unpacks it."""

import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final

from app.core.download import DownloadError, ProgressCallback, download
from app.core.exceptions import UserError
from app.data import dataset

URL: Final = f"https://codeload.github.com/CHILab1/MedPix-2.0/tar.gz/{dataset.COMMIT}"
FOLDER: Final = "MedPix-2-0"
_ADVICE: Final = "Run `medpix fetch` again to go on, or give a folder with --data."
_WANTED: Final = (dataset.JSONL_FOLDER, dataset.IMAGE_FOLDER, dataset.OVERVIEW)


class FetchError(UserError):
    """The dataset could not be downloaded; what was received is kept for the next run."""


def fetch(target: Path, *, url: str = URL, progress: ProgressCallback | None = None) -> Path:
    """Download and unpack the dataset into a folder.

    Args:
        target: folder that will hold ``MedPix-2-0/``.
        url: of the gzipped tar archive.
        progress: called with bytes received and bytes in all (None where the server does not say).

    Returns:
        The folder of the dataset.

    Raises:
        FetchError: ``MedPix-2-0/`` is there already, no connection, not enough space, or files that are not the
            published ones.
    """
    final = target / FOLDER
    archive = target / "archive.tar.gz.part"
    try:
        # Refused before the download: a folder can only be renamed onto an empty one.
        if final.is_dir() and any(final.iterdir()):
            raise FetchError(f"{final} is not the whole dataset. Remove it and run `medpix fetch` again.")
        target.mkdir(parents=True, exist_ok=True)
        download(url, archive, progress or _silent, advice=_ADVICE)
        folder = _unpack(archive, target)
    except DownloadError as error:
        raise FetchError(str(error)) from error
    except OSError as error:
        raise FetchError(f"The dataset cannot be written to {target}: {error}") from error
    archive.unlink()
    return folder


def _silent(_done: int, _total: int | None) -> None:
    pass


def _unpack(archive: Path, target: Path) -> Path:
    """Unpack beside the final place, check, and only then move there."""
    unpacked = target / f"{FOLDER}.part"
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for inside, content in _contents(tar):
                path = unpacked / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file)
        _check(unpacked)
    except (tarfile.TarError, EOFError, FetchError) as error:
        shutil.rmtree(unpacked, ignore_errors=True)
        archive.unlink()
        raise FetchError(f"The archive is damaged or not MedPix 2.0 and was removed: {error}") from error
    return unpacked.rename(target / FOLDER)


def _contents(tar: tarfile.TarFile) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """The dataset's files, with paths from the dataset folder on; other parts of the repository stay out.

    Only plain files with plain paths come out, so nothing can be written elsewhere. The filters of
    ``tarfile`` would do that too, but the Python 3.11.2 of Debian 12 has none.
    """
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if FOLDER in parts and ".." not in parts and member.isfile():
            inside = PurePosixPath(*parts[parts.index(FOLDER) + 1 :])
            content = tar.extractfile(member)
            if inside.parts and inside.parts[0] in _WANTED and content is not None:
                yield inside, content


def _check(folder: Path) -> None:
    """Compare the text files with the published hashes.

    Raises:
        FetchError: a file is missing or differs.
    """
    for name, expected in dataset.SHA256.items():
        path = folder / dataset.JSONL_FOLDER / name
        if not path.is_file():
            raise FetchError(f"{path} is missing.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise FetchError(f"{path} is not the published file.")
