import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.data.dataset import DatasetNotFoundError
from app.data.reader import SourceError, read_source

Document = dict[str, Any]
Edit = Callable[[Path], None]


def _lines(folder: Path, name: str) -> tuple[Path, list[str]]:
    path = folder / "splitted_dataset" / name
    return path, path.read_text().splitlines()


def _rewrite(name: str, line: int, change: Callable[[Document], object]) -> Edit:
    """An edit of one record; ``line`` counts from 1."""

    def edit(folder: Path) -> None:
        path, lines = _lines(folder, name)
        record = json.loads(lines[line - 1])
        change(record)
        lines[line - 1] = json.dumps(record)
        path.write_text("\n".join(lines) + "\n")

    return edit


def _replace_line(name: str, line: int, text: str) -> Edit:
    def edit(folder: Path) -> None:
        path, lines = _lines(folder, name)
        lines[line - 1] = text
        path.write_text("\n".join(lines) + "\n")

    return edit


def _drop_line(name: str, line: int) -> Edit:
    def edit(folder: Path) -> None:
        path, lines = _lines(folder, name)
        path.write_text("\n".join(lines[: line - 1] + lines[line:]) + "\n")

    return edit


def _repeat_line(name: str, line: int) -> Edit:
    def edit(folder: Path) -> None:
        path, lines = _lines(folder, name)
        path.write_text("\n".join([*lines, lines[line - 1]]) + "\n")

    return edit


def _first_image(folder: Path) -> Path:
    record = json.loads(_lines(folder, "descriptions_dev.jsonl")[1][0])
    return folder / "images" / f"{record['image']}.png"


def _cut_image(folder: Path) -> None:
    path = _first_image(folder)
    path.write_bytes(path.read_bytes()[:-40])


def _unknown_split_in_list(folder: Path) -> None:
    path = folder / "splitted_dataset" / "uid_list.json"
    members = json.loads(path.read_text())
    members["valid"] = members.pop("dev")
    path.write_text(json.dumps(members))


def _unknown_split_file(folder: Path) -> None:
    (folder / "splitted_dataset" / "data_valid.jsonl").write_text("")


DEV, DEV_CASES = "descriptions_dev.jsonl", "data_dev.jsonl"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (_replace_line(DEV, 2, '{"Type": "CT", '), f"{DEV}:2: not a JSON record"),
        (
            _rewrite(DEV, 3, lambda r: r["Description"].update(Age=7)),
            f"{DEV}:3: Description.Age: Input should be a valid",
        ),
        (_rewrite(DEV, 3, lambda r: r.update(Type="PET")), f"{DEV}:3: Type: Input should be 'CT' or 'MR'"),
        (_rewrite(DEV, 3, lambda r: r.update(Extra=1)), f"{DEV}:3: Extra: Extra inputs are not permitted"),
        (_rewrite(DEV_CASES, 2, lambda r: r["Case"].pop("History")), f"{DEV_CASES}:2: Case.History: Field required"),
        (_rewrite(DEV, 1, lambda r: r.update(U_id="MPX0001")), f"{DEV}:1: orphan: image"),
        (_drop_line(DEV, 1), f"{DEV_CASES}:1: case"),
        (_drop_line(DEV_CASES, 1), f"{DEV}:1: orphan: image"),
        (_repeat_line(DEV, 1), "is already in descriptions_dev.jsonl:1"),
        (lambda folder: _first_image(folder).unlink(), f"{DEV}:1: image"),
        (_cut_image, "is not a whole PNG image"),
        (_unknown_split_in_list, "uid_list.json:1: unknown split 'valid'"),
        (_unknown_split_file, "data_valid.jsonl: unknown split 'valid'"),
        (lambda folder: (folder / "splitted_dataset" / DEV).unlink(), f"{DEV}: the file is missing"),
        (lambda folder: (folder / "splitted_dataset" / DEV).write_bytes(b"\xff\xfe"), f"{DEV}: not UTF-8 text"),
        (
            lambda folder: (folder / "images_overview.csv").write_bytes(b"\xff\xfe"),
            "images_overview.csv: not UTF-8 text",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "edit",
)
def test_each_fault_is_named_by_file_and_line(dataset_copy: Path, edit: Edit, expected: str) -> None:
    edit(dataset_copy)
    with pytest.raises(SourceError) as caught:
        read_source(dataset_copy)
    assert expected in str(caught.value)


def test_every_fault_is_named_not_only_the_first(dataset_copy: Path) -> None:
    _replace_line(DEV, 2, "nonsense")(dataset_copy)
    _rewrite("data_test.jsonl", 1, lambda r: r.update(TAC="x"))(dataset_copy)
    with pytest.raises(SourceError) as caught:
        read_source(dataset_copy)
    files = {problem.file for problem in caught.value.problems}
    assert {DEV, "data_test.jsonl"} <= files


def test_a_missing_folder_says_how_to_get_the_data(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="medpix fetch"):
        read_source(tmp_path / "nowhere")
    with pytest.raises(DatasetNotFoundError, match="splitted_dataset"):
        read_source(tmp_path)


def test_the_halves_of_train_are_not_read_as_records(generated_dataset: Path) -> None:
    source = read_source(generated_dataset)
    assert {file.name for file in source.files if file.name.endswith(".jsonl")} == {
        f"{kind}_{split}.jsonl" for kind in ("data", "descriptions") for split in ("train", "dev", "test")
    }
    assert set(source.subsplits.values()) == {"train_1", "train_2"}
    assert not source.is_published


@pytest.mark.medpix
def test_the_published_files_are_recognised(medpix_dir: Path) -> None:
    source = read_source(medpix_dir)
    assert source.is_published
    assert (len(source.cases), len(source.images)) == (671, 2050)
    assert len(source.overview.keys() & source.images.keys()) == 1789
