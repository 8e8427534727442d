"""Loads the MedPix 2.0 files into MongoDB so that running it again, or after a kill, ends the same."""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pymongo import ReplaceOne
from pymongo.database import Database
from pymongo.errors import BulkWriteError, OperationFailure

from app.core.exceptions import UserError
from app.data import dataset, schema
from app.data.fields import CASE_FIELDS, IMAGE_FIELDS, Field, pick
from app.data.image_counts import write_image_counts
from app.data.normalize import normalize_case, normalize_image
from app.data.reader import Source, SourceError, SourceRecord, read_source
from app.data.serializers import ANSWER, case_answer, image_answer

Document = dict[str, Any]

logger = logging.getLogger(__name__)

_BATCH = 500
_MAX_VOCABULARY = 500
_DUPLICATE_KEY = 11000


class SeedError(UserError):
    """The load stopped or its result is not what the files say; the message names each fault."""


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """What a load did to one collection."""

    inserted: int
    changed: int
    unchanged: int
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeedReport:
    """The outcome of one seeding run."""

    dataset_version: str
    published: bool
    cases: LoadCounts
    images: LoadCounts
    case_counts: Mapping[str, int]
    image_counts: Mapping[str, int]


def seed(database: Database[Document], folder: Path) -> SeedReport:
    """Load a MedPix 2.0 folder: check everything, then write, then check what was written.

    Nothing is written while any source file has a problem. Documents are replaced by their natural
    key, so a run that was killed is completed by the next one.

    Raises:
        dataset.DatasetNotFoundError: there is no such folder.
        SourceError: the files have problems; nothing was written.
        SeedError: the server refused a document, or the final check failed.
    """
    source = read_source(folder)
    cases, images = build_documents(source)
    schema.ensure_schema(database)
    _preflight(database, schema.CASES, cases, source.cases)
    _preflight(database, schema.IMAGES, images, source.images)

    data_version = dataset_version(source)
    runs = database[schema.SEED_RUNS]
    latest = runs.find_one(sort=schema.LATEST_RUN_FIRST) or {}
    if latest.get("state") == "running":
        _validate_collections(database)
    sequence = latest.get("sequence", 0) + 1
    run_id = runs.insert_one(_run_record(source, data_version, sequence)).inserted_id
    try:
        case_counts = _load(database, schema.CASES, cases)
        image_counts = _load(database, schema.IMAGES, images)
        _gate(database, source)
        write_image_counts(database, str(run_id), str(latest.get("_id")))
    except Exception as error:
        failed = {"state": "failed", "finished_at": datetime.now(UTC), "error": str(error)}
        runs.update_one({"_id": run_id}, {"$set": failed})
        raise
    report = SeedReport(
        dataset_version=data_version,
        published=source.is_published,
        cases=case_counts,
        images=image_counts,
        case_counts=_per_split(source.cases),
        image_counts=_per_split(source.images),
    )
    complete = {
        "state": "complete",
        "finished_at": datetime.now(UTC),
        **_bson(asdict(report)),
        "facets_counted": True,
        # Names what is stored, normalised values and answers included: a seeding that changes nothing keeps it.
        "records_sha256": _records_sha256([*cases, *images]),
        "values": {
            schema.CASES: _vocabulary(cases, CASE_FIELDS),
            schema.IMAGES: _vocabulary(images, IMAGE_FIELDS),
        },
    }
    runs.update_one({"_id": run_id}, {"$set": complete})
    return report


def build_documents(source: Source) -> tuple[list[Document], list[Document]]:
    """The documents of a source, ordered by key: (cases, images)."""
    norm_of: dict[str, Document] = {}
    images_of: dict[str, list[Document]] = defaultdict(list)
    for image, record in source.images.items():
        norm_of[image] = normalize_image(record.raw, source.overview.get(image))
        images_of[record.raw["U_id"]].append(norm_of[image])
    images, cases = [], []
    summaries: dict[str, list[bytes]] = defaultdict(list)
    for image, record in sorted(source.images.items()):
        document = _document(source, image, record, norm_of[image], file=source.image_files[image])
        document[ANSWER] = image_answer(document)
        summaries[record.raw["U_id"]].append(document[ANSWER]["summary"])
        images.append(_hashed(document))
    for u_id, record in sorted(source.cases.items()):
        document = _document(source, u_id, record, normalize_case(record.raw, images_of[u_id]))
        document[ANSWER] = case_answer(document, summaries[u_id])
        cases.append(_hashed(document))
    return cases, images


def _document(source: Source, key: str, record: SourceRecord, norm: Document, **extra: Any) -> Document:
    return {
        "_id": key,
        **record.raw,
        "split": record.split,
        "subsplit": source.subsplits.get(record.raw["U_id"]),
        "norm": norm,
        **extra,
    }


def _hashed(document: Document) -> Document:
    canonical = json.dumps(document, sort_keys=True, ensure_ascii=False, default=bytes.hex).encode()
    return {**document, "content_hash": hashlib.sha256(canonical).hexdigest()}


def _records_sha256(documents: Sequence[Document]) -> str:
    return hashlib.sha256("".join(document["content_hash"] for document in documents).encode()).hexdigest()


