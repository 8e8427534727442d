import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from pymongo.errors import WriteError

from app.data import schema
from app.data.reader import SourceError, read_source
from app.data.seed import SeedError, seed

Document = dict[str, Any]


def _contents(database: Database[Document]) -> dict[str, list[Document]]:
    return {name: list(database[name].find().sort("_id")) for name in (schema.CASES, schema.IMAGES)}


def test_seeding_twice_changes_nothing(database: Database[Document], generated_dataset: Path) -> None:
    first = seed(database, generated_dataset)
    before = _contents(database)
    second = seed(database, generated_dataset)
    assert (first.cases.inserted, first.cases.changed) == (40, 0)
    assert (second.cases.inserted, second.cases.changed, second.cases.unchanged) == (0, 0, 40)
    assert (second.images.inserted, second.images.changed) == (0, 0)
    assert _contents(database) == before
    runs = list(database[schema.SEED_RUNS].find().sort("started_at"))
    assert [run["state"] for run in runs] == ["complete", "complete"]
    assert runs[0]["dataset_version"] == runs[1]["dataset_version"] == first.dataset_version
    assert all(len(file["sha256"]) == 64 for file in runs[0]["files"])


def test_what_was_changed_or_removed_upstream_follows(database: Database[Document], dataset_copy: Path) -> None:
    seed(database, dataset_copy)
    untouched = database[schema.CASES].find_one({"split": "dev"}) or {}
    database[schema.CASES].update_one({"_id": untouched["_id"]}, {"$set": {"Case.History": "edited by hand"}})
    stale = {**untouched, "_id": "MPX0001", "U_id": "MPX0001"}
    database[schema.CASES].insert_one(stale)
    report = seed(database, dataset_copy)
    assert (report.cases.inserted, report.cases.changed, report.cases.removed) == (0, 1, ("MPX0001",))
    assert database[schema.CASES].find_one({"_id": untouched["_id"]}) == untouched


def test_nothing_is_written_while_a_file_has_a_fault(database: Database[Document], dataset_copy: Path) -> None:
    path = dataset_copy / "splitted_dataset" / "descriptions_test.jsonl"
    path.write_text(path.read_text() + '{"broken": \n')
    with pytest.raises(SourceError, match=r"descriptions_test.jsonl:\d+: not a JSON record"):
        seed(database, dataset_copy)
    assert database.list_collection_names() == []


def test_the_server_checks_every_document_before_the_first_is_written(
    database: Database[Document], generated_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stricter = json.loads(json.dumps(schema.validator(schema.IMAGES)))
    stricter["$jsonSchema"]["properties"]["Type"] = {"enum": ["CT"]}
    original = schema.validator
    monkeypatch.setattr(schema, "validator", lambda name: stricter if name == schema.IMAGES else original(name))
    with pytest.raises(SourceError, match=r"descriptions_\w+.jsonl:\d+: .* does not pass the validator"):
        seed(database, generated_dataset)
    assert database[schema.IMAGES].count_documents({}) == 0
    assert database[schema.CASES].count_documents({}) == 0


def test_the_gate_sees_what_the_files_do_not_say(
    database: Database[Document], dataset_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that loses writes is played by a load that does nothing.
    monkeypatch.setattr("app.data.seed._load", lambda *_: None)
    with pytest.raises(SeedError, match=r"holds \{\} documents per split"):
        seed(database, dataset_copy)
    run = database[schema.SEED_RUNS].find_one() or {}
    assert run["state"] == "failed"


def test_validators_refuse_what_seeding_never_writes(generated_database: Database[Document]) -> None:
    document = generated_database[schema.IMAGES].find_one() or {}
    for change in ({"Type": "PET"}, {"surprise": 1}, {"image": "MPX1001_synpic99"}, {"split": "valid"}):
        with pytest.raises(WriteError, match="validation"):
            generated_database[schema.IMAGES].replace_one({"_id": document["_id"]}, {**document, **change})


def test_raw_records_are_kept_as_they_are(generated_database: Database[Document], generated_dataset: Path) -> None:
    source = read_source(generated_dataset)
    for name, records in ((schema.CASES, source.cases), (schema.IMAGES, source.images)):
        for key, record in records.items():
            stored = generated_database[name].find_one({"_id": key}) or {}
            assert {field: stored[field] for field in record.raw} == record.raw


def test_the_view_joins_each_image_with_its_case(generated_database: Database[Document]) -> None:
    joined = generated_database[schema.IMAGE_REPORTS].find_one({"U_id": "MPX1002"}) or {}
    assert joined["Case"]["Title"] == "Chest, Pulmonary lesion 1002"
    assert joined["Topic"]["Category"] == "Neoplasm, benign"
    total = generated_database[schema.IMAGE_REPORTS].count_documents({})
    assert total == generated_database[schema.IMAGES].count_documents({})


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.15, 0.3])
def test_a_killed_run_is_completed_by_the_next(
    database: Database[Document], generated_dataset: Path, mongo_server: str, delay_s: float, tmp_path: Path
) -> None:
    address, _, options = mongo_server.partition("?")
    uri = f"{address.rpartition('/')[0]}/{database.name}?{options}"
    environment = {**os.environ, "MEDPIX_MONGO_URI": uri, "MEDPIX_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "app.main", "seed", "--data", str(generated_dataset)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for_first_write(database, process)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    again = seed(database, generated_dataset)
    assert (again.cases.inserted, again.cases.changed) == (0, 0)
    assert (again.images.inserted, again.images.changed) == (0, 0)
    assert database[schema.CASES].count_documents({}) == 40


def _wait_for_first_write(database: Database[Document], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if database.list_collection_names():
            return
        time.sleep(0.005)
    raise AssertionError("the seeding ended, or 30 s passed, before it wrote anything")


@pytest.mark.medpix
def test_the_real_data_give_the_published_counts(medpix_database: Database[Document]) -> None:
    images, cases = medpix_database[schema.IMAGES], medpix_database[schema.CASES]

    def per_split(name: str) -> dict[str, int]:
        return {row["_id"]: row["count"] for row in medpix_database[name].aggregate([{"$sortByCount": "$split"}])}

    assert per_split(schema.CASES) == {"train": 535, "dev": 67, "test": 69}
    assert per_split(schema.IMAGES) == {"train": 1653, "dev": 197, "test": 200}
    assert images.count_documents({"subsplit": "train_1"}) == 810
    assert cases.count_documents({"norm.modalities": ["CT", "MR"]}) == 77
    flags = {"age_zero": 69, "sex_unknown": 67, "source_url_missing": 261, "plane_missing": 1, "acr_unknown": 99}
    for flag, count in flags.items():
        assert images.count_documents({"norm.quality_flags": flag}) == count
    assert cases.count_documents({"norm.quality_flags": "link_without_scheme"}) == 90
    assert cases.count_documents({"norm.quality_flags": "images_disagree"}) == 0


@pytest.mark.medpix
def test_seeding_the_real_data_again_changes_nothing(medpix_database: Database[Document], medpix_dir: Path) -> None:
    report = seed(medpix_database, medpix_dir)
    assert report.published
    assert (report.cases.inserted, report.cases.changed, report.cases.unchanged) == (0, 0, 671)
    assert (report.images.inserted, report.images.changed, report.images.unchanged) == (0, 0, 2050)
