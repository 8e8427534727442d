"""The networks that benchmarks/serve.py serves, and how fast they are without any server."""

import statistics
import time
from itertools import cycle
from typing import Any, Final

import torch

from app.config import Settings
from app.inference.backends import make_backend
from app.inference.decode import decode
from ml import labels
from ml.card import DataSource, ModelCard, environment, now
from ml.models.compact import CompactModel, CompactSettings
from ml.models.image import ImageModel
from ml.models.resnet import ResNetModel, ResNetSettings
from ml.preprocess import Preprocess

MODELS: Final = ("resnet50-modality", "compact")


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


def bare_loop(name: str, settings: Settings, images: list[bytes], seconds: float) -> tuple[float, float]:
    """Images per second of decoding and the service's backend in a loop, and the median in milliseconds."""
    model = build(name)
    preprocess = model.preprocess
    assert preprocess is not None
    backend = make_backend(model.network, preprocess, settings, f"benchmark {name}")
    times: list[float] = []
    for image in cycle(images):
        started = time.perf_counter()
        backend.run(preprocess.apply(decode(image, settings).image)[None])
        times.append(time.perf_counter() - started)
        if sum(times) > seconds:
            break
    return len(times) / sum(times), 1000 * statistics.median(times)
