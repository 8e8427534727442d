"""The `medpix` command."""

import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from pymongo.errors import ConnectionFailure, PyMongoError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table

from app.core.exceptions import UserError
from app.core.settings import Settings, get_settings
from app.data.client import connect, explain_refusal, redact
from app.data.dataset import DatasetNotFoundError, find_dataset
from app.data.download import URL
from app.data.download import fetch as run_fetch
from app.data.mongod import database_uri
from app.data.schema import DATABASE
from app.data.seed import LoadCounts, SeedReport
from app.data.seed import seed as run_seed

app = typer.Typer(no_args_is_help=True, add_completion=False, help="MedPix 2.0 as a service.")
_console = Console()
_errors = Console(stderr=True)

DataOption = Annotated[Path | None, typer.Option("--data", help="MedPix 2.0 folder; default: MEDPIX_DATA_DIR")]


def main() -> None:
    """Run the command line; faults that a person can mend end it with their message and exit code 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwind: servers are stopped
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        _fail(str(error))
    except ConnectionFailure as error:
        reason = str(error).partition(" (configured timeouts")[0]
        _fail(f"MongoDB cannot be reached: {reason}. Is it running, and is MEDPIX_MONGO_URI its address?")
    except PyMongoError as error:
        _fail(explain_refusal(error))


def _fail(message: str) -> None:
    _errors.print("[bold red]error:[/]", message, highlight=False, soft_wrap=True)
    sys.exit(1)


def _settings(data: Path | None = None) -> Settings:
    settings = get_settings()
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    return settings.model_copy(update={"data_dir": data.resolve()}) if data else settings


@app.command()
def seed(
    data: DataOption = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the dataset first if it is not there")] = False,
) -> None:
    """Load the dataset into MongoDB; running it again changes nothing."""
    settings = _settings(data)
    if fetch:
        _fetch(settings)
    with database_uri(settings) as uri, connect(uri, settings, timeout_s=0) as client:
        _errors.print(f"Seeding {redact(uri)} from {settings.dataset_dir}", highlight=False, soft_wrap=True)
        report = run_seed(client.get_default_database(DATABASE), settings.dataset_dir)
    _print_report(report)


def _print_report(report: SeedReport) -> None:
    # Without vertical lines it fits the 80 columns of a log.
    table = Table("", "inserted", "changed", "unchanged", "removed", *report.case_counts, "total", box=SIMPLE_HEAD)
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
def fetch(data: DataOption = None) -> None:
    """Download the published dataset, unless it is there; a broken download goes on where it stopped."""
    settings = _settings(data)
    _console.print(str(_fetch(settings)), soft_wrap=True, highlight=False)


def _fetch(settings: Settings) -> Path:
    with suppress(DatasetNotFoundError):
        return find_dataset(settings.dataset_dir)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=_errors) as bars:
        bar = bars.add_task("MedPix 2.0", total=None)

        def show(done: int, total: int | None) -> None:
            bars.update(bar, completed=done, total=total)

        return run_fetch(settings.dataset_dir, url=settings.fetch_url or URL, progress=show)


@app.command()
def train(
    names: Annotated[list[str] | None, typer.Argument(help="Tasks (modality, location) or models")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Train every model")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Train the default models that are missing")] = False,
    weights: Annotated[str, typer.Option(help="auto, pretrained, scratch, or a path")] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to train")] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on from checkpoints")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's; for quick tries")] = None,
    evaluate_too: Annotated[
        bool,
        typer.Option("--evaluate", help="Then evaluate all registered models, if the last evaluation is of others"),
    ] = False,
    data: DataOption = None,
) -> None:
    """Train models on the seeded records, calibrate them on dev and register them."""
    from app.cli.train import run_training

    if not (names or every or missing):
        raise typer.BadParameter("name a task or a model, or give --missing or --all")
    settings = _settings(data)
    with database_uri(settings) as uri, connect(uri, settings, timeout_s=0) as client:
        database = client.get_default_database(DATABASE)
        run_training(
            settings,
            database,
            ["all"] if every else names or [],
            missing=missing,
            weights=weights,
            device=device,
            seed=seed,
            resume=not fresh,
            epochs=epochs,
        )
        if evaluate_too:
            from app.cli.evaluate import evaluate_if_due

            evaluate_if_due(settings, database, device=device)


@app.command()
def evaluate(
    names: Annotated[list[str] | None, typer.Argument(help="Models or tasks (modality, location)")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every registered model; so without names, too")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report; default: <home>/evaluation, or below it if not all models are scored"
        ),
    ] = None,
    split: Annotated[Literal["test", "dev"], typer.Option(help="What to score")] = "test",
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to run")] = "auto",
    register: Annotated[bool, typer.Option(help="Put the figures on the models' cards")] = True,
    cv: Annotated[bool, typer.Option("--cv", help="Also train anew on five folds of all cases; takes hours")] = False,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Also train anew with so many seeds, for mean and deviation; takes hours")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the folds and their trainings; the first of the seeds")] = 0,
    weights: Annotated[str, typer.Option(help="As in training; auto: as the registered model began")] = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of these trainings; for quick tries, which go on no card")
    ] = None,
    data: DataOption = None,
) -> None:
    """Score registered models on the test split; writes report.html, results.json, model cards and plots."""
    from app.cli.evaluate import run_evaluation
    from ml.training.context import Options

    settings = _settings(data)
    with database_uri(settings) as uri, connect(uri, settings, timeout_s=0) as client:
        run_evaluation(
            settings,
            client.get_default_database(DATABASE),
            ["all"] if every or not names else names,
            out,
            split=split,
            device=device,
            register=register,
            cv=cv,
            seeds=seeds or 0,
            options=Options(weights=weights, seed=seed, epochs=epochs),
        )


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="File to write; its ending is the format")],
    of: Annotated[Literal["images", "cases", "records", "annotations"], typer.Option(help="What")] = "images",
    conditions: Annotated[
        list[str] | None, typer.Option("--where", help="Filter as the API takes it, such as modality=CT; repeatable")
    ] = None,
    raw: Annotated[bool | None, typer.Option(help="The dataset's own records; json and jsonl alone hold them")] = None,
    data: DataOption = None,
) -> None:
    """Write a selection of the data to a .json, .jsonl, .csv, .parquet or .zip file."""
    from app.cli.export import run_export
    from app.export.streams import FORMATS

    file_format = target.suffix.lstrip(".").lower()
    if file_format not in FORMATS:
        raise typer.BadParameter(f"the file must end in {', '.join('.' + known for known in FORMATS)}")
    settings = _settings(data)
    with database_uri(settings) as uri:
        size = run_export(settings, uri, target, of=of, file_format=file_format, conditions=conditions or [], raw=raw)
    _console.print(f"{target}: {size} bytes", soft_wrap=True, highlight=False)


@app.command()
def up(
    data: DataOption = None,
    train: Annotated[bool, typer.Option(help="Train the default models that are missing")] = True,
) -> None:
    """Start everything: database, data, service, and the training of what is missing."""
    from app.cli.up import check_port, serve_and_train

    settings = _settings(data)
    check_port(settings)
    with database_uri(settings) as uri:
        settings = settings.model_copy(update={"mongo_uri": uri})
        if settings.data_dir is None:
            _fetch(settings)
        with connect(uri, settings, timeout_s=0) as client:
            database = client.get_default_database(DATABASE)
            _print_report(run_seed(database, settings.dataset_dir))
            serve_and_train(settings, database, train=train)


@app.command()
def serve(data: DataOption = None) -> None:
    """Serve the API and the pages on MEDPIX_HOST and MEDPIX_PORT."""
    from app.cli.serve import run_server

    settings = _settings(data)
    with database_uri(settings) as uri:
        run_server(settings.model_copy(update={"mongo_uri": uri}))


if __name__ == "__main__":
    main()
