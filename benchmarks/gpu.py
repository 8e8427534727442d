"""A GPU does all that it is for, once: each family is trained for an epoch, compared with the CPU, and one is served.

    make gpu DATA=../shared/MedPix-2.0
    python -m benchmarks.gpu --data ../shared/MedPix-2.0 --weights ../weights

Takes a few minutes on one card, and no network: data and weights come from the folders given, the database is a mongod
of its own. --weights names a folder with files resnet50*.pth or .safetensors and folders of CLIP models as transformers
saves them; what is not there is trained from random weights. A step that fails is a row of the table and does not keep
the next ones from running; the exit status is then 1.
"""

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from pymongo.database import Database

from app.core.exceptions import UserError
from app.core.settings import Settings, load_settings
from app.data.client import connect
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.data.mongod import embedded_mongod, find_mongod
from app.data.schema import DATABASE
from app.data.seed import seed
from app.serving.autotune import tune
from app.serving.backends.devices import device_name, make_backend
from app.serving.batch_tuning import CPU_SIZES, CUDA_SIZES
from app.serving.precision import Parity, compare, select_backend
from ml.dataset.image_loading import load_images
from ml.dataset.records import load_records
from ml.models.model_specs import MODEL_SPECS
from ml.models.predict_records import captions_of
from ml.registry.registry import Registry
from ml.training.context import Options
from ml.training.device import pick_device
from ml.training.train import train_model

# One of every network family, each after those that it is built on.
FAMILIES: Final = (
    "compact", "efficientnet", "resnet50-modality", "resnet50-location", "clip-location",
    "caption-location", "fused-location", "fused-efficientnet", "fused-modality",
)  # fmt: skip
_COMPARED: Final = 64
_BATCH: Final = 8
_HEADER: Final = f"{'step':<32} {'s':>7}  result"


