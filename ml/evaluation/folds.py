"""Folds for grouped cross-validation: every image is scored by a model that never saw its patient."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from app.core.exceptions import UserError
from ml.dataset.records import Record
from ml.evaluation.duplicate_patients import patients

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
    locations = np.array([record.location or "" for record in records], dtype=np.str_)
    _, strata = np.unique(locations, return_inverse=True)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for training, held_out in _without_warnings(splitter, strata, cases):
        names = np.unique(cases[training])
        chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(DEV_SHARE * len(names)))]
        is_dev = np.isin(cases, chosen)
        yield Fold(
            train=[records[row] for row in training if not is_dev[row]],
            dev=[records[row] for row in training if is_dev[row]],
            held_out=[records[row] for row in held_out],
        )


def _without_warnings(
    splitter: StratifiedGroupKFold, strata: NDArray[np.int64], cases: NDArray[np.str_]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    with warnings.catch_warnings():
        # Rare locations have fewer cases than there are folds; that is the dataset.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return list(splitter.split(np.zeros(len(cases)), strata, cases))
