"""Grouped cross-validation over all cases: every image is scored by a model that never saw its case."""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from app.config import MendableError
from ml.context import Context, Options
from ml.device import Team
from ml.evaluation.asking import Asked, Pictures
from ml.evaluation.scoring import Answers, measure
from ml.models.base import ServedModel
from ml.progress import Reporter, Run
from ml.records import Record, groups
from ml.registry import UnknownModelError
from ml.train import PLANS, calibrate, trainer

FOLDS: Final = 5
# Cases of each fold's training part that it chooses and calibrates on, as dev is of the dataset.
DEV_SHARE: Final = 1 / 8


class FoldError(MendableError):
    """The records cannot be divided into folds."""


@dataclass(frozen=True, slots=True)
class Fold:
    """The records of one fold; no case is in two of its parts."""

    train: list[Record]
    dev: list[Record]
    held_out: list[Record]


class TrainedModels:
    """The models of one fold, kept in memory for those that build on them."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    def add(self, name: str, model: ServedModel) -> None:
        """Keep a model."""
        self._models[name] = model

    def load(self, name: str) -> ServedModel:
        """A model that was kept.

        Raises:
            UnknownModelError: it was not.
        """
        if name not in self._models:
            raise UnknownModelError(f"no model {name!r} was trained in this fold")
        return self._models[name]


def make_folds(records: Sequence[Record], count: int = FOLDS, seed: int = 0) -> Iterator[Fold]:
    """Divide all cases into folds with much the same locations.

    Args:
        records: of every split.
        count: number of folds.
        seed: of the division.

    Raises:
        FoldError: there are fewer cases than folds need.
    """
    cases = groups(records)
    if len(np.unique(cases)) < 2 * count:
        raise FoldError(f"{count} folds need at least {2 * count} cases, there are {len(np.unique(cases))}")
    places = np.array([record.location or "" for record in records], dtype=np.str_)
    _, strata = np.unique(places, return_inverse=True)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for rest, held_out in _without_warnings(splitter, strata, cases):
        names = np.unique(cases[rest])
        chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(DEV_SHARE * len(names)))]
        is_dev = np.isin(cases, chosen)
        yield Fold(
            train=[records[row] for row in rest if not is_dev[row]],
            dev=[records[row] for row in rest if is_dev[row]],
            held_out=[records[row] for row in held_out],
        )


def _without_warnings(
    splitter: StratifiedGroupKFold, strata: NDArray[np.int64], cases: NDArray[np.str_]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    with warnings.catch_warnings():
        # Rare locations have fewer cases than there are folds; that is the dataset.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return list(splitter.split(np.zeros(len(cases)), strata, cases))


def cross_validate(
    names: Sequence[str],
    records: Sequence[Record],
    *,
    device: torch.device,
    scratch: Path,
    reporter: Reporter,
    options: Options,
    count: int = FOLDS,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Train models anew in every fold with their own recipes and score them on the held-out cases.

    A run that was stopped goes on from the checkpoints in ``scratch``.

    Args:
        names: keys of ``ml.train.PLANS``; what they need is trained too, and scored.
        records: of every split.
        device: where to train.
        scratch: folder for checkpoints, removed at the end.
        reporter: told about progress.
        options: as in training.
        count: number of folds.

    Returns:
        Per model and task what ``scoring.measure`` gives for all records, and the accuracy of each
        fold with mean and standard deviation.

    Raises:
        FoldError: there are too few cases.
        UnknownModelError: a model has no recipe.
    """
    order = _with_needs(names)
    shared: dict[str, dict[str, NDArray[np.uint8]]] = {}
    found: dict[str, dict[str, list[Answers]]] = {name: {} for name in order}
    for number, fold in enumerate(make_folds(records, count, options.seed), start=1):
        trained, pictures = TrainedModels(), Pictures()
        for name in order:
            with Run(f"{name}, fold {number} of {count}", PLANS[name].tasks, reporter) as run:
                context = Context(
                    train=fold.train,
                    dev=fold.dev,
                    registry=trained,
                    device=device,
                    team=Team(),
                    run=run,
                    options=options,
                    scratch=scratch / f"fold-{number}" / name,
                    _images=shared,
                )
                model = trainer(name)(context)
                calibrate(model, context)
                trained.add(name, model)
                for task, answers in Asked.ask(model, fold.held_out, pictures).answers().items():
                    found[name].setdefault(task, []).append(answers)
    shutil.rmtree(scratch, ignore_errors=True)
    return {name: {task: _pool(parts) for task, parts in tasks.items()} for name, tasks in found.items()}


def _with_needs(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in PLANS]
    if unknown:
        raise UnknownModelError(f"{', '.join(unknown)} cannot be trained anew; known are: {', '.join(PLANS)}")
    return list(dict.fromkeys(step for name in names for step in (*PLANS[name].needs, name)))


def _pool(parts: Sequence[Answers]) -> dict[str, Any]:
    """The scores of all folds together, and how they differ."""
    together = Answers(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("probabilities", "targets", "groups", "images")
        )
    )
    accuracies = [float(part.correct.mean()) for part in parts]
    return measure(together) | {
        "folds": accuracies,
        "folds_mean": float(np.mean(accuracies)),
        "folds_sd": float(np.std(accuracies, ddof=1)),
    }
