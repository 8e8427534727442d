from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pymongo.database import Database

from app.data.seed import seed
from ml.dataset.labels import IGNORED
from ml.dataset.records import (
    Record,
    RecordsError,
    groups,
    load_records,
    need_labels,
    snapshot_hash,
    targets,
)
from tests.ml.conftest import Document

SPLITS = ("train", "dev", "test")


def test_records_are_ordered_and_joined(train_records: list[Record]) -> None:
    assert [record.image for record in train_records] == sorted(record.image for record in train_records)
    assert {record.split for record in train_records} == {"train"}
    assert {record.subsplit for record in train_records} == {"train_1", "train_2"}
    first = train_records[0]
    assert first.path.is_file()
    assert first.image.startswith(first.u_id)
    assert any("shows a" in record.caption for record in train_records)
    assert any("pain" in text for text in first.report)


def test_placeholders_become_empty_captions(dev_records: list[Record]) -> None:
    assert {record.caption for record in dev_records if "Replace" in record.caption} == set()
    assert any(record.caption == "" for record in dev_records)


def test_left_blank_is_ignored(dev_records: list[Record]) -> None:
    blank = [index for index, record in enumerate(dev_records) if record.location is None]
    assert blank
    assert set(targets(dev_records, "location")[blank]) == {IGNORED}
    assert IGNORED not in targets(dev_records, "location_category")


def test_groups_are_cases(train_records: list[Record]) -> None:
    assert len(set(groups(train_records))) == 24


def test_an_empty_database_is_named(database: Database[Document], images_dir: Path) -> None:
    with pytest.raises(RecordsError, match=r"no train images .*run `medpix seed` first"):
        load_records(database, images_dir)


def test_a_partial_database_is_named(
    database: Database[Document], generated_dataset: Path, images_dir: Path, train_records: list[Record]
) -> None:
    seed(database, generated_dataset)
    counts = Counter(record.u_id for record in train_records)
    lost = next(record.image for record in train_records if counts[record.u_id] > 1)
    database["Image_Descriptions"].delete_one({"_id": lost})
    with pytest.raises(RecordsError, match=f"partial: 1 images .*{lost}"):
        load_records(database, images_dir)


def test_lost_cases_are_counted(database: Database[Document], generated_dataset: Path, images_dir: Path) -> None:
    seed(database, generated_dataset)
    for collection in ("Image_Descriptions", "Clinical_reports"):
        database[collection].delete_many({"split": "train", "U_id": {"$gt": "MPX1005"}})
    with pytest.raises(
        RecordsError, match=r"partial: it holds \d+ train images, and 60 were seeded; run `medpix seed`"
    ):
        load_records(database, images_dir)
    assert load_records(database, images_dir, ("dev",))
    seed(database, generated_dataset)
    assert len(load_records(database, images_dir)) == 60


def test_a_seeding_that_broke_off_is_named(
    database: Database[Document], generated_dataset: Path, images_dir: Path
) -> None:
    seed(database, generated_dataset)
    runs = database["Seed_runs"]
    broken = {**(runs.find_one() or {}), "_id": 1, "state": "running", "started_at": datetime.now(UTC)}
    runs.insert_one(broken)
    assert load_records(database, images_dir), "the same files, half written again, are still the same files"
    runs.update_one({"_id": 1}, {"$set": {"dataset_version": "another"}})
    with pytest.raises(RecordsError, match="no seeding of this database was completed; run `medpix seed`"):
        load_records(database, images_dir)
    runs.delete_many({})
    with pytest.raises(RecordsError, match="no seeding of this database was completed"):
        load_records(database, images_dir)


def test_a_label_that_is_no_class_is_named_with_its_image(
    database: Database[Document], generated_dataset: Path, images_dir: Path, train_records: list[Record]
) -> None:
    seed(database, generated_dataset)
    image = train_records[0].image
    database["Image_Descriptions"].update_one({"_id": image}, {"$set": {"norm.location": "Elbow"}})
    with pytest.raises(RecordsError, match=f"image {image}: 'Elbow' is not a class of location; .*`medpix seed`"):
        load_records(database, images_dir)


def test_an_image_without_case_is_named(
    database: Database[Document], generated_dataset: Path, images_dir: Path, train_records: list[Record]
) -> None:
    seed(database, generated_dataset)
    database["Clinical_reports"].delete_one({"_id": train_records[0].u_id})
    with pytest.raises(RecordsError, match=f"image {train_records[0].image} has no case"):
        load_records(database, images_dir)


def test_missing_and_changed_files_are_named(ml_database: Database[Document], dataset_copy: Path) -> None:
    images = dataset_copy / "images"
    names = sorted(record.path.name for record in load_records(ml_database, images))
    (images / names[1]).write_bytes(b"short")
    with pytest.raises(RecordsError, match=f"1 image files differ in size .*{names[1]}"):
        load_records(ml_database, images)
    (images / names[0]).unlink()
    with pytest.raises(RecordsError, match=f"1 of {len(names)} image files are missing .*{names[0]}"):
        load_records(ml_database, images)
    file = images / names[2]
    with pytest.raises(RecordsError, match=f"{len(names)} of {len(names)} image files are missing from {file}"):
        load_records(ml_database, file)


def test_the_hash_of_a_snapshot_is_that_of_everything_but_the_folder(train_records: list[Record]) -> None:
    expected = snapshot_hash(train_records)
    moved = [replace(record, path=Path("/elsewhere") / record.path.name) for record in train_records]
    assert snapshot_hash(moved) == expected
    assert snapshot_hash([replace(train_records[0], caption="another"), *train_records[1:]]) != expected


def test_a_split_without_labels_is_named(dev_records: list[Record]) -> None:
    blank = [replace(record, location=None) for record in dev_records]
    need_labels(blank, ("modality", "location_category"))
    with pytest.raises(RecordsError, match=f"none of the {len(blank)} dev images has a location"):
        need_labels(blank, ("modality", "location"))


@pytest.mark.medpix
def test_the_real_dataset_has_the_published_counts(medpix_database: Database[Document], medpix_dir: Path) -> None:
    records = load_records(medpix_database, medpix_dir / "images", SPLITS)
    assert Counter(record.split for record in records) == {"train": 1653, "dev": 197, "test": 200}
    assert len(np.unique(groups(records))) == 671
    assert Counter(record.modality for record in records) == {"CT": 1062, "MR": 988}
    assert sum(record.location is None for record in records) == 1
    of = {split: {record.u_id for record in records if record.split == split} for split in SPLITS}
    assert not of["train"] & of["test"]
    assert not of["dev"] & of["test"]
