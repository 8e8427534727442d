"""The networks that benchmarks/serve.py serves, and how fast they are without any server."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

import torch

from app.config import Settings
from app.inference.decode import decode
from app.inference.precision import select_backend
from ml import labels
from ml.card import DataSource, ModelCard, environment, now
from ml.models.compact import CompactModel, CompactSettings
from ml.models.image import ImageModel
from ml.models.resnet import ResNetModel, ResNetSettings
from ml.preprocess import Preprocess
from ml.records import Record

MODELS: Final = ("resnet50-modality", "compact")
_WARM: Final = 5


def build(name: str) -> ImageModel:
    """An untrained model with a complete card."""
    torch.manual_seed(0)
    if name == "compact":
        settings = CompactSettings()
        card = _card(name, "compact", tuple(labels.TASKS), settings.preprocess, settings.architecture())
        return CompactModel(card, [CompactModel.build(settings.architecture()) for _ in range(settings.members)])
    architecture: dict[str, Any] = {"tasks": ["modality"], "dropout": 0.2, "members": 1}
    card = _card(name, "resnet", ("modality",), ResNetSettings().preprocess, architecture)
    return ResNetModel(card, [ResNetModel.build(architecture)])


def _card(
    name: str, family: str, tasks: tuple[str, ...], preprocess: Preprocess, architecture: dict[str, Any]
) -> ModelCard:
    return ModelCard(
        name=name,
        family=family,
        tasks={task: list(labels.TASKS[task]) for task in tasks},
        inputs=["image"],
        version="benchmark",
        created_at=now(),
        init="scratch",
        weights_source="untrained",
        preprocess=preprocess.to_json(),
        preprocess_hash=preprocess.hash,
        files=[],
        temperature=dict.fromkeys(tasks, 1.0),
        thresholds={},
        ood_threshold=None,
        metrics={},
        parameters=0,
        settings={"architecture": architecture},
        seed=0,
        seconds=0.0,
        data=DataSource(snapshot="none", images={}, cases={}),
        environment=environment("cpu", torch.get_num_threads()),
    )


@dataclass(frozen=True, slots=True)
class Bare:
    """How fast a model is without any server.

    Attributes:
        rate: images per second.
        median_ms: of one image.
        precision: what its network computes in.
    """

    rate: float
    median_ms: float
    precision: str

    def describe(self) -> str:
        """One line for people."""
        return f"            {self.rate:7.1f} images/s   p50 {self.median_ms:7.1f} ms   {self.precision}"


def bare_loop(
    model: ImageModel, settings: Settings, dev: Sequence[Record], images: Sequence[bytes], seconds: float
) -> Bare:
    """Decoding and the backend that the service chooses, one image after another."""
    preprocess = model.preprocess
    assert preprocess is not None
    backend, _ = select_backend(model, settings, model.card.sha256, lambda: dev)
    times: list[float] = []
    for number, image in enumerate(cycle(images)):
        started = time.perf_counter()
        backend.run(preprocess.apply(decode(image, settings).image)[None])
        if number >= _WARM:
            times.append(time.perf_counter() - started)
        if sum(times) > seconds:
            break
    return Bare(len(times) / sum(times), 1000 * statistics.median(times), backend.precision)
