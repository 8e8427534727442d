import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pymongo.database import Database

from app.data import schema
from app.data.seed import seed
from ml.dataset.records import Record, load_records
from ml.evaluation import splits as splits_module
from ml.evaluation.duplicate_patients import SAME_PATIENT
from ml.evaluation.scoring import LabelledPredictions
from ml.evaluation.splits import SplitError, content_hash, identity, leakage, without
from tests.ml.conftest import Document


@pytest.fixture
def splits(
    train_records: list[Record], dev_records: list[Record], test_records: list[Record]
) -> dict[str, list[Record]]:
    return {"train": train_records, "dev": dev_records, "test": test_records}


def near_cases(report: dict[str, Any], split: str = "test") -> set[str]:
    """The cases of a split that have a near-duplicate in another one."""
    items = [item for pair in report["near_duplicates"] for item in pair["images"]]
    return {item["u_id"] for item in items if item["split"] == split}


def test_the_generated_splits_share_nothing(splits: dict[str, list[Record]]) -> None:
    report = leakage(splits, "test")
    for kind in ("shared_cases", "shared_images", "same_files", "same_pixels", "same_patient"):
        assert report[kind] == [], kind
    assert set(report["suspect_cases"]) == near_cases(report), "generated pictures differ little"
    assert report["splits"]["test"]["images"] == len(splits["test"])
    assert report["splits"]["train"]["cases"] == 24


def test_planted_images_are_found(
    dataset_copy: Path, database: Database[Document], splits: dict[str, list[Record]]
) -> None:
    original, copied, recoded = splits["train"][0], splits["test"][0], splits["test"][-1]
    images = dataset_copy / "images"
    shutil.copy(images / original.path.name, images / copied.path.name)
    with Image.open(images / original.path.name) as image:
        image.convert("RGB").save(images / recoded.path.name, compress_level=1)
    seed(database, dataset_copy)
    planted = {name: load_records(database, images, (name,)) for name in splits}
    report = leakage(planted, "test")
    assert [{item["image"] for item in group} for group in report["same_files"]] == [{original.image, copied.image}]
    assert [{item["image"] for item in group} for group in report["same_pixels"]] == [
        {original.image, copied.image, recoded.image}
    ]
    assert report["suspect_cases"] == sorted({copied.u_id, recoded.u_id} | near_cases(report))
    near = {frozenset(item["image"] for item in pair["images"]) for pair in report["near_duplicates"]}
    assert {frozenset({original.image, copied.image}), frozenset({original.image, recoded.image})} <= near


def test_a_near_duplicate_is_a_suspect(
    dataset_copy: Path, database: Database[Document], splits: dict[str, list[Record]]
) -> None:
    original, near = splits["train"][0], near_cases(leakage(splits, "test"))
    copied = next(record for record in splits["test"] if record.u_id not in near)
    images = dataset_copy / "images"
    with Image.open(images / original.path.name) as image:
        darker = image.convert("L").point(lambda grey: grey * 0.9)
    darker.save(images / copied.path.name)
    seed(database, dataset_copy)
    report = leakage({name: load_records(database, images, (name,)) for name in splits}, "test")
    assert (report["same_files"], report["same_pixels"]) == ([], [])
    assert copied.u_id in report["suspect_cases"]
    assert set(report["suspect_cases"]) == near_cases(report)


def test_a_case_in_two_splits_is_found(splits: dict[str, list[Record]]) -> None:
    moved = replace(splits["train"][-1], split="test")
    report = leakage(splits | {"test": [*splits["test"], moved]}, "test")
    assert report["shared_cases"] == [moved.u_id]
    assert report["shared_images"] == [moved.image]
    assert report["suspect_cases"] == sorted({moved.u_id} | near_cases(report))


