"""How costs grow: with the clients of a prediction, with the images in the database, with those that are learnt from.

    python -m benchmarks.curves --data ../shared/MedPix-2.0 --out docs/curves.webp

Prints each series with the exponent of its growth, the slope of a straight line through the logarithms, and draws them.
The largest database needs about 6 GB of disk; `--images` names the sizes.
"""

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from pymongo import MongoClient
from pymongo.database import Database

from app.core.settings import Settings, load_settings
from app.data.client import connect
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import DATABASE, IMAGES
from app.data.seed import seed
from benchmarks.load import closed_loop, request_bytes
from benchmarks.scale import enlarge
from benchmarks.serve_models import build
from benchmarks.servers import SERVICE, data_service, path_of, server
from benchmarks.train import our_epochs, subject
from ml.dataset.image_loading import load_images
from ml.dataset.records import load_records
from ml.registry.registry import Registry
from ml.training.phases import examples_of
from tests.service import is_ok, wait_for

_MODEL: Final = "efficientnet"
_CLIENTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_IMAGES: Final = (2_050, 20_500, 205_000, 2_050_000)
_LEARNT: Final = (200, 400, 800, 1_600)
_READS: Final = 200
_SLOW_READS: Final = 20
_MAX_INDEX_S: Final = 300.0
_WORDS: Final = ("ureter", "pilocytic astrocytoma", '"left kidney"', "malrotation", "septal thickening")
_SEARCHES: Final = {
    "search by words, ms": [f"/search?mode=words&q={words}" for words in _WORDS],
    "search by words and meaning, ms": [f"/search?q={words}" for words in _WORDS],
    "facets of a search, ms": ["/facets?q=ureter"],
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One series.

    Attributes:
        name: of what was measured.
        sizes: what it was measured at.
        values: what was found there; NaN where the service gave no answer.
    """

    name: str
    sizes: list[float]
    values: list[float]

    @property
    def exponent(self) -> float:
        """How the values grow with the sizes: 0 does not, 1 in proportion; NaN with fewer than two values."""
        sizes, values = (np.array(numbers) for numbers in (self.sizes, self.values))
        finite = np.isfinite(values)
        if finite.sum() < 2:
            return float("nan")
        return float(np.polyfit(np.log(sizes[finite]), np.log(values[finite]), 1)[0])

    def describe(self) -> str:
        """One line for people."""
        points = "  ".join(f"{size:,.0f}: {value:.1f}" for size, value in zip(self.sizes, self.values, strict=True))
        return f"{self.name:<42} exponent {self.exponent:+.2f}   {points}"


def prediction_curve(uri: str, settings: Settings, images: Sequence[bytes], seconds: float) -> list[Curve]:
    """Images per second of the service, by the number of clients that each ask again as soon as they are answered."""
    requests = [request_bytes(path_of(SERVICE), image) for image in images]
    with server(SERVICE, _MODEL, uri, settings, settings.precision) as running:
        asyncio.run(closed_loop(running.port, requests, 8, seconds))  # warm
        rates = [asyncio.run(closed_loop(running.port, requests, clients, seconds)).rate for clients in _CLIENTS]
    return [Curve("predictions by clients, images/s", [float(clients) for clients in _CLIENTS], rates)]


def _median_ms(client: httpx.Client, addresses: Sequence[str], count: int) -> float:
    """The median time of requests; NaN where one of them has no answer in time."""
    taken = []
    for number in range(count):
        started = time.perf_counter()
        if client.get(addresses[number % len(addresses)]).status_code != httpx.codes.OK:
            return float("nan")
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def _data_reads(client: httpx.Client) -> dict[str, tuple[list[str], int]]:
    """What is asked of each database, and how often."""
    listed = client.get("/images?limit=100").json()["items"]
    return {
        "a case, ms": ([f"/cases/{item['u_id']}" for item in listed], _READS),
        "a page of 20 images, ms": (["/images?modality=CT&limit=20"], _READS),
        "facets, ms": (["/facets?split=dev"], _SLOW_READS),
    }


def _index_ms(client: httpx.Client) -> float:
    """How long the first search waits for the index of the words; NaN beyond ``_MAX_INDEX_S``.

    Embeddings are awaited too, untimed: how long those take depends on the texts, and all copies have the same.
    """
    started = time.perf_counter()
    try:
        wait_for(client, "/search?q=ureter&mode=words", is_ok, seconds=_MAX_INDEX_S)
        taken = 1000 * (time.perf_counter() - started)
        wait_for(client, "/search?q=ureter&mode=meaning", is_ok, seconds=_MAX_INDEX_S)
    except AssertionError:
        return float("nan")
    return taken


def data_curves(uri: str, mongo: MongoClient[Any], home: Path, data: Path, sizes: Sequence[int]) -> list[Curve]:
    """Median times of reads over copies of the dataset of several sizes."""
    measured: dict[str, list[float]] = {}
    counts = []
    for size in sizes:
        name = DATABASE if size == sizes[0] else f"copies_{size}"
        if name != DATABASE:
            enlarge(mongo[DATABASE], mongo[name], size)
        counts.append(float(mongo[name][IMAGES].estimated_document_count()))
        # One home for all: the copies have the same texts, so their embeddings are computed once.
        settings = load_settings(home=home, mongo_uri=uri.replace(f"/{DATABASE}?", f"/{name}?"), data_dir=data)
        with data_service(settings) as client:
            wait_for(client, "/health/ready", is_ok)
            for title, (addresses, count) in _data_reads(client).items():
                measured.setdefault(title, []).append(_median_ms(client, addresses, count))
            measured.setdefault("index of the search, ms", []).append(_index_ms(client))
            for title, addresses in _SEARCHES.items():
                measured.setdefault(title, []).append(_median_ms(client, addresses, _SLOW_READS))
        if name != DATABASE:
            mongo.drop_database(name)
    return [Curve(title, counts, values) for title, values in measured.items()]


def training_curve(database: Database[Any], data: Path, folder: Path) -> list[Curve]:
    """Seconds of an epoch, with its augmentation and checkpoint, by the number of images."""
    model = subject(_MODEL)
    records = load_records(database, data / IMAGE_FOLDER, ("train",))
    seconds = []
    for size in _LEARNT:
        part = records[:size]
        examples = examples_of(part, load_images(part, model.preprocess), model.recipe)
        seconds.append(min(taken.clock for taken in our_epochs(model, examples, 3, folder)[1:]))
    return [Curve("an epoch of efficientnet, s", [float(size) for size in _LEARNT], seconds)]


def draw(parts: Sequence[tuple[str, str, list[Curve]]], out: Path) -> None:
    """Draw the curves side by side, both axes logarithmic; the legend names the exponents."""
    figure = Figure(figsize=(5 * len(parts), 4.2), layout="constrained")
    for axes, (x, y, curves) in zip(np.atleast_1d(figure.subplots(1, len(parts))), parts, strict=True):
        _draw_part(axes, x, y, curves)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    Image.open(buffer).convert("RGB").save(out, quality=85)


def _draw_part(axes: Axes, x: str, y: str, curves: Sequence[Curve]) -> None:
    for curve in curves:
        label = f"{curve.name.rpartition(',')[0]} (n^{curve.exponent:.2f})"
        axes.plot(curve.sizes, curve.values, marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.grid(visible=True, color="#e3e5e8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


@contextmanager
def _database(home: Path, data: Path) -> Iterator[tuple[str, MongoClient[Any]]]:
    settings = load_settings(home=home, data_dir=data)
    with (
        embedded_mongod(home / "db", home / "run", find_mongod()) as uri,
        connect(uri, settings, timeout_s=0) as client,
    ):
        seed(client[DATABASE], data)
        yield uri, client


def main() -> None:
    """Read the arguments, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="MedPix 2.0 folder")
    parser.add_argument("--out", type=Path, required=True, help="file of the plots: .png or .webp")
    parser.add_argument("--images", type=int, nargs="+", default=list(_IMAGES), help="sizes of the database")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load of predictions")
    options = parser.parse_args()
    data = find_dataset(options.data)
    images = [path.read_bytes() for path in sorted((data / IMAGE_FOLDER).glob("*.png"))[::10]]
    parts: list[tuple[str, str, list[Curve]]] = []

    def add(x: str, y: str, measure: Callable[[], list[Curve]]) -> None:
        curves = measure()
        for curve in curves:
            print(curve.describe(), flush=True)
        parts.append((x, y, curves))

    with TemporaryDirectory() as folder:
        home = Path(folder)
        with _database(home, data) as (uri, client):
            add("images in an epoch", "seconds", lambda: training_curve(client[DATABASE], data, home))
            reads = "images in the database", "milliseconds"
            add(*reads, lambda: data_curves(uri, client, home, data, options.images))
            # Last: a service with a home of its own, as above, would wait for the files of a model registered here.
            settings = load_settings(home=home, data_dir=data, precision="fp32")
            Registry(client[DATABASE], settings.model_files_dir).register(build(_MODEL))
            add("clients", "images/s", lambda: prediction_curve(uri, settings, images, options.seconds))
    draw(parts, options.out)


if __name__ == "__main__":
    main()
