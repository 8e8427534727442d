"""Grouped cross-validation over all cases: every image is scored by a model that never saw its patient."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from app.core.exceptions import UserError
from ml.dataset.records import Record
from ml.evaluation.duplicate_patients import patients
from ml.evaluation.retrain import Surroundings, train_and_ask
from ml.evaluation.scoring import Answers, measure
from ml.registry.model_card import ModelCard

FOLDS: Final = 5
# Cases of each fold's training part that it chooses and calibrates on, as dev is of the dataset.
DEV_SHARE: Final = 1 / 8


class FoldError(UserError):
    """The records cannot be divided into folds."""


@dataclass(frozen=True, slots=True)
class Fold:
    """The records of one fold; no patient is in two of its parts."""

    train: list[Record]
    dev: list[Record]
    held_out: list[Record]


def make_folds(records: Sequence[Record], count: int = FOLDS, seed: int = 0) -> Iterator[Fold]:
    """Divide all cases into folds with much the same locations; the cases of one patient stay together.

    Args:
        records: of every split.
        count: number of folds.
        seed: of the division.

    Raises:
        FoldError: there are fewer cases than folds need.
    """
    cases = patients(records)
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
    names: Sequence[str], records: Sequence[Record], around: Surroundings, *, seed: int = 0, count: int = FOLDS
) -> dict[str, tuple[ModelCard, dict[str, dict[str, Any]]]]:
    """Train models anew in every fold with their own recipes and score them on the held-out cases.

    A run that was stopped goes on from the checkpoints in the scratch folder, which is left there.

    Args:
        names: keys of ``ml.training.train.PLANS``, each after those that it builds on.
        records: of every split.
        around: device, folder, options.
        seed: of the division into folds.
        count: number of folds.

    Returns:
        By name the card of the first fold, and per task what ``scoring.measure`` gives for all
        records, and the accuracy of each fold with mean and standard deviation.

    Raises:
        FoldError: there are too few cases.
    """
    parts: dict[str, dict[str, list[Answers]]] = {name: {} for name in names}
    cards: dict[str, ModelCard] = {}
    for number, fold in enumerate(make_folds(records, count, seed), start=1):
        found = train_and_ask(
            names, train=fold.train, dev=fold.dev, asked=fold.held_out, around=around, part=f"fold {number} of {count}"
        )
        for name, (card, answers) in found.items():
            cards.setdefault(name, card)
            for task, own in answers.items():
                parts[name].setdefault(task, []).append(own)
    return {name: (cards[name], {task: _pool(own) for task, own in tasks.items()}) for name, tasks in parts.items()}


def _pool(parts: Sequence[Answers]) -> dict[str, Any]:
    """The scores of all folds together, and how they differ."""
    together = Answers(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("probabilities", "targets", "groups", "images")
        )
    )
    accuracies = [float(part.correct.mean()) if len(part.targets) else None for part in parts]
    known = [value for value in accuracies if value is not None]
    return measure(together) | {
        "folds": accuracies,
        "folds_mean": float(np.mean(known)),
        "folds_sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }
