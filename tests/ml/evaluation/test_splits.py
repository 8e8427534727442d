import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pymongo.database import Database

from app.data import schema
from app.data.seed import seed
from ml.evaluation.scoring import Answers
from ml.evaluation.splits import SAME_PATIENT, SplitError, identity, leakage, names_hash, without
from ml.records import Record, load_records
from tests.ml.conftest import Document


@pytest.fixture
def splits(
    train_records: list[Record], dev_records: list[Record], test_records: list[Record]
) -> dict[str, list[Record]]:
    return {"train": train_records, "dev": dev_records, "test": test_records}


def test_the_generated_splits_share_nothing(splits: dict[str, list[Record]]) -> None:
    found = leakage(splits, "test")
    for kind in ("shared_cases", "shared_images", "same_files", "same_pixels", "same_patient", "suspect_cases"):
        assert found[kind] == [], kind
    assert found["splits"]["test"]["images"] == len(splits["test"])
    assert found["splits"]["train"]["cases"] == 24


def test_planted_pictures_are_found(
    dataset_copy: Path, database: Database[Document], splits: dict[str, list[Record]]
) -> None:
    known, copied, recoded = splits["train"][0], splits["test"][0], splits["test"][-1]
    images = dataset_copy / "images"
    shutil.copy(images / known.path.name, images / copied.path.name)
    with Image.open(images / known.path.name) as image:
        image.convert("RGB").save(images / recoded.path.name, compress_level=1)
    seed(database, dataset_copy)
    planted = {name: load_records(database, images, (name,)) for name in splits}
    found = leakage(planted, "test")
    assert [{item["image"] for item in group} for group in found["same_files"]] == [{known.image, copied.image}]
    assert [{item["image"] for item in group} for group in found["same_pixels"]] == [
        {known.image, copied.image, recoded.image}
    ]
    assert found["suspect_cases"] == sorted({copied.u_id, recoded.u_id})
    near = {frozenset(item["image"] for item in pair["images"]) for pair in found["near_duplicates"]}
    assert {frozenset({known.image, copied.image}), frozenset({known.image, recoded.image})} <= near


def test_a_case_in_two_splits_is_found(splits: dict[str, list[Record]]) -> None:
    moved = replace(splits["train"][-1], split="test")
    found = leakage(splits | {"test": [*splits["test"], moved]}, "test")
    assert found["shared_cases"] == [moved.u_id]
    assert found["shared_images"] == [moved.image]
    assert found["suspect_cases"] == [moved.u_id]


def test_cases_of_one_patient_are_named(splits: dict[str, list[Record]]) -> None:
    twins = SAME_PATIENT[0]
    changed = dict(splits)
    changed["train"] = [replace(splits["train"][0], u_id=twins.first), *splits["train"][1:]]
    changed["test"] = [replace(splits["test"][0], u_id=twins.second), *splits["test"][1:]]
    found = leakage(changed, "test")
    assert [(pair["first"], pair["second"], pair["splits"]) for pair in found["same_patient"]] == [
        (twins.first, twins.second, ["train", "test"])
    ]
    assert found["suspect_cases"] == [twins.second]
    assert leakage(changed, "dev")["suspect_cases"] == []


def test_figures_without_cases_leave_all_their_images_out() -> None:
    rows = np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]], dtype=np.float32)
    cases = np.array(["a", "a", "b", "c"])
    answers = Answers(rows, np.zeros(4, dtype=np.int64), cases, np.arange(4).astype(str))
    assert without(answers, ["c"]) == {"n": 3, "cases": 2, "accuracy": 1.0, "accuracy_95": [1.0, 1.0]}
    assert without(answers, [])["accuracy"] == 0.75


def test_other_data_are_called_so_and_wrong_published_ones_refused(
    dataset_copy: Path, database: Database[Document]
) -> None:
    seed(database, dataset_copy)
    records = load_records(database, dataset_copy / "images", ("test",))
    found = identity(database, "test", records)
    assert found["checked"] == "the split 'test' of a dataset that is not MedPix 2.0, as it is"
    assert (found["images"], found["cases"], found["published"]) == (len(records), 8, False)
    database[schema.SEED_RUNS].update_one({}, {"$set": {"published": True}})
    with pytest.raises(SplitError, match=rf"holds {len(records)} test images .* not the 200 published ones"):
        identity(database, "test", records)
    assert "'dev' of MedPix 2.0" in identity(database, "dev", records)["checked"]


def test_the_hash_of_names_ignores_their_order(test_records: list[Record]) -> None:
    assert names_hash(test_records) == names_hash(test_records[::-1])
    assert names_hash(test_records) != names_hash(test_records[1:])


@pytest.mark.medpix
def test_the_published_test_split_is_recognised(medpix_database: Database[Document], medpix_dir: Path) -> None:
    records = load_records(medpix_database, medpix_dir / "images", ("test",))
    found = identity(medpix_database, "test", records)
    assert found["checked"] == "exactly the 200 published test images of MedPix 2.0"
    with pytest.raises(SplitError, match="holds 199 test images"):
        identity(medpix_database, "test", records[1:])


@pytest.mark.medpix
def test_the_named_patients_are_in_different_splits(medpix_database: Database[Document]) -> None:
    for twins in SAME_PATIENT:
        pair = medpix_database[schema.CASES].find({"_id": {"$in": [twins.first, twins.second]}})
        assert len({case["split"] for case in pair}) == 2, twins
