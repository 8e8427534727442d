from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.core.progress import Progress
from ml.dataset.records import Record
from ml.evaluation.duplicate_patients import SAME_PATIENT
from ml.evaluation.folds import FoldError, cross_validate, make_folds
from ml.evaluation.retrain import Surroundings, with_needs
from ml.training.context import Options


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
    twins, names = SAME_PATIENT[0], sorted({record.u_id for record in records})
    renamed = {names[0]: twins.first, names[-1]: twins.second}
    changed = [replace(record, u_id=renamed.get(record.u_id, record.u_id)) for record in records]
    for seed in range(8):
        for fold in make_folds(changed, 5, seed):
            parts = [{record.u_id for record in part} for part in (fold.train, fold.dev, fold.held_out)]
            assert sum(bool(part & {twins.first, twins.second}) for part in parts) == 1


def test_models_are_trained_anew_with_what_they_need(records: list[Record], tmp_path: Path) -> None:
    heard: list[Progress] = []
    names = with_needs(["fused-location"])
    around = Surroundings(
        torch.device("cpu"), tmp_path / "cv", heard.append, dict.fromkeys(names, Options(epochs=1, members=1))
    )
    whole = cross_validate(names, records, around, count=2)
    assert list(whole) == ["compact", "caption-location", "fused-location"]
    found = {name: tasks for name, (_, tasks) in whole.items()}
    labelled = sum(record.location is not None for record in records)
    assert found["fused-location"]["location"]["n"] == labelled < len(records)
    assert found["compact"]["modality"]["n"] == len(records)
    category = found["caption-location"]["location_category"]
    assert category["accuracy"] > 0.7
    assert category["folds_mean"] == pytest.approx(sum(category["folds"]) / 2)
    low, high = category["accuracy_95"]
    assert low <= category["accuracy"] <= high
    assert list((tmp_path / "cv").rglob("*.safetensors")), "what hours made stays until the report is written"
    assert {progress.name for progress in heard} >= {"compact, fold 1 of 2", "fused-location, fold 2 of 2"}
    assert heard[-1].state == "done"
