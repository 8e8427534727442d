"""`medpix train`: which models, in which order, and what happens when it is stopped."""

import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

from pymongo.database import Database

from app.config import MendableError, Settings
from app.data.dataset import IMAGE_FOLDER, find_dataset
from ml.context import Options
from ml.device import DeviceName, Team, pick_device, team
from ml.progress import Reporter, console_reporter, silent
from ml.records import RecordsError
from ml.registry import RegistryError
from ml.train import models_to_train, queue, train_model

Document = dict[str, Any]


class TrainingError(MendableError):
    """A model could not be trained; the models that were registered before stay in use."""


def run_training(
    settings: Settings,
    database: Database[Document],
    names: Sequence[str],
    *,
    missing: bool,
    weights: str,
    device: DeviceName,
    seed: int,
    resume: bool,
    epochs: int | None,
    thorough: bool,
) -> None:
    """Train models one after the other; started by ``torchrun``, with all its processes.

    Args:
        settings: where the data and the model files are.
        database: the seeded database.
        names: of models and tasks, or "all".
        missing: also train the default models that are missing.
        weights: auto, pretrained, scratch or a path.
        device: auto, cpu, cuda or mps.
        seed: of everything random.
        resume: go on from checkpoints.
        epochs: instead of the recipe's.
        thorough: the better recipe that takes longer.

    Raises:
        TrainingError: says why, and what to do.
    """
    signal.signal(signal.SIGTERM, _stop)
    models_dir = settings.model_files_dir
    images_dir = find_dataset(settings.dataset_dir) / IMAGE_FOLDER
    try:
        with team(pick_device(device)) as workers, _reporter(workers) as reporter:
            wanted = models_to_train(names, database, models_dir, missing=missing)
            workers.wait()  # all must have asked before one registers anything
            if workers.leads:
                queue(wanted, database)
            for name in wanted:
                train_model(
                    name,
                    database=database,
                    images_dir=images_dir,
                    models_dir=models_dir,
                    weights=weights,
                    device=device,
                    seed=seed,
                    resume=resume,
                    reporter=reporter,
                    options=Options(epochs=epochs, thorough=thorough),
                )
    except (RecordsError, RegistryError, OSError) as error:
        raise TrainingError(str(error)) from error


def _reporter(workers: Team) -> AbstractContextManager[Reporter]:
    """Of the processes of ``torchrun`` one shows the progress; the others say only what went wrong."""
    if workers.leads:
        return console_reporter()
    logging.getLogger().setLevel(logging.ERROR)
    return nullcontext(silent)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds the run, so that it is reported as stopped; its checkpoints stay."""
    sys.exit("The training was stopped. Start it again to go on from its last checkpoint.")
