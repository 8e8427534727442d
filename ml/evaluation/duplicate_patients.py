"""Patients who were entered as two cases, in different splits of the dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.dataset.records import Record, groups


@dataclass(frozen=True, slots=True)
class Twins:
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
    Twins("MPX1139", "MPX2540", "malrotation with appendicitis, the same slices, ages 67 and 62"),
    Twins("MPX2385", "MPX1460", "mucus plug, the same scan in another window, ages 56 and 26; probable"),
    Twins("MPX1683", "MPX1135", "phaeochromocytoma, man of 30, the same scan; locations Abdomen and Endocrine"),
    Twins("MPX1601", "MPX2518", "HSV encephalitis, man of 21, the same slice; two different locations"),
    Twins("MPX2046", "MPX2531", "Citrobacter koseri discitis, man of 52, nearly the same text"),
)


def patients(records: Sequence[Record]) -> NDArray[np.str_]:
    """The patient of each record, named by one of the patient's cases, (N,)."""
    first = {twins.second: twins.first for twins in SAME_PATIENT}
    return np.array([first.get(case, case) for case in groups(records).tolist()], dtype=np.str_)


def torn_patients(split_of: Mapping[str, set[str]]) -> list[dict[str, Any]]:
    """The pairs of ``SAME_PATIENT`` that are here, in different splits.

    Args:
        split_of: the splits of each case.

    Returns:
        first, second, splits (of the two, in this order) and why.
    """
    return [
        {
            "first": twins.first,
            "second": twins.second,
            "splits": [min(split_of[twins.first]), min(split_of[twins.second])],
            "why": twins.why,
        }
        for twins in SAME_PATIENT
        if twins.first in split_of and twins.second in split_of and split_of[twins.first] != split_of[twins.second]
    ]
