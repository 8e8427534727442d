"""`medpix evaluate`: score registered models, print the table and write the report."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.common import DataOption, DeviceOption, load_settings
from app.core.exceptions import UserError

if TYPE_CHECKING:
    from pymongo.database import Database

    from app.core.progress import Progress
    from app.core.settings import Settings
    from ml.evaluation.evaluate import Results
    from ml.training.context import Options
    from ml.training.device import DeviceName
    from ml.training.progress import Reporter

_LOG = logging.getLogger(__name__)


class EvaluationError(UserError):
    """The models could not be evaluated; the report that was there is as it was."""


def evaluate(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models or tasks (modality, location); default: all registered models")
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report; default: HOME/evaluation, a subfolder for some models")
    ] = None,
    split: Annotated[Literal["test", "dev"], typer.Option(help="Split to score")] = "test",
    device: DeviceOption = "auto",
    register: Annotated[bool, typer.Option(help="Write the metrics to the model cards")] = True,
    cv: Annotated[bool, typer.Option("--cv", help="Also retrain on five folds of all cases; an hour or more")] = False,
    seeds: Annotated[
        int | None,
        typer.Option(min=2, help="Also retrain with this many seeds, for mean and standard deviation; takes hours"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of folds and retraining; the first of --seeds")] = 0,
    weights: Annotated[
        str, typer.Option(help="Initial weights of retraining; auto: as the registered model was trained")
    ] = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of retraining, for quick tries; not written to the cards")
    ] = None,
    data: DataOption = None,
) -> None:
    """Score registered models on the test split; write report.html, results.json, model cards and plots."""
    from app.data.client import connect
    from app.data.mongod import database_uri
    from app.data.schema import DATABASE
    from ml.training.context import Options

    settings = load_settings(data)
    with database_uri(settings) as uri, connect(uri, settings, timeout_s=0) as client:
        run_evaluation(
            settings,
            client.get_default_database(DATABASE),
            names or ["all"],
            out,
            split=split,
            device=device,
            register=register,
            cv=cv,
            seeds=seeds or 0,
            options=Options(weights=weights, seed=seed, epochs=epochs),
        )


def run_evaluation(
    settings: "Settings",
    database: "Database[dict[str, Any]]",
    names: Sequence[str],
    out: Path | None = None,
    *,
    split: Literal["test", "dev"] = "test",
    device: "DeviceName" = "auto",
    register: bool = True,
    cv: bool = False,
    seeds: int = 0,
    options: "Options | None" = None,
) -> None:
    """Evaluate, print one table per task, write the report.

    Args:
        settings: where the data and the model files are.
        database: the seeded database.
        names: of models and tasks, or "all".
        out: folder for the report. By default the one that the service shows, if the evaluation is of
            all registered models on the test split, else one of its own below it.
        split: what to score.
        device: auto, cpu, cuda or mps.
        register: put the figures on the models' cards.
        cv: also retrain every model on five folds of all cases.
        seeds: also retrain every model with this many seeds.
        options: of the retraining.

    Raises:
        UserError: says what is missing or wrong, and what to do.
    """
    from app.data.dataset import IMAGE_FOLDER, find_dataset
    from app.data.evaluation_report import FOLDER
    from ml.dataset.labels import UnknownLabelError
    from ml.evaluation.evaluate import chosen_cards
    from ml.evaluation.evaluate import evaluate as score_models
    from ml.evaluation.report import make_folder, write_report
    from ml.evaluation.retrain import Scratch
    from ml.registry.registry import Registry
    from ml.training.progress import DatabaseReporter, console_reporter, to_all

    signal.signal(signal.SIGTERM, _stop)
    registry = Registry(database, settings.model_files_dir)
    is_complete = split == "test" and {c.name for c in chosen_cards(names, registry)} == {
        c.name for c in registry.cards()
    }
    served = settings.home / FOLDER
    folder = out or (served if is_complete else served / f"{split}-{'+'.join(sorted(set(names)))}")
    make_folder(folder)
    scratch = Scratch(settings.model_files_dir / ".training")
    try:
        with console_reporter() as reporter:
            results = score_models(
                database,
                find_dataset(settings.dataset_dir) / IMAGE_FOLDER,
                settings.model_files_dir,
                names,
                split=split,
                device=device,
                register=register,
                cv=cv,
                seeds=seeds,
                options=options,
                scratch=scratch,
                reporter=to_all([reporter, _of_the_evaluation(DatabaseReporter(database))]),
            )
    except (OSError, UnknownLabelError) as error:
        advice = "; started again, it resumes from the checkpoints of its trainings" if cv or seeds else ""
        raise EvaluationError(f"the evaluation could not be finished: {error}{advice}") from error
    report = write_report(results, folder)
    scratch.clear()  # only now: the trainings took hours, and the disk may have been full
    _show(results, report, is_served=folder.resolve() == served.resolve(), served=served)


def evaluate_if_due(
    settings: "Settings", database: "Database[dict[str, Any]]", *, device: "DeviceName" = "auto"
) -> None:
    """Evaluate all registered models, unless the last evaluation is of these versions, data and code.

    Of the processes of ``torchrun`` one alone does so.

    Raises:
        UserError: says what is missing or wrong, and what to do.
    """
    from app.data import schema
    from app.data.evaluation_report import FOLDER
    from ml.evaluation.evaluate import covers
    from ml.evaluation.report import read_results
    from ml.registry.registry import Registry

    if os.environ.get("RANK", "0") != "0":
        return
    cards = list(Registry(database, settings.model_files_dir).cards())
    run = database[schema.SEED_RUNS].find_one({"state": "complete"}, sort=schema.LATEST_RUN_FIRST) or {}
    if covers(read_results(settings.home / FOLDER) or {}, cards, run.get("dataset_version")):
        _LOG.info("the last evaluation is of the registered models; nothing to evaluate")
        return
    run_evaluation(settings, database, ["all"], device=device)


def _of_the_evaluation(reporter: "Reporter") -> "Reporter":
    """Leaves out the retraining on folds and seeds: those models are never served."""
    from app.data.schema import EVALUATION_RUN

    def report(progress: "Progress") -> None:
        if progress.name == EVALUATION_RUN:
            reporter(progress)

    return report


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds the run, so that it is reported as stopped."""
    sys.exit("The evaluation was stopped; the report that was there is as it was, and checkpoints of trainings stay.")


def _show(results: "Results", report: Path, *, is_served: bool, served: Path) -> None:
    from rich.console import Console

    from ml.evaluation.console_tables import remarks, tables

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a table in a log must not be folded
    console.print(f"Scored: {results['split']['checked']}", highlight=False, soft_wrap=True)
    for table in tables(results):
        console.print(table)
    for remark in remarks(results):
        console.print(remark, highlight=False, soft_wrap=True)
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    if not is_served:
        console.print(
            f"The report of all models in {served}, which the service shows, is as it was; "
            "`medpix evaluate` writes it again.",
            highlight=False,
            soft_wrap=True,
        )
