from dataclasses import replace

import pytest
from pymongo.database import Database

from app.data import schema
from ml.dataset.records import Record, groups
from ml.evaluation.duplicate_patients import SAME_PATIENT, patients, torn_patients
from tests.ml.conftest import Document


def test_the_cases_of_a_patient_have_one_name(train_records: list[Record]) -> None:
    twins = SAME_PATIENT[0]
    first, second, other = train_records[0], train_records[-1], train_records[len(train_records) // 2]
    found = patients([replace(first, u_id=twins.first), replace(second, u_id=twins.second), other])
    assert found[0] == found[1] != found[2]
    assert (patients(train_records) == groups(train_records)).all()


def test_torn_patients_are_those_in_two_splits() -> None:
    twins, others = SAME_PATIENT[:2]
    found = torn_patients(
        {twins.first: {"train"}, twins.second: {"test"}, others.first: {"dev"}, others.second: {"dev"}}
    )
    assert [(pair["first"], pair["second"], pair["splits"]) for pair in found] == [
        (twins.first, twins.second, ["train", "test"])
    ]


@pytest.mark.medpix
def test_the_named_patients_are_in_different_splits(medpix_database: Database[Document]) -> None:
    for twins in SAME_PATIENT:
        pair = medpix_database[schema.CASES].find({"_id": {"$in": [twins.first, twins.second]}})
        assert len({case["split"] for case in pair}) == 2, twins
