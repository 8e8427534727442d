"""`medpix evaluate`: scores registered models, prints the table and writes the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pymongo.database import Database
from rich.console import Console

from app.config import Settings
from app.data.dataset import IMAGE_FOLDER, find_dataset
from ml.context import Options
from ml.device import DeviceName
from ml.evaluate import evaluate
from ml.evaluation.terminal import tables
from ml.progress import console_reporter
from ml.report import make_folder, write_report

Document = dict[str, Any]


def run_evaluation(
    settings: Settings,
    database: Database[Document],
    names: Sequence[str],
    out: Path,
    *,
    split: Literal["test", "dev"],
    device: DeviceName,
    register: bool,
    cv: bool,
    options: Options,
) -> None:
    """Evaluate, print one table per task, write the report.

    Args:
        settings: where the data and the model files are.
        database: the seeded database.
        names: of models and tasks, or "all".
        out: folder for the report.
        split: what to score.
        device: auto, cpu, cuda or mps.
        register: put the figures on the models' cards.
        cv: also train every model anew on five folds of all cases.
        options: of these trainings.

    Raises:
        MendableError: says what is missing or wrong, and what to do.
    """
    make_folder(out)
    images_dir = find_dataset(settings.dataset_dir) / IMAGE_FOLDER
    with console_reporter() as reporter:
        results = evaluate(
            database,
            images_dir,
            settings.model_files_dir,
            names,
            split=split,
            device=device,
            register=register,
            cv=cv,
            options=options,
            reporter=reporter,
        )
    report = write_report(results, out)
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a table in a log must not be folded
    console.print(f"Scored: {results['split']['checked']}", highlight=False, soft_wrap=True)
    for table in tables(results):
        console.print(table)
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)
