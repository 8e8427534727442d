"""Reads the MedPix 2.0 files and names everything that is wrong with them, by file and line."""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.core.exceptions import UserError, message_of
from app.data import dataset
from app.data.record import CaseId, SourceCase, SourceImage

Document = dict[str, Any]
_UID_LIST = TypeAdapter(dict[str, list[CaseId]])


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong with the source files."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class SourceError(UserError):
    """The source files cannot be loaded; ``problems`` says why, one entry per place."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One record of a JSONL file with the place it came from."""

    raw: Document
    split: str
    file: str
    line: int

    def problem(self, message: str) -> Problem:
        """A problem at this record's place."""
        return Problem(self.file, self.line, message)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was read: its name, content hash and number of records."""

    name: str
    sha256: str
    rows: int


@dataclass(slots=True)
class Source:
    """Everything read from a MedPix 2.0 folder, checked and cross-checked."""

    folder: Path
    cases: dict[str, SourceRecord] = field(default_factory=dict)
    images: dict[str, SourceRecord] = field(default_factory=dict)
    subsplits: dict[str, str] = field(default_factory=dict)
    overview: dict[str, dict[str, str]] = field(default_factory=dict)
    image_files: dict[str, Document] = field(default_factory=dict)
    files: list[SourceFile] = field(default_factory=list)

    @property
    def is_published(self) -> bool:
        """Whether the text files are byte for byte those of the published dataset."""
        hashes = {file.name: file.sha256 for file in self.files}
        return all(hashes.get(name) == sha256 for name, sha256 in dataset.SHA256.items())


def read_source(folder: Path) -> Source:
    """Read and check a MedPix 2.0 folder.

    Only data_{train,dev,test}.jsonl and descriptions_{train,dev,test}.jsonl are read: the files of
    train_1 and train_2 repeat train, and their membership comes from uid_list.json.

    Raises:
        dataset.DatasetNotFoundError: there is no such folder.
        SourceError: one problem or more, each with its file and line.
    """
    source = Source(dataset.find_dataset(folder))
    problems: list[Problem] = []
    problems += _unknown_splits(source.folder)
    for split in dataset.SPLITS:
        problems += _read_jsonl(source, f"data_{split}.jsonl", split, SourceCase, "U_id", source.cases)
        problems += _read_jsonl(source, f"descriptions_{split}.jsonl", split, SourceImage, "image", source.images)
    problems += _read_uid_list(source)
    problems += _read_overview(source)
    problems += _check_references(source)
    problems += _read_image_files(source)
    if problems:
        raise SourceError(problems)
    return source


def _unknown_splits(folder: Path) -> Iterator[Problem]:
    expected = {*dataset.SPLITS, *dataset.SUBSPLITS}
    for path in sorted((folder / dataset.JSONL_FOLDER).glob("*.jsonl")):
        prefix, _, split = path.stem.partition("_")
        if prefix in ("data", "descriptions") and split not in expected:
            yield Problem(path.name, 0, f"unknown split {split!r}; known are {', '.join(sorted(expected))}")


def _read_text(source: Source, path: Path, rows: int | None = None) -> str:
    data = path.read_bytes()
    text = data.decode("utf-8")
    count = rows if rows is not None else sum(1 for line in text.splitlines() if line.strip())
    source.files.append(SourceFile(path.name, hashlib.sha256(data).hexdigest(), count))
    return text


def _read_jsonl(
    source: Source, name: str, split: str, model: type[BaseModel], key: str, records: dict[str, SourceRecord]
) -> Iterator[Problem]:
    path = source.folder / dataset.JSONL_FOLDER / name
    try:
        text = _read_text(source, path)
    except FileNotFoundError:
        yield Problem(name, 0, f"the file is missing from {path.parent}")
        return
    except UnicodeDecodeError as error:
        yield Problem(name, 0, f"not UTF-8 text: {error}")
        return
    # str.splitlines would also break at U+2028 inside a caption.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            model.model_validate(raw)
        except json.JSONDecodeError as error:
            yield Problem(name, number, f"not a JSON record: {error.msg} at column {error.colno}")
            continue
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_input=False):
                field_path = ".".join(map(str, problem["loc"])) or "record"
                yield Problem(name, number, f"{field_path}: {message_of(problem)}")
            continue
        record = SourceRecord(raw, split, name, number)
        first = records.setdefault(raw[key], record)
        if first is not record:
            yield record.problem(f"{key} {raw[key]} is already in {first.file}:{first.line}")


def _read_uid_list(source: Source) -> Iterator[Problem]:
    name = dataset.UID_LIST
    path = source.folder / dataset.JSONL_FOLDER / name
    try:
        members = _UID_LIST.validate_json(_read_text(source, path, rows=1))
    except FileNotFoundError:
        yield Problem(name, 0, f"the file is missing from {path.parent}")
        return
    except (ValidationError, UnicodeDecodeError) as error:
        yield Problem(name, 1, f"not a table of case ids per split: {error}")
        return
    for split in members:
        if split not in (*dataset.SPLITS, *dataset.SUBSPLITS):
            yield Problem(name, 1, f"unknown split {split!r}")
    for split in dataset.SPLITS:
        listed = set(members.get(split, ()))
        loaded = {u_id for u_id, record in source.cases.items() if record.split == split}
        for u_id in sorted(listed - loaded):
            yield Problem(name, 1, f"{u_id} is listed in {split}, but data_{split}.jsonl does not have it")
        for u_id in sorted(loaded - listed):
            yield source.cases[u_id].problem(f"{u_id} has an unknown split: {name} does not list it in {split}")
    for subsplit in dataset.SUBSPLITS:
        for u_id in members.get(subsplit, ()):
            if u_id not in source.cases or source.cases[u_id].split != "train":
                yield Problem(name, 1, f"{u_id} is listed in {subsplit}, but is not a case of train")
            elif source.subsplits.setdefault(u_id, subsplit) != subsplit:
                yield Problem(name, 1, f"{u_id} is listed in both {' and '.join(dataset.SUBSPLITS)}")


def _read_overview(source: Source) -> Iterator[Problem]:
    """images_overview.csv lists another set of images: it only adds addresses to those that match."""
    path = source.folder / dataset.OVERVIEW
    if not path.exists():
        return
    try:
        rows = list(csv.DictReader(_read_text(source, path).splitlines()))
    except UnicodeDecodeError as error:
        yield Problem(path.name, 0, f"not UTF-8 text: {error}")
        return
    for number, row in enumerate(rows, start=2):
        image, large, article = (row.get(key) for key in ("ID_Image", "Img_Large", "URL_Article_image"))
        if not (image and large and article):
            yield Problem(path.name, number, "expected the columns ID_Image, Img_Large and URL_Article_image")
            continue
        source.overview[image] = {"Img_Large": large, "URL_Article_image": article}


def _check_references(source: Source) -> Iterator[Problem]:
    images_of: dict[str, dict[str, str]] = defaultdict(dict)
    for image, record in source.images.items():
        u_id = record.raw["U_id"]
        images_of[u_id][image] = record.raw["Type"]
        case = source.cases.get(u_id)
        if not image.startswith(f"{u_id}_"):
            yield record.problem(f"image {image} does not belong to its U_id {u_id}")
        if case is None:
            yield record.problem(f"orphan: image {image} names case {u_id}, which no data_*.jsonl has")
        elif case.split != record.split:
            yield record.problem(f"image {image} is in {record.split}, its case {u_id} in {case.split}")
    for u_id, record in source.cases.items():
        listed = dict.fromkeys(record.raw["TAC"], "CT") | dict.fromkeys(record.raw["MRI"], "MR")
        described = images_of[u_id]
        if not described:
            yield record.problem(f"orphan: no image describes case {u_id}")
        for image in sorted(set(listed) - set(described)):
            yield record.problem(f"case {u_id} lists image {image}, which no descriptions_*.jsonl has")
        for image in sorted(set(described) - set(listed)):
            yield record.problem(f"case {u_id} does not list its image {image}")
        for image in sorted(set(described) & set(listed)):
            if described[image] != listed[image]:
                yield record.problem(
                    f"image {image} is {described[image]}, but case {u_id} lists it as {listed[image]}"
                )


def _read_image_files(source: Source) -> list[Problem]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        results = pool.map(_read_image_file, [source.folder / dataset.IMAGE_FOLDER] * len(source.images), source.images)
        problems = []
        for (image, record), result in zip(source.images.items(), results, strict=True):
            if isinstance(result, str):
                problems.append(record.problem(f"image {image}: {result}"))
            else:
                source.image_files[image] = result
    return problems


def _read_image_file(folder: Path, image: str) -> Document | str:
    path = folder / f"{image}.png"
    try:
        data = path.read_bytes()
        with Image.open(path, formats=["PNG"]) as opened:
            width, height, mode = *opened.size, opened.mode
            opened.verify()  # reads every chunk and its checksum
    except FileNotFoundError:
        return f"the file {path.name} is missing from {folder}"
    except (OSError, SyntaxError, ValueError) as error:
        return f"the file {path.name} is not a whole PNG image: {error}"
    digest = hashlib.sha256(data).hexdigest()
    return {
        "name": path.name,
        "sha256": digest,
        "bytes": len(data),
        "width": width,
        "height": height,
        "mode": mode,
    }
