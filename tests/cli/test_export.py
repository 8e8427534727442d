import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from app.cli.export import ExportFailedError, run_export
from app.core.settings import Settings, load_settings
from tests.conftest import database_address

Document = dict[str, Any]


@pytest.fixture
def exporting(
    generated_database: Database[Document], mongo_server: str, generated_dataset: Path, tmp_path: Path
) -> tuple[Settings, str]:
    uri = database_address(mongo_server, generated_database.name)
    return load_settings(home=tmp_path / "home", data_dir=generated_dataset), uri


def _export(exporting: tuple[Settings, str], target: Path, **options: Any) -> int:
    usual: Mapping[str, Any] = {"of": "images", "conditions": []}
    return run_export(*exporting, target, file_format=target.suffix[1:], **{**usual, **options})


def test_a_selection_is_written(exporting: tuple[Settings, str], tmp_path: Path) -> None:
    size = _export(exporting, tmp_path / "ct.jsonl", conditions=["modality=CT", "split=dev"])
    text = (tmp_path / "ct.jsonl").read_text()
    assert size == len(text.encode())
    assert text.count('"modality": "CT"') == text.count("\n") > 0
    assert _export(exporting, tmp_path / "all.zip") > 10_000


def test_letter_case_is_folded_as_by_the_api(exporting: tuple[Settings, str], tmp_path: Path) -> None:
    for condition in ("plane=Axial", "plane=axial"):
        _export(exporting, tmp_path / f"{condition}.jsonl", conditions=[condition])
    assert (tmp_path / "plane=axial.jsonl").read_text() == (tmp_path / "plane=Axial.jsonl").read_text() != ""


def test_an_image_file_that_is_missing_is_named(
    exporting: tuple[Settings, str], tmp_path: Path, generated_dataset: Path
) -> None:
    settings, uri = exporting
    data = shutil.copytree(generated_dataset, tmp_path / "MedPix-2.0")
    gone = next((data / "images").iterdir())
    gone.unlink()
    with pytest.raises(ExportFailedError, match=gone.stem):
        _export((settings.model_copy(update={"data_dir": data}), uri), tmp_path / "all.zip")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"conditions": ["colour=red"]}, "colour"),
        ({"conditions": ["modality"]}, "expected one of CT, MR"),
        ({"raw": True}, "raw"),
        ({"conditions": ["plane=Axail"]}, "Axial"),  # a value that no image has, as the API says
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(
    exporting: tuple[Settings, str], tmp_path: Path, options: Document, words: str
) -> None:
    (tmp_path / "table.csv").write_text("old")
    with pytest.raises(ExportFailedError, match=words):
        _export(exporting, tmp_path / "table.csv", **options)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_text() == "old"


def test_a_folder_that_is_not_there_is_named(exporting: tuple[Settings, str], tmp_path: Path) -> None:
    with pytest.raises(ExportFailedError, match="nowhere"):
        _export(exporting, tmp_path / "nowhere" / "table.csv")
