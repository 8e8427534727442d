from dataclasses import replace

import pytest
from pymongo.database import Database

from app.data import schema
from ml.dataset.records import Record, groups
from ml.evaluation.duplicate_patients import SAME_PATIENT, patients, patients_across_splits
from tests.ml.conftest import Document


def test_the_cases_of_a_patient_have_one_name(train_records: list[Record]) -> None:
    pair = SAME_PATIENT[0]
    first, second, other = train_records[0], train_records[-1], train_records[len(train_records) // 2]
    names = patients([replace(first, u_id=pair.first), replace(second, u_id=pair.second), other])
    assert names[0] == names[1] != names[2]
    assert (patients(train_records) == groups(train_records)).all()


def test_torn_patients_are_those_in_two_splits() -> None:
    pair, other_pair = SAME_PATIENT[:2]
    torn = patients_across_splits(
        {pair.first: {"train"}, pair.second: {"test"}, other_pair.first: {"dev"}, other_pair.second: {"dev"}}
    )
    assert [(pair["first"], pair["second"], pair["splits"]) for pair in torn] == [
        (pair.first, pair.second, ["train", "test"])
    ]


@pytest.mark.medpix
def test_the_named_patients_are_in_different_splits(medpix_database: Database[Document]) -> None:
    for pair in SAME_PATIENT:
        cases = medpix_database[schema.CASES].find({"_id": {"$in": [pair.first, pair.second]}})
        assert len({case["split"] for case in cases}) == 2, pair
