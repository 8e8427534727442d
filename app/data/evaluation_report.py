"""The last report of `medpix evaluate`, in the folder of the service."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.data.repository import NotFoundError
from app.data.serializers import etag_of

FOLDER: Final = "evaluation"
_FILE: Final = "results.json"
_PAGE: Final = "report.html"


class FaultyReportError(Exception):
    """The report is there but cannot be read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Report:
    """A report.

    Attributes:
        body: JSON.
        etag: quoted, over the content.
    """

    body: bytes
    etag: str


def read_report(home: Path) -> Report:
    """The report that was written last.

    Args:
        home: the service's own folder.

    Raises:
        NotFoundError: nothing was evaluated here yet.
        FaultyReportError: the file is cut or unreadable.
    """
    body = _read(home / FOLDER / _FILE)
    try:
        is_report = isinstance(json.loads(body), dict)
    except ValueError:
        is_report = False
    if not is_report:
        raise FaultyReportError(f"{_FILE} is cut or damaged. Run `medpix evaluate` again.")
    return Report(body, etag_of(body))


def read_page(home: Path) -> bytes:
    """The report as one HTML page that needs no other file.

    Args:
        home: the service's own folder.

    Raises:
        NotFoundError: nothing was evaluated here yet.
        FaultyReportError: the file cannot be read.
    """
    return _read(home / FOLDER / _PAGE)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError("No evaluation has been run here. Run `medpix evaluate` first.") from error
    except OSError as error:
        raise FaultyReportError(
            f"The report cannot be read ({error.strerror}). Run `medpix evaluate` again."
        ) from error
