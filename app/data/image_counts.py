"""Counts of the images by all their facets at once, kept so that facets over millions need not read the images.

Images are grouped by the values of the facets, cases by those of all their images: equal cases are one group with a
number. Every count under a filter on these values is a sum over the groups, and exact. There are as many groups as
kinds of cases, at most the number of cases; a thousand for MedPix 2.0.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pymongo.database import Database

from app.data import schema
from app.data.fields import IMAGE_FIELDS

Document = dict[str, Any]

FACETS: Final = ("split", "modality", "location", "location_category", "plane", "sex")
# What is counted by: a filter on anything else has to read the images.
PATHS: Final = frozenset(IMAGE_FIELDS[name].path for name in (*FACETS, "age"))
_BATCH: Final = 1_000


def covers(query: Mapping[str, Any]) -> bool:
    """Whether a filter's query asks only for what is counted."""
    for key, condition in query.items():
        if key in ("$and", "$or", "$nor"):
            if not all(covers(each) for each in condition):
                return False
        elif key not in PATHS:
            return False
    return True


def write_image_counts(database: Database[Document], run: str, before: str = "") -> int:
    """Count the images that the database holds now; the counts of earlier runs are removed.

    Args:
        database: with all cases and images.
        run: names these counts; a reader asks for those of the seeding that it reads.
        before: the run before, whose counts stay: for a second, readers ask for them still.

    Returns:
        The number of rows.
    """
    groups = database[schema.IMAGES].aggregate(
        [
            {"$group": {"_id": "$U_id", "images": {"$push": _nested(PATHS)}}},
            {"$set": {"images": {"$sortArray": {"input": "$images", "sortBy": 1}}}},
            {
                "$lookup": {
                    "from": schema.CASES,
                    "localField": "_id",
                    "foreignField": "_id",
                    "as": "case",
                    "pipeline": [{"$project": {"category": "$norm.topic.category"}}],
                }
            },
            {
                "$group": {
                    "_id": {"images": "$images", "category": {"$first": "$case.category"}},
                    "cases": {"$sum": 1},
                }
            },
        ],
        allowDiskUse=True,
    )
    counts = database[schema.IMAGE_COUNTS]
    counts.delete_many({"run": run})
    written = 0
    batch: list[Document] = []
    for number, group in enumerate(groups):
        batch += _rows(run, number, group)
        if len(batch) >= _BATCH:
            written += len(counts.insert_many(batch, ordered=False).inserted_ids)
            batch = []
    if batch:
        written += len(counts.insert_many(batch, ordered=False).inserted_ids)
    counts.delete_many({"run": {"$nin": [run, before]}})
    return written


def _rows(run: str, number: int, group: Document) -> Iterable[Document]:
    """One row for each combination of values among the images of a group of equal cases."""
    common = {"run": run, "group": number, "cases": group["cases"], "category": group["_id"].get("category")}
    combinations: Counter[str] = Counter()
    values: dict[str, Document] = {}
    for image in group["_id"]["images"]:
        key = repr(image)
        combinations[key] += 1
        values[key] = image
    return [{**common, "images": count, **values[key]} for key, count in combinations.items()]


def _nested(paths: Iterable[str]) -> Document:
    """An expression for a document of some paths' values, nested as they are in an image."""
    expression: Document = {}
    for path in sorted(paths):
        *parents, leaf = path.split(".")
        target = expression
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = f"${path}"
    return expression
