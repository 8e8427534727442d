"""Models trained anew for an evaluation, in folds or with other seeds, and never registered."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from numpy import uint8
from numpy.typing import NDArray

from ml.dataset.records import Record, snapshot_hash
from ml.evaluation.model_outputs import Asked, Pictures
from ml.evaluation.scoring import Answers
from ml.models.base import ServedModel
from ml.registry.model_card import ModelCard, now
from ml.registry.registry import UnknownModelError
from ml.training.context import Context, Options
from ml.training.device import Team
from ml.training.progress import Reporter, Run
from ml.training.train import PLANS, calibrate, trainer

# Where the families keep what was chosen before training; the rest of a card's settings is learned.
_RECIPE: Final = ("architecture", "recipe", "recipes", "head", "tune", "fit")
_FORGET_AFTER_S: Final = 30 * 24 * 3600.0


class Scratch:
    """Folders for the checkpoints of such trainings, so that hours are not lost to a full disk.

    Args:
        root: the folder that holds them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._used: list[Path] = []

    def folder(self, kind: str, records: Sequence[Record], options: Mapping[str, Options]) -> Path:
        """The folder for trainings on these records with these options; checkpoints of others are not taken up.

        Args:
            kind: what the trainings are for, as a part of a file name.
            records: that are trained on and scored.
            options: of each model.
        """
        chosen = {name: asdict(option) for name, option in options.items()}
        text = snapshot_hash(records) + json.dumps(chosen, sort_keys=True)
        path = self._root / f"anew-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._used.append(path)
        return path

    def clear(self) -> None:
        """Remove the folders that were asked for, once what they led to is written, and those of a month ago."""
        for path in self._root.glob("anew-*"):
            if path in self._used or time.time() - path.stat().st_mtime > _FORGET_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)


@dataclass(slots=True)
class TrainedModels:
    """The models that were trained together, kept in memory for those that build on them."""

    models: dict[str, ServedModel] = field(default_factory=dict)

    def load(self, name: str) -> ServedModel:
        """A model that was kept.

        Raises:
            UnknownModelError: it was not.
        """
        if name not in self.models:
            raise UnknownModelError(f"no model {name!r} was trained beside this one")
        return self.models[name]


@dataclass(slots=True)
class Surroundings:
    """What all trainings of one evaluation share.

    Attributes:
        device: where to train.
        scratch: folder for checkpoints.
        reporter: told about progress.
        options: of each model.
        images: decoded so far, see ``ml.training.context.Context``.
    """

    device: torch.device
    scratch: Path
    reporter: Reporter
    options: Mapping[str, Options]
    images: dict[str, dict[str, NDArray[uint8]]] = field(default_factory=dict)


def with_needs(names: Sequence[str]) -> list[str]:
    """The models, each after those that it builds on.

    Raises:
        UnknownModelError: a model has no recipe.
    """
    unknown = [name for name in names if name not in PLANS]
    if unknown:
        raise UnknownModelError(f"{', '.join(unknown)} cannot be trained anew; known are: {', '.join(PLANS)}")
    return list(dict.fromkeys(step for name in names for step in (*PLANS[name].needs, name)))


def train_and_ask(
    names: Sequence[str],
    *,
    train: list[Record],
    dev: list[Record],
    asked: Sequence[Record],
    around: Surroundings,
    part: str,
) -> dict[str, tuple[ModelCard, dict[str, Answers]]]:
    """Train models with their own recipes, calibrate them on dev, and ask them about other records.

    Args:
        names: keys of ``ml.training.train.PLANS``, each after those that it builds on.
        train: records to learn from.
        dev: records to choose and calibrate on.
        asked: records to answer.
        around: device, folder, options.
        part: which of the trainings this is, for people.

    Returns:
        By name the card, which was not registered, and the answers per task.
    """
    trained, pictures = TrainedModels(), Pictures()
    found = {}
    for name in names:
        with Run(f"{name}, {part}", PLANS[name].tasks, around.reporter) as run:
            context = Context(
                train=train,
                dev=dev,
                registry=trained,
                device=around.device,
                team=Team(),
                run=run,
                options=around.options[name],
                scratch=around.scratch / part.replace(" ", "-") / name,
                _images=around.images,
            )
            model = trainer(name)(context)
            calibrate(model, context)
            trained.models[name] = model
            found[name] = (model.card, Asked.ask(model, asked, pictures).answers())
    return found


def provenance(
    card: ModelCard, registered: ModelCard | None, records: Sequence[Record], options: Options
) -> dict[str, Any]:
    """How the figures of such trainings came about, as JSON values.

    Args:
        card: of one of the trained models.
        registered: of the registered model of that name, if there is one.
        records: that were trained on and scored.
        options: of the trainings.

    Returns:
        images, snapshot, options, init, measured_at, and official: whether the figures may stand for
        the registered model, which they may not after a quick try or with another recipe.
    """
    quick = options.epochs is not None or options.members is not None
    same = registered is not None and card.init == registered.init and _recipe(card) == _recipe(registered)
    return {
        "images": len(records),
        "snapshot": snapshot_hash(records),
        "options": {key: value for key, value in asdict(options).items() if key != "resume"},
        "init": card.init,
        "official": same and not quick,
        "measured_at": now().isoformat(),
    }


def _recipe(card: ModelCard) -> str:
    return json.dumps({key: card.settings[key] for key in _RECIPE if key in card.settings}, sort_keys=True)
