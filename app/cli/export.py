"""`medpix export`: a selection of the data as a file."""

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from app.core.exceptions import UserError
from app.core.settings import Settings
from app.data.client import connect_async
from app.data.fields import ANNOTATION_FIELDS, CASE_ALIASES, CASE_FIELDS, IMAGE_ALIASES, IMAGE_FIELDS, Field
from app.data.filters import Filter, ParameterError, parse_filter
from app.data.image_store import ImageStore
from app.data.repository import Repository
from app.data.schema import DATABASE
from app.export.streams import ExportError, export_parts

_CATALOGUES: Final[Mapping[str, tuple[Mapping[str, Field], Mapping[str, str]]]] = {
    "images": (IMAGE_FIELDS, IMAGE_ALIASES),
    "records": (IMAGE_FIELDS, IMAGE_ALIASES),
    "cases": (CASE_FIELDS, CASE_ALIASES),
    "annotations": (ANNOTATION_FIELDS, {}),
}


class ExportFailedError(UserError):
    """The file could not be made; the message says what to change."""


def run_export(
    settings: Settings,
    uri: str,
    target: Path,
    *,
    of: str,
    file_format: str,
    conditions: Sequence[str],
    raw: bool | None,
) -> int:
    """Write an export to a file, whole or not at all; returns its size in bytes.

    Args:
        settings: where the data are.
        uri: address of the database.
        target: the file.
        of: images, cases, records or annotations.
        file_format: json, jsonl, csv, parquet or zip.
        conditions: filters as the API takes them, such as ``modality=CT``.
        raw: the dataset's own records; None: where the format can hold them.

    Raises:
        ExportFailedError: a filter or the combination cannot be used, or the file cannot be written.
    """
    catalogue, aliases = _CATALOGUES[of]
    pairs = [(name, value) for name, _, value in (condition.partition("=") for condition in conditions)]
    try:
        selection = parse_filter(pairs, catalogue, aliases)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        unfinished = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                asyncio.run(_write(settings, uri, file, of, file_format, selection, raw))
            unfinished.chmod(0o644)
            return unfinished.replace(target).stat().st_size
        finally:
            unfinished.unlink(missing_ok=True)
    except (ParameterError, ExportError, OSError) as error:
        raise ExportFailedError(f"Nothing was exported: {error}") from error


async def _write(
    settings: Settings, uri: str, file: BinaryIO, of: str, file_format: str, selection: Filter, raw: bool | None
) -> None:
    image_store = ImageStore(settings.dataset_dir, settings.home / "cache" / "thumbnails")
    async with connect_async(uri, settings) as client:
        repository = Repository(client.get_default_database(DATABASE), settings.home / "cache")
        async for part in export_parts(repository, image_store, selection, of=of, file_format=file_format, raw=raw):
            file.write(part)
