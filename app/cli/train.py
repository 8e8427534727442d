"""`medpix train`: which models, in which order, and what happens when it is stopped."""

import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from pymongo.database import Database

from app.core.exceptions import UserError
from app.core.settings import Settings
from app.data.dataset import IMAGE_FOLDER, find_dataset
from ml.dataset.records import RecordsError
from ml.registry.registry import RegistryError
from ml.training.context import Options
from ml.training.device import DeviceName, Team, pick_device, team
from ml.training.progress import STOPPED, Reporter, console_reporter, silent
from ml.training.train import MODEL_SPECS, models_to_train, queued, train_model

Document = dict[str, Any]
_LOG = logging.getLogger(__name__)


class TrainingError(UserError):
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
    options = Options(weights, seed, resume, epochs, thorough=thorough)
    try:
        with team(pick_device(device)) as workers, _reporter(workers) as reporter:
            wanted = models_to_train(names, database, models_dir, missing=missing)
            _check(options, wanted)
            workers.wait()  # all must have asked before one registers anything
            with queued(wanted, database) if workers.leads else nullcontext():
                for step, name in enumerate(wanted, start=1):
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
                        options=options,
                        step=(step, len(wanted)),
                    )
    except (RecordsError, RegistryError, OSError) as error:
        raise TrainingError(str(error)) from error


def _check(options: Options, wanted: Sequence[str]) -> None:
    """An option that changes nothing is a mistake; one that changes some of the models is not.

    Raises:
        TrainingError: names the option and the models that it is for.
    """
    plain = Options()
    for option in ("weights", "epochs", "thorough"):
        idle = [name for name in wanted if option not in MODEL_SPECS[name].options]
        if getattr(options, option) == getattr(plain, option) or not idle:
            continue
        if idle == list(wanted):
            known = ", ".join(name for name, plan in MODEL_SPECS.items() if option in plan.options)
            raise TrainingError(f"--{option} changes nothing for {', '.join(wanted)}; it is for {known}")
        _LOG.warning("--%s changes nothing for %s.", option, ", ".join(idle))
    if options.weights not in ("auto", "pretrained", "scratch") and not Path(options.weights).exists():
        raise TrainingError(f"--weights {options.weights}: there is no such file or folder")


def _reporter(workers: Team) -> AbstractContextManager[Reporter]:
    """Of the processes of ``torchrun`` one shows the progress; the others say only what went wrong."""
    if workers.leads:
        return console_reporter()
    logging.getLogger().setLevel(logging.ERROR)
    return nullcontext(silent)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds the run, so that it is reported as stopped; its checkpoints stay."""
    sys.exit(STOPPED)