@dataclass(frozen=True, slots=True)
class Check:
    """What all steps share.

    Attributes:
        device: cpu or cuda; the CPU shows that the check itself works.
        data: folder of the dataset.
        weights: folder with pretrained weights; None for none.
        settings: with a home of its own.
        database: seeded.
    """

    device: str
    data: Path
    weights: Path | None
    settings: Settings
    database: Database[dict[str, Any]]

    def train(self, name: str) -> str:
        """One epoch; returns what dev says of it."""
        card = train_model(
            name,
            database=self.database,
            images_dir=self.data / IMAGE_FOLDER,
            models_dir=self.settings.model_files_dir,
            device="cuda" if self.device == "cuda" else "cpu",
            options=Options(weights=self._weights_of(name), epochs=1, members=1),
        )
        accuracy = ", ".join(f"{task} {figures['accuracy']:.2f}" for task, figures in card.metrics["dev"].items())
        return f"{card.environment.device}, {card.environment.precision}, {card.init}; dev accuracy: {accuracy}"

    def compare(self, name: str) -> str:
        """The answers of the device, as they are served, beside those of the CPU in fp32."""
        registry = Registry(self.database, self.settings.model_files_dir)
        model, weights = registry.load(name), registry.get(name).sha256
        if model.network is None or model.preprocess is None:
            return "runs no network on images"
        records = load_records(self.database, self.data / IMAGE_FOLDER, ("test",))[:_COMPARED]
        pixels, captions = load_images(records, model.preprocess), captions_of(records)
        exact = self.settings.model_copy(update={"device": "cpu", "precision": "fp32"})
        on_cpu = make_backend(model, model.preprocess, exact, weights)
        expected = _run(on_cpu.run, pixels)
        dev = partial(load_records, self.database, self.data / IMAGE_FOLDER, ("dev",))
        # Loaded again: a backend moves the network that it is given.
        other = registry.load(name)
        plain, choice = select_backend(other, self.settings, weights, dev)
        shape = (model.preprocess.channels, model.preprocess.size, model.preprocess.size)
        tuned = tune(plain, shape, CUDA_SIZES if plain.device == "cuda" else CPU_SIZES)
        backend, plan = tuned.backend, tuned.plan
        parity = compare(model, expected, _run(backend.run, pixels), captions)
        if not parity.holds:
            raise UserError(f"{choice.precision}: {_describe(parity)}")
        return (
            f"{choice.precision} ({type(backend).__name__}): {_describe(parity)}; "
            f"{1 / plan.seconds_per_image:.0f} images/s in batches of {plan.size}"
        )

    def serve(self, seconds: float) -> str:
        """The benchmark of the server for a short time; its own goals are checked by `benchmarks.serve`."""
        command = [sys.executable, "-m", "benchmarks.serve", "--data", str(self.data), "--device", self.device]
        command += ["--models", "resnet50-modality", "--servers", "service", "--seconds", str(seconds), "--soak", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if " clients " in line]
        if not lines:
            raise UserError(f"benchmarks.serve ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return "\n".join([lines[0].strip(), *(f"{'':<42}{line.strip()}" for line in lines[1:])])

    def _weights_of(self, name: str) -> str:
        family = MODEL_SPECS[name].module
        if family == "efficientnet":
            return "auto"  # of a package, or none
        paths: list[Path] = []
        if self.weights is not None and family == "resnet":
            paths = [path for path in sorted(self.weights.glob("resnet50*")) if path.suffix in (".pth", ".safetensors")]
        elif self.weights is not None and family == "clip_train":
            paths = [path.parent for path in sorted(self.weights.glob("*/model.safetensors"))]
        return str(paths[0]) if paths else "scratch"


def _run(run: Callable[[Any], Any], pixels: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    parts = [run(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _describe(parity: Parity) -> str:
    return (
        f"{parity.changed} labels of {parity.images} images differ from the CPU's in fp32, "
        f"probabilities by {parity.shift:.4f} at most"
    )


def step(label: str, work: Callable[[], str]) -> bool:
    """Do one step and print its row; returns whether it succeeded."""
    started = time.perf_counter()
    try:
        result, good = work(), True
    except Exception as error:
        logging.getLogger(__name__).debug("%s failed", label, exc_info=True)
        result, good = f"FAILED: {type(error).__name__}: {error}", False
    print(f"{label:<32} {time.perf_counter() - started:>7.1f}  {result}", flush=True)
    return good


def check(todo: Check, families: Sequence[str], seconds: float) -> bool:
    """All steps; returns whether all succeeded."""
    print(_HEADER, flush=True)
    good = []
    for name in families:
        good.append(step(f"train {name}", partial(todo.train, name)))
        if good[-1]:
            good.append(step(f"compare {name}", partial(todo.compare, name)))
    if seconds:
        good.append(step("serve resnet50-modality", partial(todo.serve, seconds)))
    return all(good)


def main() -> None:
    """Read the arguments, start a database, run all steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="MedPix 2.0 folder")
    parser.add_argument("--weights", type=Path, help="folder with pretrained weights of ResNet50 and CLIP")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="cpu: to try this command itself")
    parser.add_argument("--models", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each load on the server; 0: none")
    options = parser.parse_args()
    started = time.perf_counter()
    try:
        pick_device(options.device)
        data = find_dataset(options.data)
    except UserError as error:
        sys.exit(f"benchmarks.gpu: {error}")
    if options.weights is not None and not options.weights.is_dir():
        sys.exit(f"benchmarks.gpu: --weights {options.weights}: there is no such folder")
    with TemporaryDirectory() as folder:
        settings = load_settings(home=Path(folder), data_dir=data, device=options.device)
        with (
            embedded_mongod(settings.home / "db", settings.home / "run", find_mongod()) as uri,
            connect(uri, settings, timeout_s=0) as client,
        ):
            database = client.get_default_database(DATABASE)
            seed(database, data)
            print(f"{device_name(options.device)}, {data}", flush=True)
            todo = Check(options.device, data, options.weights, settings, database)
            good = check(todo, options.models, options.seconds)
    print(f"{'all steps succeeded' if good else 'a step FAILED'}, {time.perf_counter() - started:.0f} s", flush=True)
    sys.exit(not good)


if __name__ == "__main__":
    main()
