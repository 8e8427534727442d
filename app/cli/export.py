"""`medpix export`: a selection of the data as a file."""

import asyncio
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from app.cli.common import DataOption, console, load_settings
from app.core.exceptions import UserError

if TYPE_CHECKING:
    from app.core.settings import Settings
    from app.export.streams import Export


class ExportFailedError(UserError):
    """The file could not be made; the message says what to change."""


def export(
    target: Annotated[Path, typer.Argument(help="File to write; the suffix selects the format")],
    of: Annotated[Literal["images", "cases", "records", "annotations"], typer.Option(help="What to export")] = "images",
    conditions: Annotated[
        list[str] | None, typer.Option("--where", help="Filter as in the API, such as modality=CT; repeatable")
    ] = None,
    raw: Annotated[
        bool, typer.Option(help="The dataset's own records instead of normalised values; json and jsonl only")
    ] = False,
    bom: Annotated[bool, typer.Option(help="Begin a CSV with a byte order mark, by which Excel knows UTF-8")] = False,
    data: DataOption = None,
) -> None:
    """Write a selection of the data to a .json, .jsonl, .csv, .parquet or .zip file."""
    from app.data.mongod import database_uri
    from app.export.streams import MEDIA_TYPES

    file_format = target.suffix.lstrip(".").lower()
    if file_format not in MEDIA_TYPES:
        raise typer.BadParameter(f"the file must end in {', '.join('.' + suffix for suffix in MEDIA_TYPES)}")
    settings = load_settings(data)
    with database_uri(settings) as uri:
        size = run_export(
            settings, uri, target, of=of, file_format=file_format, conditions=conditions or [], raw=raw, bom=bom
        )
    console.print(f"{target}: {size} bytes", soft_wrap=True, highlight=False)


def run_export(
    settings: "Settings",
    uri: str,
    target: Path,
    *,
    of: str,
    file_format: str,
    conditions: Sequence[str],
    raw: bool = False,
    bom: bool = False,
) -> int:
    """Write an export to a file, whole or not at all; returns its size in bytes.

    Args:
        settings: where the data are.
        uri: address of the database.
        target: the file.
        of: images, cases, records or annotations.
        file_format: json, jsonl, csv, parquet or zip.
        conditions: filters as the API takes them, such as ``modality=CT``.
        raw: the dataset's own records; json and jsonl alone can hold them.
        bom: begin a csv with a byte order mark.

    Raises:
        ExportFailedError: a filter or the combination cannot be used, or the file cannot be written.
    """
    from app.core.exceptions import ApiError
    from app.core.files import atomic_write
    from app.data.filters import ParameterError
    from app.export.streams import Export, ExportError

    pairs = [(name, value) for name, _, value in (condition.partition("=") for condition in conditions)]
    try:
        requested = Export(of, file_format, raw, bom)
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
        with atomic_write(target) as unfinished, unfinished.open("wb") as file:
            asyncio.run(_write(settings, uri, file, pairs, requested))
        return target.stat().st_size
    except (ApiError, ParameterError, ExportError, OSError) as error:
        raise ExportFailedError(f"Nothing was exported: {error}") from error


async def _write(
    settings: "Settings", uri: str, file: BinaryIO, conditions: Sequence[tuple[str, str]], requested: "Export"
) -> None:
    from app.data.client import connect_async
    from app.data.filters import parse_filter
    from app.data.image_store import ImageStore
    from app.data.repository import Repository
    from app.data.schema import DATABASE
    from app.export.streams import KINDS, export_parts

    image_store = ImageStore(settings.dataset_dir, settings.cache_dir / "thumbnails")
    async with connect_async(uri, settings) as client:
        repository = Repository(client.get_default_database(DATABASE), settings.cache_dir)
        collection, aliases = KINDS[requested.of]
        vocabulary = await repository.vocabulary(collection)
        selection = parse_filter(list(conditions), collection.fields, aliases, vocabulary)
        async for part in export_parts(repository, image_store, selection, requested):
            file.write(part)
