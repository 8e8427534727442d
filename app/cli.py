"""The `medpix` command."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from pymongo.errors import ConnectionFailure, PyMongoError
from rich.console import Console
from rich.table import Table

from app.config import ConfigurationError, Settings, get_settings
from app.data.client import DatabaseConfigurationError, connect, redact
from app.data.dataset import DatasetNotFoundError
from app.data.embedded import EmbeddedMongodError, database_uri
from app.data.schema import DATABASE, SchemaError
from app.data.seed import LoadCounts, SeedError, SeedReport
from app.data.seed import seed as run_seed
from app.data.source import SourceError

# Faults that a person can mend: said in one message, without a traceback.
_EXPECTED = (
    ConfigurationError,
    DatabaseConfigurationError,
    DatasetNotFoundError,
    EmbeddedMongodError,
    SchemaError,
    SeedError,
    SourceError,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help="MedPix 2.0 as a service.")
_console = Console()
_errors = Console(stderr=True)

DataOption = Annotated[Path | None, typer.Option("--data", help="MedPix 2.0 folder; default: MEDPIX_DATA_DIR")]


def main() -> None:
    """Run the command line; faults that a person can mend end it with their message and exit code 1."""
    try:
        app()
    except _EXPECTED as error:
        _fail(str(error))
    except ConnectionFailure as error:
        reason = str(error).partition(" (configured timeouts")[0]
        _fail(f"MongoDB cannot be reached: {reason}. Is it running, and is MEDPIX_MONGO_URI its address?")
    except PyMongoError as error:
        _fail(f"MongoDB refused: {error}")


def _fail(message: str) -> None:
    _errors.print("[bold red]error:[/]", message, highlight=False, soft_wrap=True)
    sys.exit(1)


def _settings(data: Path | None = None) -> Settings:
    settings = get_settings()
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    return settings.model_copy(update={"data_dir": data.resolve()}) if data else settings


@app.command()
def seed(data: DataOption = None) -> None:
    """Load the dataset into MongoDB; running it again changes nothing."""
    settings = _settings(data)
    with database_uri(settings) as uri, connect(uri, settings, timeout_s=0) as client:
        _errors.print(f"Seeding {redact(uri)} from {settings.dataset_dir}", highlight=False, soft_wrap=True)
        report = run_seed(client.get_default_database(DATABASE), settings.dataset_dir)
    _print_report(report)


def _print_report(report: SeedReport) -> None:
    table = Table("", "inserted", "changed", "unchanged", "removed", *report.case_counts, "total")
    rows = (("cases", report.cases, report.case_counts), ("images", report.images, report.image_counts))
    for name, counts, splits in rows:
        cells = (*_cells(counts), *splits.values(), sum(splits.values()))
        table.add_row(name, *map(str, cells))
    _console.print(table)
    kind = "the published MedPix 2.0" if report.published else "not the published MedPix 2.0: its text files differ"
    _console.print(
        f"Dataset version {report.dataset_version} ({kind}); 0 orphans, 0 missing files.",
        highlight=False,
        soft_wrap=True,
    )
    for name in (*report.cases.removed, *report.images.removed):
        _console.print(f"removed, no longer in the source: {name}", highlight=False)


def _cells(counts: LoadCounts) -> tuple[int, int, int, int]:
    return counts.inserted, counts.changed, counts.unchanged, len(counts.removed)


@app.command()
def serve(data: DataOption = None) -> None:
    """Serve the API and the pages on MEDPIX_HOST and MEDPIX_PORT."""
    from app.server import run_server

    settings = _settings(data)
    with database_uri(settings) as uri:
        run_server(settings.model_copy(update={"mongo_uri": uri}))


if __name__ == "__main__":
    main()
