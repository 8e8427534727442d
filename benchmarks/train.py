"""The training loop against the same network on tensors in memory, and the records against the files.

    python -m benchmarks.train --data ../shared/MedPix-2.0
    python -m benchmarks.train --data ../shared/MedPix-2.0 --model compact

The bare loop has the images normalised beforehand, the same precision, and does nothing but forward,
loss, backward and the step of the optimiser: no augmentation, no moving average, no clipping and no
checkpoint, all of which the training loop has, a checkpoint after every epoch. Both loops take turns in
one process, so both keep the memory that they free. The peak memory is that of the process, with
PyTorch, all images and both loops.
"""

import argparse
import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import torch
from pymongo.database import Database
from torch import nn
from torch.nn import functional

from app.core.settings import load_settings
from app.data.client import connect
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import DATABASE
from app.data.seed import seed
from ml.dataset.image_loading import load_images
from ml.dataset.labels import IGNORED
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import load_records
from ml.models.compact import CompactModel, CompactSettings
from ml.models.efficientnet import EfficientNetModel, EfficientNetSettings
from ml.training.device import amp_dtype
from ml.training.loop import Examples, Recipe, fit
from ml.training.phases import examples_of

Document = dict[str, Any]
_FILES = ("descriptions_{}.jsonl", "data_{}.jsonl")


class Subject(NamedTuple):
    """What is trained: random weights, since speed does not depend on them."""

    build: Callable[[], nn.Module]
    recipe: Recipe
    preprocess: Preprocess


def subject(name: str) -> Subject:
    """A model by name, as it is trained on a CPU."""
    if name == "compact":
        settings = CompactSettings()
        return Subject(lambda: CompactModel.build(settings.architecture()), settings.recipe, settings.preprocess)
    lite = EfficientNetSettings()
    return Subject(lambda: EfficientNetModel.build(lite.architecture()), replace(lite.tune, amp=False), lite.preprocess)


def read_files(data: Path, splits: tuple[str, ...]) -> list[tuple[Document, Document]]:
    """Each image with its case, from the JSONL files and nothing else."""
    pairs = []
    for split in splits:
        images, cases = (
            [json.loads(line) for line in (data / "splitted_dataset" / name.format(split)).open(encoding="utf-8")]
            for name in _FILES
        )
        by_id = {case["U_id"]: case for case in cases}
        pairs += [(image, by_id[image["U_id"]]) for image in images]
    return pairs


def seconds(work: Callable[[], object], rounds: int = 7) -> float:
    """The median time of a call."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Taken(NamedTuple):
    """Seconds on the clock, and of the processor: a machine that others use as well delays only the first."""

    clock: float
    processor: float

    @classmethod
    def now(cls) -> Self:
        """The readings of both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, before: Self) -> Self:
        """What was taken between two readings."""
        return type(self)(self.clock - before.clock, self.processor - before.processor)


def our_epochs(model: Subject, examples: Examples, epochs: int, folder: Path) -> list[Taken]:
    """What each epoch of the training loop takes; but for the first, with the checkpoint of the one before."""
    network = model.build()
    marks = [Taken.now()]
    fit(
        network,
        examples,
        replace(model.recipe, epochs=epochs),
        mean=model.preprocess.mean,
        std=model.preprocess.std,
        seed=0,
        device=torch.device("cpu"),
        checkpoint=folder / "state.safetensors",
        on_epoch=lambda *_: marks.append(Taken.now()),
    )
    (folder / "state.safetensors").unlink()  # the next round starts from the beginning
    return [after.since(before) for before, after in itertools.pairwise(marks)]


def bare_epochs(model: Subject, examples: Examples, ready: torch.Tensor, epochs: int) -> list[Taken]:
    """What each epoch takes of the same network and optimiser on images that are ready."""
    recipe = model.recipe
    network = model.build().to(memory_format=torch.channels_last)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    durations = []
    for _ in range(epochs):
        started = Taken.now()
        order = torch.randperm(len(examples))
        for step in range(len(examples) // recipe.batch_size):
            index = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            targets = {task: examples.targets[task][index] for task in recipe.task_weights}
            _step(network, optimizer, ready[index], targets, mixed=recipe.amp)
        durations.append(Taken.now().since(started))
    return durations


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    targets: dict[str, torch.Tensor],
    *,
    mixed: bool,
) -> None:
    half = amp_dtype(images.device) if mixed else None
    with torch.autocast(images.device.type, half, enabled=half is not None):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    losses = [
        functional.cross_entropy(logits[task].float(), target, ignore_index=IGNORED) for task, target in targets.items()
    ]
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    optimizer.step()


def measure_records(database: Database[Document], data: Path) -> None:
    splits = ("train", "dev")
    ours = seconds(lambda: load_records(database, data / IMAGE_FOLDER, splits))
    files = seconds(lambda: read_files(data, splits))
    count = len(read_files(data, splits))
    print(f"{count} records from MongoDB, joined and checked  {1000 * ours:7.0f} ms")
    print(f"{count} records from the JSONL files, unchecked   {1000 * files:7.0f} ms   ratio {ours / files:.2f}")


def measure_loop(name: str, database: Database[Document], data: Path, rounds: int, epochs: int, folder: Path) -> None:
    model = subject(name)
    records = load_records(database, data / IMAGE_FOLDER, ("train",))
    batch = min(model.recipe.batch_size, len(records))
    model = model._replace(recipe=replace(model.recipe, batch_size=batch))
    started = time.perf_counter()
    pixels = load_images(records, model.preprocess)
    decoding = time.perf_counter() - started
    examples = examples_of(records, pixels, model.recipe)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.preprocess.mean, model.preprocess.std))
    ready = (examples.pixels.float() / 255.0 - mean) / std
    ours: list[Taken] = []
    first: list[Taken] = []
    bare: list[Taken] = []
    for _ in range(rounds):
        head, *later = our_epochs(model, examples, epochs, folder)
        first.append(head)
        ours += later
        bare += bare_epochs(model, examples, ready, epochs)[1:]
    used = len(records) // batch * batch
    (own, own_processor), (plain, plain_processor), (head_clock, _) = (
        (statistics.median(values) for values in zip(*taken, strict=True)) for taken in (ours, bare, first)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{name}: images of {model.preprocess.size} pixels, batches of {batch}")
    print(f"decoding {len(records)} images once       {decoding:7.1f} s")
    print(f"training loop, later epochs       {used / own:7.0f} images/s")
    print(f"bare loop, later epochs           {used / plain:7.0f} images/s")
    print(f"training loop / bare loop         {plain / own:7.2f}")
    print(f"the same in processor time        {plain_processor / own_processor:7.2f}")
    print(f"epoch one / later epochs          {own / head_clock:7.2f} of the rate")
    print(f"peak memory of the process        {peak:7.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="MedPix 2.0 folder")
    parser.add_argument("--model", choices=("efficientnet", "compact"), default="efficientnet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each round and loop, two or more")
    options = parser.parse_args()
    data = find_dataset(options.data)
    with TemporaryDirectory() as folder:
        home = Path(folder)
        settings = load_settings(home=home, data_dir=data)
        with (
            embedded_mongod(home / "db", home / "run", find_mongod()) as uri,
            connect(uri, settings, timeout_s=0) as client,
        ):
            database = client.get_default_database(DATABASE)
            seed(database, data)
            measure_records(database, data)
            measure_loop(options.model, database, data, options.rounds, options.epochs, home)


if __name__ == "__main__":
    main()
