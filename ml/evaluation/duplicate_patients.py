"""Patients who were entered as two cases, in different splits of the dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.dataset.records import Record, groups


@dataclass(frozen=True, slots=True)
class DuplicatePatient:
    """Two cases of one patient in different splits, found by viewing and reading them.

    Attributes:
        first: a case.
        second: the other.
        why: what shows it.
    """

    first: str
    second: str
    why: str


SAME_PATIENT: Final = (
    DuplicatePatient("MPX1139", "MPX2540", "malrotation with appendicitis, the same slices, ages 67 and 62"),
    DuplicatePatient("MPX2385", "MPX1460", "mucus plug, the same scan in another window, ages 56 and 26; probable"),
    DuplicatePatient(
        "MPX1683", "MPX1135", "phaeochromocytoma, man of 30, the same scan; locations Abdomen and Endocrine"
    ),
    DuplicatePatient("MPX1601", "MPX2518", "HSV encephalitis, man of 21, the same slice; two different locations"),
    DuplicatePatient("MPX2046", "MPX2531", "Citrobacter koseri discitis, man of 52, nearly the same text"),
)


def patients(records: Sequence[Record]) -> NDArray[np.str_]:
    """The patient of each record, named by one of the patient's cases, (N,)."""
    first = {pair.second: pair.first for pair in SAME_PATIENT}
    return np.array([first.get(case, case) for case in groups(records).tolist()], dtype=np.str_)


def patients_across_splits(split_of: Mapping[str, set[str]]) -> list[dict[str, Any]]:
    """The pairs of ``SAME_PATIENT`` that are here, in different splits.

    Args:
        split_of: the splits of each case.

    Returns:
        first, second, splits (of the two, in this order) and why.
    """
    return [
        {
            "first": pair.first,
            "second": pair.second,
            "splits": [min(split_of[pair.first]), min(split_of[pair.second])],
            "why": pair.why,
        }
        for pair in SAME_PATIENT
        if pair.first in split_of and pair.second in split_of and split_of[pair.first] != split_of[pair.second]
    ]
