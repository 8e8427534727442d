"""`medpix train`: which models, in which order, and what happens when it is stopped."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.common import DataOption, DeviceOption, load_settings
from app.core.exceptions import UserError

if TYPE_CHECKING:
    from pymongo.database import Database

    from app.core.settings import Settings
    from ml.training.context import Options
    from ml.training.device import DeviceName, Team
    from ml.training.progress import Reporter
    from ml.training.selection import TrainingChoice

_LOG = logging.getLogger(__name__)


class TrainingError(UserError):
    """A model could not be trained; the models that were registered before stay in use."""


def train(
    names: Annotated[list[str] | None, typer.Argument(help="Tasks (modality, location) or models")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Train every model")] = False,
    missing: Annotated[
        bool, typer.Option("--missing", help="Train what is missing of the models that MEDPIX_TRAIN names")
    ] = False,
    weights: Annotated[
        str, typer.Option(help="Initial weights: auto, pretrained, scratch, or the path of a checkpoint")
    ] = "auto",
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Random seed")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore checkpoints, start over")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs instead of the recipe's, for quick tries")] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Then retrain on three folds, to calibrate what was calibrated on dev alone"),
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Then evaluate all models, unless the last evaluation is of the same")
    ] = False,
    data: DataOption = None,
) -> None:
    """Train models on the seeded records, calibrate them on dev and register them."""
    if not (names or every or missing or calibrate):
        raise typer.BadParameter("name a task or a model, or give --missing, --all or --calibrate")
    from app.data.client import connect
    from app.data.mongod import database_uri
    from app.data.schema import DATABASE
    from ml.training.context import Options

    settings = load_settings(data)
    with database_uri(settings) as uri, connect(uri, settings, timeout_s=0) as client:
        database = client.get_default_database(DATABASE)
        run_training(
            settings,
            database,
            ["all"] if every else names or [],
            missing=missing,
            device=device,
            options=Options(weights=weights, seed=seed, resume=not fresh, epochs=epochs),
        )
        if calibrate:
            calibrate_if_due(settings, database, device=device, epochs=epochs)
        if evaluate:
            from app.cli.evaluate import evaluate_if_due

            evaluate_if_due(settings, database, device=device)


def run_training(
    settings: "Settings",
    database: "Database[dict[str, Any]]",
    names: Sequence[str],
    *,
    missing: bool,
    device: "DeviceName",
    options: "Options",
) -> None:
    """Train models one after the other; started by ``torchrun``, with all its processes.

    Args:
        settings: where the data and the model files are.
        database: the seeded database.
        names: of models and tasks, or "all".
        missing: also train what is missing of the models that MEDPIX_TRAIN names; one of them whose weights cannot
            be downloaded is left out.
        device: auto, cpu, cuda or mps.
        options: initial weights, random seed, epochs, and whether to resume from checkpoints.

    Raises:
        TrainingError: says why, and what to do.
    """
    from app.data.dataset import IMAGE_FOLDER, find_dataset
    from ml.dataset.records import RecordsError
    from ml.registry.registry import RegistryError
    from ml.training.device import pick_device, team
    from ml.training.pretrained import WeightsError
    from ml.training.train import models_to_train, queued, train_model

    signal.signal(signal.SIGTERM, _stop)
    models_dir = settings.model_files_dir
    images_dir = find_dataset(settings.dataset_dir) / IMAGE_FOLDER
    try:
        with team(pick_device(device)) as workers, _reporter(workers) as reporter:
            choice = _choose(settings, database, workers, device) if missing else None
            selected = models_to_train(names, database, models_dir, missing=choice.models if choice else ())
            _check(options, selected)
            workers.wait()  # all must have asked before one registers anything
            with queued(selected, database) if workers.is_main_process else nullcontext():
                for step, name in enumerate(selected, start=1):
                    try:
                        train_model(
                            name,
                            database=database,
                            images_dir=images_dir,
                            models_dir=models_dir,
                            device=device,
                            reporter=reporter,
                            options=options,
                            step=(step, len(selected)),
                        )
                    except WeightsError as error:
                        if choice is None or name in names:
                            raise
                        choice = choice.with_note(f"{name} is left out: {error}.")
                        choice.save(database)
                        _LOG.warning("%s", choice.notes[-1])
    except OSError as error:
        raise TrainingError(f"{error}; started again, the training resumes from its checkpoint") from error
    except (RecordsError, RegistryError) as error:
        raise TrainingError(str(error)) from error


def calibrate_if_due(
    settings: "Settings",
    database: "Database[dict[str, Any]]",
    *,
    device: "DeviceName" = "auto",
    epochs: int | None = None,
) -> None:
    """Calibrate the default models on predictions out of fold, as far as they are registered and not calibrated so.

    Of the processes of ``torchrun`` one alone does so.

    Raises:
        TrainingError: says why, and what to do; the models stay in use as they are.
    """
    from app.data.dataset import IMAGE_FOLDER, find_dataset
    from ml.dataset.records import RecordsError
    from ml.evaluation.folds import FoldError
    from ml.evaluation.out_of_fold import METRICS, calibrate_out_of_fold, needs_calibration
    from ml.models.model_specs import DEFAULTS
    from ml.registry.registry import Registry, RegistryError
    from ml.training.pretrained import WeightsError

    if os.environ.get("RANK", "0") != "0":
        return
    defaults = {name for models in DEFAULTS.values() for name in models}
    names = needs_calibration([c for c in Registry(database, settings.model_files_dir).cards() if c.name in defaults])
    if not names:
        _LOG.info("the default models that are registered are calibrated out of fold; nothing to calibrate")
        return
    try:
        from ml.training.progress import console_reporter

        with console_reporter() as reporter:
            cards = calibrate_out_of_fold(
                names,
                database,
                find_dataset(settings.dataset_dir) / IMAGE_FOLDER,
                settings.model_files_dir,
                device=device,
                epochs=epochs,
                reporter=reporter,
            )
    except FoldError as error:
        _LOG.warning("The models stay calibrated on dev: %s", error)
        return
    except (RecordsError, RegistryError, WeightsError, OSError) as error:
        raise TrainingError(f"the models could not be calibrated out of fold: {error}") from error
    for card in cards:
        for task, figures in card.metrics[METRICS].items():
            sure = figures["confident"]
            right = f", {sure['accuracy']:.3f} of them right" if sure["n"] else ""
            _LOG.info(
                "%s, %s out of fold: accuracy %.3f, calibration error %.3f, confident %.0f %%%s",
                *(card.name, task, figures["accuracy"], figures["ece"], 100 * sure["coverage"], right),
            )


def _choose(
    settings: "Settings", database: "Database[dict[str, Any]]", workers: "Team", device: "DeviceName"
) -> "TrainingChoice":
    """Which models this start trains; said in the log, and written where the service reads it.

    The processes of ``torchrun`` take over what the first one found: a network may answer one of them alone.
    """
    from ml.training.device import pick_device
    from ml.training.selection import TrainingChoice, choose_models
    from ml.training.train import usable_models

    if workers.is_main_process:
        trained = usable_models(database, settings.model_files_dir)
        choice = choose_models(settings.train, pick_device(device).type, trained)
        choice.save(database)
        _LOG.info("A start trains %s (%s).", ", ".join(choice.models), choice.reason)
        for note in choice.notes:
            _LOG.warning("%s", note)
    workers.wait()
    return choice if workers.is_main_process else TrainingChoice.load(database)


def _check(options: "Options", selected: Sequence[str]) -> None:
    """An option that changes nothing is a mistake; one that changes some of the models is not.

    Raises:
        TrainingError: names the option and the models that it is for.
    """
    from ml.models.model_specs import MODEL_SPECS
    from ml.training.context import Options

    plain = Options()
    for option in ("weights", "epochs"):
        idle = [name for name in selected if option not in MODEL_SPECS[name].options]
        if getattr(options, option) == getattr(plain, option) or not idle:
            continue
        if idle == list(selected):
            applicable = ", ".join(name for name, spec in MODEL_SPECS.items() if option in spec.options)
            raise TrainingError(f"--{option} changes nothing for {', '.join(selected)}; it is for {applicable}")
        _LOG.warning("--%s changes nothing for %s.", option, ", ".join(idle))
    if options.weights not in ("auto", "pretrained", "scratch") and not Path(options.weights).exists():
        raise TrainingError(f"--weights {options.weights}: there is no such file or folder")


def _reporter(workers: "Team") -> AbstractContextManager["Reporter"]:
    """Of the processes of ``torchrun`` one shows the progress; the others say only what went wrong."""
    from ml.training.progress import console_reporter, silent

    if workers.is_main_process:
        return console_reporter()
    logging.getLogger().setLevel(logging.ERROR)
    return nullcontext(silent)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds the run, so that it is reported as stopped; its checkpoints stay."""
    from ml.training.progress import STOPPED

    sys.exit(STOPPED)