def test_cases_of_one_patient_are_named(splits: dict[str, list[Record]]) -> None:
    pair = SAME_PATIENT[0]
    changed = dict(splits)
    changed["train"] = [replace(splits["train"][0], u_id=pair.first), *splits["train"][1:]]
    changed["test"] = [replace(splits["test"][0], u_id=pair.second), *splits["test"][1:]]
    report = leakage(changed, "test")
    assert [(pair["first"], pair["second"], pair["splits"]) for pair in report["same_patient"]] == [
        (pair.first, pair.second, ["train", "test"])
    ]
    assert report["suspect_cases"] == sorted({pair.second} | near_cases(report))
    assert pair.second not in leakage(changed, "dev")["suspect_cases"]


def test_figures_without_cases_leave_all_their_images_out() -> None:
    rows = np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]], dtype=np.float32)
    cases = np.array(["a", "a", "b", "c"])
    predictions = LabelledPredictions(rows, np.zeros(4, dtype=np.int64), cases, np.arange(4).astype(str))
    exact = pytest.approx([0.025 ** (1 / 2), 1.0])
    assert without(predictions, ["c"]) == {"n": 3, "cases": 2, "accuracy": 1.0, "accuracy_95": exact}
    assert without(predictions, [])["accuracy"] == 0.75


def test_other_data_are_called_so_and_wrong_published_ones_refused(
    dataset_copy: Path, database: Database[Document]
) -> None:
    seed(database, dataset_copy)
    records = load_records(database, dataset_copy / "images", ("test",))
    checked = identity(database, "test", records)
    assert checked["checked"] == "the split 'test' of a dataset that is not MedPix 2.0, as it is"
    assert (checked["images"], checked["cases"], checked["published"], checked["exact"]) == (
        len(records),
        8,
        False,
        False,
    )
    database[schema.SEED_RUNS].update_one({}, {"$set": {"published": True}})
    with pytest.raises(SplitError, match=rf"holds {len(records)} test images .* not those of the published test split"):
        identity(database, "test", records)
    assert "'dev' of MedPix 2.0" in identity(database, "dev", records)["checked"]


def test_the_hash_is_of_names_files_and_labels_in_any_order(test_records: list[Record]) -> None:
    expected, first = content_hash(test_records), test_records[0]
    assert content_hash(test_records[::-1]) == expected
    assert content_hash(test_records[1:]) != expected
    changed = (
        replace(first, image="MPX1_synpic1"),
        replace(first, sha256="0" * 64),
        replace(first, modality="CT" if first.modality == "MR" else "MR"),
        replace(first, location="Vascular"),
        replace(first, location_category="Thorax" if first.location_category == "Head" else "Head"),
    )
    for record in changed:
        assert content_hash([record, *test_records[1:]]) != expected, record
    assert content_hash([replace(first, path=Path("elsewhere")), *test_records[1:]]) == expected


def test_the_right_content_of_a_dataset_that_is_not_published_is_not_exact(
    dataset_copy: Path, database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(database, dataset_copy)
    records = load_records(database, dataset_copy / "images", ("test",))
    monkeypatch.setattr(splits_module, "TEST_CONTENT_SHA256", content_hash(records))
    assert not identity(database, "test", records)["exact"]
    database[schema.SEED_RUNS].update_one({}, {"$set": {"published": True}})
    assert identity(database, "test", records)["exact"]
    assert not identity(database, "dev", records)["exact"]


@pytest.mark.medpix
def test_the_published_test_split_is_recognised(medpix_database: Database[Document], medpix_dir: Path) -> None:
    records = load_records(medpix_database, medpix_dir / "images", ("test",))
    checked = identity(medpix_database, "test", records)
    assert checked["checked"] == "exactly the 200 published test images of MedPix 2.0"
    assert checked["exact"]
    wrong = [replace(records[0], location="Spine" if records[0].location != "Spine" else "Vascular"), *records[1:]]
    with pytest.raises(SplitError, match="holds 200 test images whose names, files and labels"):
        identity(medpix_database, "test", wrong)
    with pytest.raises(SplitError, match="holds 199 test images"):
        identity(medpix_database, "test", records[1:])
