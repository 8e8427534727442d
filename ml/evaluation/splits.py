"""Which images are scored, and whether any of them is known from training."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pymongo.database import Database

from app.core.exceptions import UserError
from app.data import schema
from ml.dataset import labels
from ml.dataset.records import Record
from ml.evaluation.duplicate_patients import patients_across_splits
from ml.evaluation.scoring import LabelledPredictions, short

# ``content_hash`` of the published test split of MedPix 2.0: 200 images of 69 cases with their labels.
TEST_CONTENT_SHA256: Final = "99612ffba8613ac8f2173a1e2abdc0ec1dc764ede9f6bba003248dd092248301"
_THUMBNAIL: Final = 32
NEAR: Final = 0.97


class SplitError(UserError):
    """The evaluated set is not what it should be."""


def content_hash(records: Sequence[Record]) -> str:
    """sha256 over name, file hash and labels of each record, in the order of the names.

    One line for each: image name, sha256 of the file, and the labels of all tasks in the order of
    ``ml.dataset.labels.TASKS`` ("" where there is none), with tabulators between them.
    """
    lines = [
        "\t".join([record.image, record.sha256, *(record.label(task) or "" for task in labels.TASKS)]) + "\n"
        for record in sorted(records, key=lambda record: record.image)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def identity(database: Database[dict[str, Any]], split: str, records: Sequence[Record]) -> dict[str, Any]:
    """What is evaluated: counts, hash and dataset; for the published test split it must be exactly that.

    Args:
        database: the seeded database.
        split: name of the evaluated split.
        records: of the evaluated split.

    Returns:
        split, images, cases, content_sha256, published, exact (whether these are the published 200
        test images with their labels), dataset_version, checked (the same in words).

    Raises:
        SplitError: the dataset was seeded as the published one, but this is not its test split.
    """
    run = database[schema.SEED_RUNS].find_one({"state": "complete"}, sort=schema.LATEST_RUN_FIRST) or {}
    published = bool(run.get("published"))
    content = content_hash(records)
    exact = published and split == "test" and content == TEST_CONTENT_SHA256
    if published and split == "test" and not exact:
        raise SplitError(
            f"the database holds {len(records)} test images whose names, files and labels (hash {content[:12]}) are "
            f"not those of the published test split ({TEST_CONTENT_SHA256[:12]}); run `medpix seed` again"
        )
    return {
        "split": split,
        "images": len(records),
        "cases": len({record.u_id for record in records}),
        "content_sha256": content,
        "published": published,
        "exact": exact,
        "dataset_version": run.get("dataset_version"),
        "checked": (
            "exactly the 200 published test images of MedPix 2.0"
            if exact
            else f"the split {split!r} of {'MedPix 2.0' if published else 'a dataset that is not MedPix 2.0'}, as it is"
        ),
    }


def leakage(splits: Mapping[str, Sequence[Record]], evaluated: str) -> dict[str, Any]:
    """Cases, files, images and patients that are in more than one split.

    Args:
        splits: records of every split.
        evaluated: name of the evaluated split.

    Returns:
        shared_cases, shared_images, same_files and same_pixels across splits, near_duplicates (cosine
        of 32x32 thumbnails above 0.97) across splits, same_patient pairs that are here, and suspect_cases: the
        cases of the evaluated split with any of these, to leave out for a clean figure.
    """
    records = [record for members in splits.values() for record in members]
    prints = _fingerprints(records)
    suspects: set[str] = set()
    same_files = _shared([record.sha256 for record in records], records)
    same_pixels = _shared([pixels for pixels, _ in prints], records)
    near = _near(np.stack([thumbnail for _, thumbnail in prints]), records)
    split_of = defaultdict(set)
    for record in records:
        split_of[record.u_id].add(record.split)
    shared_cases = sorted(u_id for u_id, names in split_of.items() if len(names) > 1)
    names = Counter(record.image for record in records)
    patients = patients_across_splits(split_of)
    for group in (*same_files, *same_pixels, *(pair["images"] for pair in near)):
        suspects |= {item["u_id"] for item in group if item["split"] == evaluated}
    for pair in patients:
        suspects |= {pair[side] for side in ("first", "second") if evaluated in split_of[pair[side]]}
    suspects |= {u_id for u_id in shared_cases if evaluated in split_of[u_id]}
    return {
        "splits": {
            split: {
                "images": len(members),
                "cases": len({record.u_id for record in members}),
                "content_sha256": content_hash(members),
            }
            for split, members in splits.items()
        },
        "shared_cases": shared_cases,
        "shared_images": sorted(name for name, count in names.items() if count > 1),
        "same_files": same_files,
        "same_pixels": same_pixels,
        "near_duplicates": near,
        "same_patient": patients,
        "suspect_cases": sorted(suspects),
    }


def without(predictions: LabelledPredictions, cases: Sequence[str]) -> dict[str, Any]:
    """n, cases, accuracy and interval of the answers about other cases."""
    return short(predictions.only(~np.isin(predictions.groups, list(cases))))


def _shared(hashes: Sequence[str], records: Sequence[Record]) -> list[list[dict[str, str]]]:
    """Groups of records with equal hashes that are not all in one split."""
    by_hash: defaultdict[str, list[Record]] = defaultdict(list)
    for value, record in zip(hashes, records, strict=True):
        by_hash[value].append(record)
    return [
        [_name(record) for record in members]
        for members in by_hash.values()
        if len({record.split for record in members}) > 1
    ]


def _name(record: Record) -> dict[str, str]:
    return {"image": record.image, "u_id": record.u_id, "split": record.split}


def _fingerprints(records: Sequence[Record]) -> list[tuple[str, NDArray[np.float32]]]:
    """Hash of the pixels and a thumbnail of mean 0 and length 1 of each image file."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(_fingerprint, records))


def _fingerprint(record: Record) -> tuple[str, NDArray[np.float32]]:
    with Image.open(record.path) as image:
        rgb = image.convert("RGB")
    digest = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()
    small = np.asarray(rgb.convert("L").resize((_THUMBNAIL, _THUMBNAIL), reducing_gap=2.0), dtype=np.float32).ravel()
    small -= small.mean()
    return digest, small / max(float(np.linalg.norm(small)), 1e-6)


def _near(thumbnails: NDArray[np.float32], records: Sequence[Record]) -> list[dict[str, Any]]:
    pairs = []
    splits = np.array([record.split for record in records])
    for first, second in combinations(np.unique(splits).tolist(), 2):
        rows, columns = np.flatnonzero(splits == first), np.flatnonzero(splits == second)
        similarity = thumbnails[rows] @ thumbnails[columns].T
        for i, j in np.argwhere(similarity > NEAR):
            pair = [_name(records[rows[i]]), _name(records[columns[j]])]
            pairs.append({"images": pair, "cosine": round(float(similarity[i, j]), 4)})
    return sorted(pairs, key=lambda item: -item["cosine"])
