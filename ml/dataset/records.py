"""The images that models learn from and are scored on, read out of MongoDB in one aggregation."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymongo.database import Database

from app.core.exceptions import UserError
from app.data import schema
from ml.dataset import labels

Document = Mapping[str, Any]


class RecordsError(UserError):
    """The records cannot be used; the message says what is missing and what to do about it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image with the labels and the caption that belong to it.

    Attributes:
        image: natural key, as ``MPX1009_synpic46283``.
        u_id: its case; never split a case between training and scoring.
        split: train, dev or test.
        subsplit: train_1, train_2 or None.
        path: the image file.
        sha256: hash of the file when it was seeded.
        mode: pixel mode of the file, as ``RGB`` or ``RGBA``.
        caption: white space folded, "" where the dataset has only a placeholder.
        modality: CT or MR.
        location: one of ``labels.LOCATIONS``, None for "Left Blank".
        location_category: one of ``labels.LOCATION_CATEGORIES``.
        plane: as the dataset has it; noisy.
        age: years, None where unknown.
        sex: male, female or None.
        report: texts of the case, to learn the words of a location from; never an input of a model.
    """

    image: str
    u_id: str
    split: str
    subsplit: str | None
    path: Path
    sha256: str
    mode: str
    caption: str
    modality: str
    location: str | None
    location_category: str
    plane: str | None
    age: int | None
    sex: str | None
    report: tuple[str, ...] = ()

    def label(self, task: str) -> str | None:
        """The label of a task; the field of a record has the task's name."""
        value: str | None = getattr(self, task)
        return value


_REPORT_FIELDS = ("title", "findings", "history", "exam", "discussion")
_SPLITS = ("train", "dev", "test")


def _pipeline(splits: Sequence[str]) -> list[dict[str, Any]]:
    """The images in the order of their names, then their cases: each text is sent once, not once per image."""
    of_splits = {"$match": {"split": {"$in": list(splits)}}}
    report = {field: f"$norm.{field}" for field in _REPORT_FIELDS}
    cases = [of_splits, {"$project": {"listed": {"$setUnion": ["$TAC", "$MRI"]}, **report}}]
    return [
        of_splits,
        {"$sort": {"_id": 1}},
        {"$project": {"U_id": 1, "split": 1, "subsplit": 1, "file": 1, "norm": 1}},
        {"$unionWith": {"coll": schema.CASES, "pipeline": cases}},
    ]


def load_records(
    database: Database[dict[str, Any]], images_dir: Path, splits: Sequence[str] = ("train",)
) -> list[Record]:
    """The records of some splits, ordered by image.

    Args:
        database: the seeded database.
        images_dir: folder with the PNG files.
        splits: any of train, dev and test.

    Raises:
        RecordsError: the database is empty or holds part of the dataset, or files are missing.
    """
    documents, cases = [], {}
    for document in database[schema.IMAGES].aggregate(_pipeline(splits)):
        if "split" in document:
            documents.append(document)
        else:
            cases[document["_id"]] = document
    for document in documents:
        document["case"] = cases.get(document["U_id"])
    counts = Counter(document["split"] for document in documents)
    for split in splits:
        if not counts[split]:
            count = database[schema.IMAGES].estimated_document_count()
            raise RecordsError(
                f"the database {database.name!r} has no {split} images "
                f"({schema.IMAGES} holds {count} documents); run `medpix seed` first"
            )
    _check_whole(documents)
    _check_seeded(database, documents, splits)
    records = [_record(document, images_dir) for document in documents]
    _check_files(records, [int(document["file"]["bytes"]) for document in documents])
    return records


def _check_seeded(database: Database[dict[str, Any]], documents: Sequence[Document], splits: Sequence[str]) -> None:
    """Whole cases that are gone leave no trace but in the counts of the last seeding."""
    runs = database[schema.SEED_RUNS]
    latest = runs.find_one(sort=schema.LATEST_RUN_FIRST)
    complete = runs.find_one({"state": "complete"}, sort=[("finished_at", -1)])
    # A run that broke off while it wrote the same files again left nothing but these.
    if latest is None or complete is None or latest["dataset_version"] != complete["dataset_version"]:
        raise RecordsError("no seeding of this database was completed; run `medpix seed`, it goes on where it stopped")
    counts = Counter(document["split"] for document in documents)
    for split in splits:
        seeded = complete.get("image_counts", {}).get(split)
        if counts[split] != seeded:
            raise RecordsError(
                f"the database is partial: it holds {counts[split]} {split} images, and {seeded} were seeded; "
                "run `medpix seed` again"
            )


