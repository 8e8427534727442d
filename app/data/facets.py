"""Counts and statistics of the images under a filter."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase

from app.data import schema
from app.data.fields import IMAGE_FIELDS, Field
from app.data.filters import Filter
from app.data.image_counts import FACETS, covers

Document = dict[str, Any]

MAX_TIME_MS: Final = 4_000
MAX_VALUES: Final = 100
AGE_BAND: Final = "age_band"
TOPIC_CATEGORY: Final = "topic.category"
_BAND_YEARS: Final = 10


async def facets(database: AsyncDatabase[Document], selection: Filter, counted: str | None = None) -> Document:
    """How many images have each value of a few fields; nulls are counted, so each field sums to the total.

    Args:
        database: the seeded database.
        selection: the images to count.
        counted: the run under which ``image_counts`` counted all images of the database; None where they must be read.

    Returns:
        total, cases, and per facet a list of value, count and the filter that selects it, most
        frequent first.
    """
    if counted is not None and covers(selection.query):
        target = database[schema.IMAGE_COUNTS]
        match: Document = {"$and": [{"run": counted}, selection.query]} if selection.query else {"run": counted}
        number: Any = {"$multiply": ["$images", "$cases"]}
        topics: list[Document] = [{"$group": {"_id": "$category", "count": {"$sum": number}}}]
        cases: list[Document] = [
            {"$group": {"_id": "$group", "cases": {"$first": "$cases"}}},
            {"$group": {"_id": None, "count": {"$sum": "$cases"}}},
        ]
    else:
        target, match, number = database[schema.IMAGES], selection.query, 1
        # The category stands with the case, so images are first counted per case.
        topics = [
            {"$group": {"_id": "$U_id", "count": {"$sum": 1}}},
            {"$lookup": {"from": schema.CASES, "localField": "_id", "foreignField": "_id", "as": "case"}},
            {"$group": {"_id": {"$first": "$case.norm.topic.category"}, "count": {"$sum": "$count"}}},
        ]
        cases = [{"$group": {"_id": "$U_id"}}, {"$count": "count"}]
    ask = partial(_aggregate, target, match)

    def by(key: Any) -> Document:
        return {"$group": {"_id": key, "count": {"$sum": number}}}

    band = {"$subtract": ["$norm.age", {"$mod": ["$norm.age", _BAND_YEARS]}]}
    order: Document = {"$sort": {"count": -1, "_id": 1}}
    rows = await asyncio.gather(
        *(ask(by(f"${IMAGE_FIELDS[name].path}"), order) for name in FACETS),
        ask(by(band), order),
        ask(*topics, order),
        ask(by(None)),
        ask(*cases),
    )
    *fields, ages, by_topic, total, case_count = rows
    by_field: Document = {
        name: [_value(name, row["_id"], row["count"]) for row in counts]
        for name, counts in zip(FACETS, fields, strict=True)
    }
    by_field[AGE_BAND] = [_age_value(row["_id"], row["count"]) for row in sorted(ages, key=_youngest_first)]
    by_field[TOPIC_CATEGORY] = [_value(None, row["_id"], row["count"]) for row in by_topic]
    return {"total": _only(total), "cases": _only(case_count), "facets": by_field}


async def _aggregate(target: AsyncCollection[Document], match: Document, *stages: Document) -> list[Document]:
    cursor = await target.aggregate([{"$match": match}, *stages], maxTimeMS=MAX_TIME_MS)
    return await cursor.to_list()


def _only(rows: list[Document]) -> int:
    return int(rows[0]["count"]) if rows else 0


def _value(name: str | None, value: Any, count: int) -> Document:
    condition = None
    if name is not None:
        condition = {f"{name}__isnull": "true"} if value is None else {name: value}
    return {"value": value, "count": count, "filter": condition}


def _youngest_first(row: Document) -> tuple[bool, int]:
    return (row["_id"] is None, row["_id"] or 0)


def _age_value(start: int | None, count: int) -> Document:
    if start is None:
        return {"value": None, "count": count, "filter": {"age__isnull": "true"}}
    end = start + _BAND_YEARS - 1
    return {"value": f"{start}-{end}", "count": count, "filter": {"age__gte": str(start), "age__lte": str(end)}}


async def statistics(
    database: AsyncDatabase[Document], collection: str, catalogue: Mapping[str, Field], selection: Filter
) -> Document:
    """Per field of a collection: nulls, and by kind the values, the distribution or the lengths.

    Returns:
        total, and per field its kind, null count and: for keywords and lists the distinct count and
        the most frequent values; for integers minimum, maximum, mean and a histogram of at most 20
        bins; for texts the shortest, longest and mean length in characters.
    """
    target = database[collection]
    total = await target.count_documents(selection.query, maxTimeMS=MAX_TIME_MS)
    fields = list(catalogue.values())
    described = await asyncio.gather(*(_describe(target, field, selection) for field in fields))
    return {"total": total, "fields": {field.name: row for field, row in zip(fields, described, strict=True)}}


async def _describe(target: AsyncCollection[Document], field: Field, selection: Filter) -> Document:
    path = f"${field.path}"
    ask = partial(_aggregate, target, selection.query)
    missing: Document = {"$sum": {"$cond": [{"$in": [{"$ifNull": [path, None]}, [None, []]]}, 1, 0]}}
    present: Document = {"$match": {field.path: {"$nin": [None, []]}}}
    answer: Document = {"kind": field.kind}
    if field.kind == "text":
        length: Document = {
            "$cond": [{"$eq": [{"$type": path}, "string"]}, {"$strLenCP": {"$ifNull": [path, ""]}}, None]
        }
        group: Document = {"min": {"$min": length}, "max": {"$max": length}, "mean": {"$avg": length}}
        [row] = await ask({"$group": {"_id": None, "nulls": missing, **group}}) or [{}]
        return answer | {"nulls": row.get("nulls", 0), "length": _rounded(row)}
    if field.kind == "integer":
        group = {"min": {"$min": path}, "max": {"$max": path}, "mean": {"$avg": path}}
        [row] = await ask({"$group": {"_id": None, "nulls": missing, **group}}) or [{}]
        bins = await ask(present, {"$bucketAuto": {"groupBy": path, "buckets": 20}})
        histogram = [{"from": b["_id"]["min"], "to": b["_id"]["max"], "count": b["count"]} for b in bins]
        return answer | {"nulls": row.get("nulls", 0), **_rounded(row), "histogram": histogram}
    [row] = await ask({"$group": {"_id": None, "nulls": missing}}) or [{}]
    unwind: list[Document] = [{"$unwind": path}] if field.kind == "list" else []
    by_count: Document = {"$sort": {"count": -1, "_id": 1}}
    parts: Document = {"$facet": {"top": [{"$limit": MAX_VALUES}], "distinct": [{"$count": "n"}]}}
    top = await ask(present, *unwind, {"$group": {"_id": path, "count": {"$sum": 1}}}, by_count, parts)
    values = [{"value": value["_id"], "count": value["count"]} for value in top[0]["top"]]
    distinct = top[0]["distinct"][0]["n"] if top[0]["distinct"] else 0
    return answer | {"nulls": row.get("nulls", 0), "distinct": distinct, "values": values}


def _rounded(row: Document) -> Document:
    mean = row.get("mean")
    return {"min": row.get("min"), "max": row.get("max"), "mean": None if mean is None else round(mean, 2)}
