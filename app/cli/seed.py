"""`medpix seed`: load the dataset into MongoDB."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import DataOption, console, errors, load_settings
from app.cli.fetch import fetch_dataset

if TYPE_CHECKING:
    from app.data.seed import LoadCounts, SeedReport


def seed(
    data: DataOption = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the dataset first if it is missing")] = False,
) -> None:
    """Load the dataset into MongoDB; a second run changes nothing."""
    from app.data.client import connect, redact
    from app.data.mongod import database_uri
    from app.data.schema import DATABASE
    from app.data.seed import seed as run_seed

    settings = load_settings(data)
    if fetch:
        fetch_dataset(settings)
    with database_uri(settings) as uri, connect(uri, settings, timeout_s=0) as client:
        errors.print(f"Seeding {redact(uri)} from {settings.dataset_dir}", highlight=False, soft_wrap=True)
        report = run_seed(client.get_default_database(DATABASE), settings.dataset_dir)
    _print_report(report)


def _print_report(report: "SeedReport") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # Without vertical lines it fits the 80 columns of a log.
    table = Table(
        "",
        "inserted",
        "changed",
        "unchanged",
        "removed",
        *report.case_counts,
        "total",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )
    rows = (("cases", report.cases, report.case_counts), ("images", report.images, report.image_counts))
    for name, counts, splits in rows:
        cells = (*_cells(counts), *splits.values(), sum(splits.values()))
        table.add_row(name, *map(str, cells))
    console.print(table)
    kind = "the published MedPix 2.0" if report.published else "not the published MedPix 2.0: its text files differ"
    console.print(
        f"Dataset version {report.dataset_version} ({kind}); 0 orphans, 0 missing files.",
        highlight=False,
        soft_wrap=True,
    )
    for name in (*report.cases.removed, *report.images.removed):
        console.print(f"removed, no longer in the source: {name}", highlight=False)


def _cells(counts: "LoadCounts") -> tuple[int, int, int, int]:
    return counts.inserted, counts.changed, counts.unchanged, len(counts.removed)
