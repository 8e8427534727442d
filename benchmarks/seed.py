"""Seeding against a bare insert_many of the same documents, and against itself when nothing changed.

python -m benchmarks.seed --data ../shared/MedPix-2.0
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pymongo.database import Database

from app.core.settings import load_settings
from app.data.client import connect
from app.data.dataset import find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.reader import read_source
from app.data.schema import CASES, IMAGES
from app.data.seed import build_documents, seed

Document = dict[str, Any]


def measure(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def insert_bare(database: Database[Document], cases: list[Document], images: list[Document]) -> None:
    """What a loader does that checks nothing: no validators, no indexes, no second run."""
    database["bare_cases"].insert_many(cases)
    database["bare_images"].insert_many(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    folder = find_dataset(arguments.data)
    seconds: dict[str, list[float]] = {name: [] for name in ("check", "bare", "first", "again")}
    with TemporaryDirectory() as home:
        server = embedded_mongod(Path(home) / "db", Path(home) / "run", find_mongod())
        with server as uri, connect(uri, load_settings(), timeout_s=0) as client:
            for number in range(arguments.rounds):
                database = client[f"round_{number}"]
                seconds["check"].append(measure(lambda: read_source(folder)))
                cases, images = build_documents(read_source(folder))
                seconds["bare"].append(measure(partial(insert_bare, database, cases, images)))
                seconds["first"].append(measure(partial(seed, database, folder)))
                seconds["again"].append(measure(partial(seed, database, folder)))
                counts = {name: database[name].estimated_document_count() for name in (CASES, IMAGES)}
                client.drop_database(database.name)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    writing = middle["first"] - middle["check"]
    print(f"{counts}, median of {arguments.rounds} rounds")
    print(f"bare insert_many of the same documents  {middle['bare']:6.2f} s")
    print(f"checking every file and hash            {middle['check']:6.2f} s")
    print(f"first seeding                           {middle['first']:6.2f} s")
    print(f"  of it writing, indexes and the gate   {writing:6.2f} s  {writing / middle['bare']:.1f} x insert_many")
    print(f"seeding again                           {middle['again']:6.2f} s")


if __name__ == "__main__":
    main()
