"""Does the search find what is known to be there? Recall and rank by words, by meaning, and by both.

    python -m benchmarks.search --data ../shared/MedPix-2.0

The queries are made from the data by a fixed rule:

- title: the title of a case; any case with that title is right.
- caption: a caption of eight words or more without a random third of its words; the images with that caption are right.
- history: the first 300 characters of the patient's history, over a copy of the database without
  histories, so that the case must be found by what else is said of it.
- lay: sixty lay terms; cases whose title or diagnosis has the medical term are right.

R@10 is the share of the right ones (at most ten) among the first ten; MRR the mean of 1 / rank of the
first right one, 0 where it is not among the first twenty. The times are of whole requests.
"""

import argparse
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
from pymongo import MongoClient

from app.core.settings import load_settings
from app.data.client import connect
from app.data.dataset import find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import CASES, DATABASE, IMAGES
from app.data.seed import seed
from benchmarks.lay_terms import LAY_TERMS
from benchmarks.servers import data_service
from tests.service import is_ok, wait_for

Document = dict[str, Any]

# From a page of results and the right ids to the ids in order.
Order = Callable[[Document, frozenset[str]], list[str]]
MODES: Final = ("words", "meaning", "hybrid")
HELD_OUT: Final = "held_out"
MAX_CHARS: Final = 300
MIN_CAPTION_WORDS: Final = 8
SHOWN: Final = 20


@dataclass(frozen=True)
class LabelledQuery:
    """A query, and the ids of what it should find."""

    query: str
    right: frozenset[str]


def plain(text: str) -> str:
    """A text as a query of words: without quotation marks, and with no hyphen that excludes."""
    words = re.sub(r'["“”]', " ", text).split()
    query = " ".join(word.lstrip("-–−") for word in words)
    return query if len(query) <= MAX_CHARS else query[:MAX_CHARS].rpartition(" ")[0]


def titles(cases: list[Document], every: int) -> Iterator[LabelledQuery]:
    same = defaultdict(set)
    for case in cases:
        same[case["norm"]["title"].casefold()].add(case["_id"])
    for case in cases[::every]:
        yield LabelledQuery(plain(case["norm"]["title"]), frozenset(same[case["norm"]["title"].casefold()]))


def captions(images: list[Document], every: int) -> Iterator[LabelledQuery]:
    rng = random.Random(0)
    same = defaultdict(set)
    for image in images:
        if len((image["norm"]["caption"] or "").split()) >= MIN_CAPTION_WORDS:
            same[image["norm"]["caption"]].add(image["_id"])
    for caption in sorted(same)[:: 2 * every]:
        words = caption.split()
        chosen = sorted(rng.sample(range(len(words)), len(words) - len(words) // 3))
        yield LabelledQuery(plain(" ".join(words[index] for index in chosen)), frozenset(same[caption]))


def histories(cases: list[Document], every: int) -> Iterator[LabelledQuery]:
    for case in [case for case in cases if case["norm"]["history"]][::every]:
        yield LabelledQuery(plain(case["norm"]["history"]), frozenset([case["_id"]]))


def lay_terms(cases: list[Document]) -> Iterator[LabelledQuery]:
    for query, medical in LAY_TERMS:
        names = {
            case["_id"]: f"{case['norm']['title']}\n{case['norm']['diagnosis']}\n{case['norm']['topic']['title']}"
            for case in cases
        }
        right = {key for key, text in names.items() if re.search(medical, text, re.IGNORECASE)}
        if right:
            yield LabelledQuery(query, frozenset(right))
        else:
            print(f"no case for {query!r}")


def found_cases(page: Document) -> list[str]:
    return [hit["case"]["u_id"] for hit in page["items"]]


def found_images(page: Document, right: frozenset[str]) -> list[str]:
    """An entry for each case in order: the right image that it shows, or the case."""
    return [
        next((hit["image"]["image"] for hit in case["images"] if hit["image"]["image"] in right), case["case"]["u_id"])
        for case in page["items"]
    ]


def measure(
    client: httpx.Client,
    name: str,
    queries: list[LabelledQuery],
    order: Order,
) -> None:
    """Ask every query in every mode and print recall, rank and time."""
    for mode in MODES:
        recalls, ranks, times = [], [], []
        for item in queries:
            started = time.perf_counter()
            answer = client.get("/search", params={"q": item.query, "mode": mode, "limit": SHOWN})
            times.append(1000 * (time.perf_counter() - started))
            answer.raise_for_status()
            page = answer.json()
            assert page["mode"] == mode or page["exact_id"], page["mode"]
            positions = [rank for rank, key in enumerate(order(page, item.right), start=1) if key in item.right]
            # Images with one caption are of one case: to find any of them is to find it.
            relevant = 1 if order is found_images else min(10, len(item.right))
            recalls.append(min(1.0, sum(rank <= 10 for rank in positions) / relevant))
            ranks.append(1 / positions[0] if positions else 0.0)
        p95 = statistics.quantiles(times, n=20)[18]
        print(
            f"{name:8} {mode:8} {len(queries):4} queries  R@10 {statistics.mean(recalls):.3f}  "
            f"MRR {statistics.mean(ranks):.3f}  median {statistics.median(times):5.1f} ms  p95 {p95:5.1f} ms",
            flush=True,
        )


def by_case(page: Document, _right: frozenset[str]) -> list[str]:
    return found_cases(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--every", type=int, default=4, help="take every n-th case")
    parser.add_argument("--home", type=Path, help="keep the embeddings here for the next run")
    arguments = parser.parse_args()
    folder = find_dataset(arguments.data)
    with TemporaryDirectory() as temporary:
        server = embedded_mongod(Path(temporary) / "db", Path(temporary) / "run", find_mongod())
        with server as uri, connect(uri, load_settings(), timeout_s=0) as client:
            run(uri, client, folder, arguments.home or Path(temporary) / "home", arguments.every)


def run(uri: str, client: MongoClient[Document], folder: Path, home: Path, every: int) -> None:
    for name in (DATABASE, HELD_OUT):
        seed(client[name], folder)
    cases = list(client[DATABASE][CASES].find().sort("_id"))
    images = list(client[DATABASE][IMAGES].find().sort("_id"))
    client[HELD_OUT][CASES].update_many({}, {"$set": {"norm.history": None}})
    query_sets = {
        DATABASE: (
            ("title", list(titles(cases, every)), by_case),
            ("caption", list(captions(images, every)), found_images),
            ("lay", list(lay_terms(cases)), by_case),
        ),
        HELD_OUT: (("history", list(histories(cases, every)), by_case),),
    }
    for name, sets in query_sets.items():
        settings = load_settings(home=home / name, mongo_uri=uri.replace(f"/{DATABASE}?", f"/{name}?"), data_dir=folder)
        with data_service(settings) as api:
            started = time.perf_counter()
            wait_for(api, "/search?q=stone&mode=meaning", is_ok, seconds=1800)
            print(f"embeddings of {name}: {time.perf_counter() - started:.0f} s")
            for kind, queries, order in sets:
                measure(api, kind, queries, order)


if __name__ == "__main__":
    main()