def dataset_version(source: Source) -> str:
    """A short hash of every source file, images included: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(source.files, key=lambda file: file.name):
        digest.update(f"{file.name}\0{file.sha256}\0".encode())
    for image, info in sorted(source.image_files.items()):
        digest.update(f"{image}\0{info['sha256']}\0".encode())
    return digest.hexdigest()[:16]


def _vocabulary(documents: Sequence[Document], catalogue: Mapping[str, Field]) -> list[Document]:
    """The values that occur in each keyword or list field with few of them; filters are checked against these."""
    vocabulary = []
    for field in catalogue.values():
        if field.kind not in ("keyword", "list") or field.pattern is not None:
            continue
        present = (pick(document, field.path) for document in documents)
        values = {item for value in present for item in (value if isinstance(value, list) else [value])} - {None}
        if len(values) <= _MAX_VOCABULARY:
            vocabulary.append({"field": field.name, "values": sorted(values)})
    return vocabulary


def _validate_collections(database: Database[Document]) -> None:
    """Let the server repair its fast counts, which are wrong after it was killed."""
    try:
        for name in (schema.CASES, schema.IMAGES):
            database.command("validate", name)
    except OperationFailure as error:
        # The user of the containers may not; nothing here relies on the fast counts.
        logger.info("the collections were not validated after a seeding that was killed: %s", error)


def _run_record(source: Source, data_version: str, sequence: int) -> Document:
    return {
        "state": "running",
        "sequence": sequence,
        "started_at": datetime.now(UTC),
        "finished_at": None,
        "dataset_version": data_version,
        "published": source.is_published,
        "files": [asdict(file) for file in source.files],
        "code_version": version("medpix-service"),
    }


def _batches(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    for start in range(0, len(documents), _BATCH):
        yield documents[start : start + _BATCH]


def _preflight(
    database: Database[Document], collection: str, documents: Sequence[Document], places: Mapping[str, SourceRecord]
) -> None:
    """Let the server apply the validator to every document before the first one is written."""
    refused = {"$match": {"$nor": [schema.validator(collection)]}}
    for batch in _batches(documents):
        stages: list[Document] = [{"$documents": {"$literal": batch}}, refused, {"$project": {"_id": 1}}]
        problems = [
            places[document["_id"]].problem(f"{document['_id']} does not pass the validator of {collection}")
            for document in database.aggregate(stages)
        ]
        if problems:
            raise SourceError(problems)


def _load(database: Database[Document], name: str, documents: Sequence[Document]) -> LoadCounts:
    collection = database[name]
    inserted = changed = 0
    for batch in _batches(documents):
        requests = [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in batch]
        try:
            result = collection.bulk_write(requests, ordered=False)
        except BulkWriteError as error:
            if any(failure["code"] != _DUPLICATE_KEY for failure in error.details["writeErrors"]):
                raise SeedError(_explain(name, error)) from error
            # Another seeding run inserted the same keys between our lookup and our write.
            result = collection.bulk_write(requests, ordered=False)
        inserted += result.upserted_count
        changed += result.modified_count
    removed = _remove_stale(database, name, {document["_id"] for document in documents})
    return LoadCounts(inserted, changed, len(documents) - inserted - changed, removed)


def _remove_stale(database: Database[Document], name: str, keys: set[str]) -> tuple[str, ...]:
    stale = tuple(sorted(set(database[name].distinct("_id")) - keys))
    for start in range(0, len(stale), _BATCH):
        database[name].delete_many({"_id": {"$in": stale[start : start + _BATCH]}})
    return stale


def _explain(name: str, error: BulkWriteError) -> str:
    failures = error.details["writeErrors"][:5]
    lines = [f"{f['op']['q']['_id']}: {f['errmsg']} {json.dumps(f.get('errInfo', {}), default=str)}" for f in failures]
    return f"MongoDB refused documents of {name}; run `medpix seed` again once this is solved:\n" + "\n".join(lines)


def _per_split(records: Mapping[str, SourceRecord]) -> Document:
    counts = Counter(record.split for record in records.values())
    return {split: counts[split] for split in dataset.SPLITS}


def _bson(value: Any) -> Any:
    """Tuples become lists; BSON knows no other sequence."""
    if isinstance(value, dict):
        return {key: _bson(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _gate(database: Database[Document], source: Source) -> None:
    """Compare what the database holds now with what the files say."""
    faults: list[str] = []
    expected = {schema.CASES: _per_split(source.cases), schema.IMAGES: _per_split(source.images)}
    if source.is_published and [*expected.values()] != [dataset.CASE_COUNTS, dataset.IMAGE_COUNTS]:
        faults.append(f"the published files must hold {dataset.CASE_COUNTS} cases and {dataset.IMAGE_COUNTS} images")
    for name, counts in expected.items():
        stored = {row["_id"]: row["n"] for row in database[name].aggregate([{"$sortByCount": "$split"}, _RENAME])}
        if stored != {split: count for split, count in counts.items() if count}:
            faults.append(f"{name} holds {stored} documents per split, the files {counts}")
        invalid = database[name].count_documents({"$nor": [schema.validator(name)]})
        if invalid:
            faults.append(f"{invalid} documents of {name} do not pass its validator")
    for name, other, key in ((schema.IMAGES, schema.CASES, "_id"), (schema.CASES, schema.IMAGES, "U_id")):
        orphans = [row["_id"] for row in database[name].aggregate(_orphans(other, key))]
        if orphans:
            faults.append(f"{name} holds orphans: {', '.join(orphans)}")
    missing = [name for name in _file_names(database) if not (source.folder / dataset.IMAGE_FOLDER / name).is_file()]
    if missing:
        faults.append(f"image files are missing: {', '.join(missing)}")
    if faults:
        raise SeedError("The database does not hold what the files say:\n" + "\n".join(faults))


_RENAME = {"$project": {"n": "$count"}}


def _orphans(other: str, key: str) -> list[Document]:
    lookup = {"from": other, "localField": "U_id", "foreignField": key, "as": "found", "pipeline": [{"$limit": 1}]}
    return [{"$lookup": lookup}, {"$match": {"found": []}}, {"$project": {"_id": 1}}, {"$limit": 20}]


def _file_names(database: Database[Document]) -> list[str]:
    return [row["file"]["name"] for row in database[schema.IMAGES].find({}, {"file.name": 1})]
