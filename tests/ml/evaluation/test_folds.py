from dataclasses import replace

import pytest

from ml.dataset.records import Record
from ml.evaluation.duplicate_patients import SAME_PATIENT
from ml.evaluation.folds import FoldError, make_folds


@pytest.fixture
def records(train_records: list[Record], dev_records: list[Record], test_records: list[Record]) -> list[Record]:
    return [*train_records, *dev_records, *test_records]


def test_every_image_is_held_out_once_and_no_case_is_torn(records: list[Record]) -> None:
    folds = list(make_folds(records, 5))
    assert len(folds) == 5
    held_out = [record.image for fold in folds for record in fold.held_out]
    assert sorted(held_out) == sorted(record.image for record in records)
    for fold in folds:
        parts = [{record.u_id for record in part} for part in (fold.train, fold.dev, fold.held_out)]
        assert all(parts)
        assert len(set.union(*parts)) == sum(map(len, parts)) == 40
        assert len(parts[1]) == 4


def test_the_seed_decides_the_folds(records: list[Record]) -> None:
    def first(seed: int) -> list[Record]:
        return next(make_folds(records, 5, seed)).held_out

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_too_few_cases_are_refused(records: list[Record]) -> None:
    few = [record for record in records if record.u_id in {records[0].u_id, records[-1].u_id}]
    with pytest.raises(FoldError, match="5 folds need at least 10 cases, there are 2"):
        next(make_folds(few, 5))


def test_the_cases_of_one_patient_stay_together(records: list[Record]) -> None:
    pair, names = SAME_PATIENT[0], sorted({record.u_id for record in records})
    renamed = {names[0]: pair.first, names[-1]: pair.second}
    changed = [replace(record, u_id=renamed.get(record.u_id, record.u_id)) for record in records]
    for seed in range(8):
        for fold in make_folds(changed, 5, seed):
            parts = [{record.u_id for record in part} for part in (fold.train, fold.dev, fold.held_out)]
            assert sum(bool(part & {pair.first, pair.second}) for part in parts) == 1