def _check_whole(documents: Sequence[Document]) -> None:
    """Refuse an incomplete database: a model of a part of the data must not pass for one of all."""
    present: defaultdict[str, set[str]] = defaultdict(set)
    listed: dict[str, set[str]] = {}
    for document in documents:
        if not all(document.get(field) for field in ("norm", "file", "case")):
            lacks = [field for field in ("norm", "file", "case") if not document.get(field)]
            raise RecordsError(f"image {document['_id']} has no {' and no '.join(lacks)}; run `medpix seed` again")
        present[document["U_id"]].add(document["_id"])
        listed[document["U_id"]] = set(document["case"].get("listed") or ())
    missing = sorted(image for u_id, images in listed.items() for image in images - present[u_id])
    if missing:
        raise RecordsError(
            f"the database is partial: {len(missing)} images that their cases list are not there "
            f"({_some(missing)}); run `medpix seed` again"
        )


def _record(document: Document, images_dir: Path) -> Record:
    norm, case = document["norm"], document["case"]
    record = Record(
        image=document["_id"],
        u_id=document["U_id"],
        split=document["split"],
        subsplit=document.get("subsplit"),
        path=images_dir / document["file"]["name"],
        sha256=document["file"]["sha256"],
        mode=document["file"]["mode"],
        caption=norm["caption"] or "",
        modality=norm["modality"],
        location=norm["location"],
        location_category=norm["location_category"],
        plane=norm["plane"],
        age=norm["age"],
        sex=norm["sex"],
        report=tuple(case[field] for field in _REPORT_FIELDS if case.get(field)),
    )
    for task in labels.TASKS:
        try:
            labels.encode(task, record.label(task))
        except labels.UnknownLabelError as error:
            raise RecordsError(
                f"image {record.image}: {error}. The models of this version know the classes of MedPix 2.0 alone; "
                "correct the label in the source files and run `medpix seed` again"
            ) from error
    return record


def _check_files(records: Sequence[Record], sizes: Sequence[int]) -> None:
    missing, changed = [], []
    for record, size in zip(records, sizes, strict=True):
        try:
            if record.path.stat().st_size != size:
                changed.append(record.path.name)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(record.path.name)
    if missing:
        folder = records[0].path.parent
        raise RecordsError(
            f"{len(missing)} of {len(records)} image files are missing from {folder} ({_some(missing)}); "
            "check the data folder or run `medpix fetch`"
        )
    if changed:
        raise RecordsError(
            f"{len(changed)} image files differ in size from what was seeded ({_some(changed)}); "
            "restore them or run `medpix seed` again"
        )


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def targets(records: Sequence[Record], task: str) -> NDArray[np.int64]:
    """The class indices of a task, shape (N,), ``labels.IGNORED`` where there is no label."""
    return np.array([labels.encode(task, record.label(task)) for record in records], dtype=np.int64)


def plane_targets(records: Sequence[Record]) -> NDArray[np.int64]:
    """Class indices of the plane, (N,); what is no clean section is ignored."""
    names = ["Axial" if record.plane == "Transverse" else record.plane for record in records]
    return np.array([labels.PLANES.index(n) if n in labels.PLANES else labels.IGNORED for n in names], dtype=np.int64)


def need_labels(records: Sequence[Record], tasks: Iterable[str]) -> None:
    """Check that a split can be learned from, or scored on.

    Raises:
        RecordsError: a task has no labelled image.
    """
    for task in tasks:
        if all(record.label(task) is None for record in records):
            raise RecordsError(
                f"none of the {len(records)} {records[0].split} images has a {task}: there is nothing to learn or to "
                "score. Check the labels of the source files, and run `medpix seed` again"
            )


def groups(records: Sequence[Record]) -> NDArray[np.str_]:
    """The case of each record, shape (N,): the unit that splits and bootstraps keep together."""
    return np.array([record.u_id for record in records], dtype=np.str_)


def _snapshot_lines(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        fields = asdict(record)
        # The folder differs between machines; the file name is part of the data.
        fields["path"] = record.path.name
        yield json.dumps(fields, sort_keys=True, ensure_ascii=True) + "\n"


def snapshot_hash(records: Iterable[Record]) -> str:
    """A sha256 over everything in the records but the folder of the files."""
    digest = hashlib.sha256()
    for line in _snapshot_lines(records):
        digest.update(line.encode())
    return digest.hexdigest()
