"""The data endpoints over millions of images against the dataset itself.

    python -m benchmarks.scale --data ../shared/MedPix-2.0 --images 2000000

Copies of the real records get ids of their own and are streamed into a second database; then both
databases answer the same requests. Prints the p99 of each, of search and facets the slowest of ten,
and their ratio; then the most memory that this process, the service in it, gains while it exports.
The copy needs about 6 GB of disk and some minutes.
"""

import argparse
import copy
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from pymongo import MongoClient
from pymongo.database import Database

from app.core.settings import load_settings
from app.data.client import connect
from app.data.dataset import find_dataset
from app.data.image_counts import write_image_counts
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import CASES, DATABASE, IMAGES, LATEST_RUN_FIRST, SEED_RUNS, ensure_schema
from app.data.seed import seed
from app.data.serializers import ANSWER, case_answer, image_answer
from tests.service import is_ok, running_service, wait_for

Document = dict[str, Any]

REQUESTS = 1000
EXPORTS = ("format=jsonl&of=images", "format=csv&of=images", "format=parquet&of=images")


def renamed(document: Document, number: int) -> Document:
    """A copy with ids of its own."""
    twin = copy.copy(document)
    case = f"MPX{number:04d}{document['U_id'][3:]}"
    if "image" in document:
        twin["_id"] = twin["image"] = f"{case}_{document['image'].partition('_')[2]}"
    else:
        twin["_id"] = case
    twin["U_id"] = case
    return twin


def copied(cases: list[Document], images: list[Document], number: int) -> dict[str, list[Document]]:
    """New cases with their images and with the answers that seeding stores; every round has its own number."""
    summaries = defaultdict(list)
    twins = [renamed(image, number) for image in images]
    for twin in twins:
        twin[ANSWER] = image_answer(twin)
        summaries[twin["U_id"]].append(twin[ANSWER]["summary"])
    owners = [renamed(case, number) for case in cases]
    for owner in owners:
        owner[ANSWER] = case_answer(owner, summaries[owner["_id"]])
    return {CASES: owners, IMAGES: twins}


def enlarge(source: Database[Document], target: Database[Document], images: int) -> None:
    """Fill a database with copies of all cases and images, until there are as many images as asked."""
    rounds = max(1, images // source[IMAGES].estimated_document_count())
    cases, own = (list(source[name].find().sort("_id")) for name in (CASES, IMAGES))
    for number in range(rounds):
        for name, documents in copied(cases, own, number).items():
            target[name].insert_many(documents, ordered=False)
    ensure_schema(target)  # building the indexes at the end is faster than keeping them while writing
    run = source[SEED_RUNS].find_one(sort=LATEST_RUN_FIRST) or {}
    started = time.perf_counter()
    rows = write_image_counts(target, str(run["_id"]))
    print(f"{rows} rows of counts written in {time.perf_counter() - started:.0f} s", flush=True)
    # The service is not ready over a database that holds more or less than its seeding left.
    for member in ("case_counts", "image_counts"):
        run[member] = {split: rounds * count for split, count in run[member].items()}
    target[SEED_RUNS].insert_one(run)


def p99(ask: Callable[[int], str], client: httpx.Client) -> float:
    """The 99th percentile of the answers' times in milliseconds."""
    times = []
    for number in range(REQUESTS):
        address = ask(number)
        started = time.perf_counter()
        answer = client.get(address)
        times.append(1000 * (time.perf_counter() - started))
        answer.raise_for_status()
    return statistics.quantiles(times, n=100)[98]


def deep_page(client: httpx.Client, pages: int) -> str:
    """The address of a late page; each page before it is walked through."""
    address = "/images?modality=CT&limit=20"
    for _ in range(pages):
        following = client.get(address).links.get("next", {}).get("url")
        if not following:
            break
        address = following
    return address


def measure(client: httpx.Client) -> dict[str, float]:
    images = [item["image"] for item in client.get("/images?limit=100").json()["items"]]
    late = deep_page(client, 1000)
    words = ("ureter", "pilocytic astrocytoma", '"left kidney"', "malrotation", "septal thickening")
    addresses: dict[str, Callable[[int], str]] = {
        "case": lambda number: f"/cases/{images[number % len(images)].partition('_')[0]}",
        "first page": lambda _: "/images?modality=CT&limit=20",
        "late page": lambda _: late,
        "search": lambda number: f"/search?q={words[number % len(words)]}",
        "facets": lambda _: "/facets?location_category=Thorax&split=dev",
    }
    percentiles = {}
    for name, ask in addresses.items():
        percentiles[name] = p99(ask, client) if name in ("case", "first page", "late page") else slow(ask, client)
    return percentiles


def slow(ask: Callable[[int], str], client: httpx.Client) -> float:
    """The slowest of ten answers in milliseconds; one that takes too long counts as its limit."""
    times = []
    for number in range(10):
        started = time.perf_counter()
        client.get(ask(number))
        times.append(1000 * (time.perf_counter() - started))
    return max(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2_000_000)
    arguments = parser.parse_args()
    folder = find_dataset(arguments.data)
    with TemporaryDirectory() as home:
        server = embedded_mongod(Path(home) / "db", Path(home) / "run", find_mongod())
        with server as uri, connect(uri, load_settings(), timeout_s=0) as client:
            seed(client[DATABASE], folder)
            started = time.perf_counter()
            enlarge(client[DATABASE], client["large"], arguments.images)
            written = client["large"][IMAGES].estimated_document_count()
            print(f"{written} images written in {time.perf_counter() - started:.0f} s", flush=True)
            report(uri, client, folder, Path(home))


def export(client: httpx.Client, query: str) -> str:
    """Read a whole export and say how large it was and how much the peak of the memory rose."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0
    with client.stream("GET", f"/export?{query}", timeout=None) as answer:
        answer.raise_for_status()
        for part in answer.iter_raw():
            size += len(part)
    gained = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{size / 1e6:8.0f} MB, peak memory {gained / 1024:+6.0f} MiB"


def report(uri: str, client: MongoClient[Document], folder: Path, home: Path) -> None:
    percentiles = {}
    for name in (DATABASE, "large"):
        settings = load_settings(home=home / name, mongo_uri=uri.replace(f"/{DATABASE}?", f"/{name}?"), data_dir=folder)
        with running_service(settings) as api:
            wait_for(api, "/health/ready", is_ok)
            percentiles[name] = measure(api)
            for query in EXPORTS:
                print(f"  export?{query:25} {export(api, query)}", flush=True)
        count = client[name][IMAGES].estimated_document_count()
        print(f"{name}: {count} images")
    for request, small in percentiles[DATABASE].items():
        large = percentiles["large"][request]
        print(f"  {request:10} {small:8.1f} ms  {large:8.1f} ms  {large / small:6.2f} x")


if __name__ == "__main__":
    main()
