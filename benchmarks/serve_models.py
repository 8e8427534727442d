"""The networks that benchmarks/serve.py serves, and how fast they are without any server."""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

import numpy as np
import torch

from app.core.cpus import usable_cpus
from app.core.settings import Settings, load_settings
from app.serving.autotune import with_cuda_graphs
from app.serving.backends.base import Backend, Precision
from app.serving.backends.devices import make_backend
from app.serving.batch_tuning import CUDA_SIZES, warm_up
from app.serving.decode.image import decode
from app.serving.precision import select_backend
from ml.dataset import labels
from ml.dataset.preprocess import Pixels, Preprocess
from ml.dataset.records import Record
from ml.models.base import Floats
from ml.models.compact import CompactModel, CompactSettings
from ml.models.efficientnet import EfficientNetModel, EfficientNetSettings
from ml.models.image_model import ImageModel
from ml.models.resnet import ResNetModel, ResNetSettings
from ml.registry.model_card import DataSource, ModelCard, environment, now

MODELS: Final = ("resnet50-modality", "efficientnet", "compact")
_WARM: Final = 5


def build(name: str) -> ImageModel:
    """An untrained model with a complete card."""
    torch.manual_seed(0)
    if name == "compact":
        settings = CompactSettings()
        card = _card(name, "compact", tuple(labels.TASKS), settings.preprocess, settings.architecture())
        return CompactModel(card, [CompactModel.build(settings.architecture()) for _ in range(settings.members)])
    if name == "efficientnet":
        lite = EfficientNetSettings()
        card = _card(name, "efficientnet", tuple(labels.TASKS), lite.preprocess, lite.architecture())
        return EfficientNetModel(card, [EfficientNetModel.build(lite.architecture()) for _ in range(lite.members)])
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


def peer_run(model: ImageModel, backend: str, device: str) -> Callable[[Pixels], Floats]:
    """What a peer runs: a batch (N, C, H, W) of uint8 to logits of the modality, (N, 2).

    Args:
        model: to run.
        backend: torch, for eager PyTorch as most people write it; openvino, for the graph that the service runs.
        device: cpu or cuda, of PyTorch.
    """
    if backend == "openvino":
        preprocess = model.preprocess
        assert preprocess is not None
        precision: Precision = "bf16" if os.environ.get("PEER_PRECISION") == "bf16" else "fp32"
        served = make_backend(model, preprocess, load_settings(), model.card.sha256, precision)
        return lambda pixels: served.run(pixels)["modality"]
    model.network.to(device)

    def run(pixels: Pixels) -> Floats:
        with torch.inference_mode():
            logits: Floats = model.network(torch.from_numpy(pixels).to(device))["modality"].cpu().numpy()
            return logits

    return run


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
    """Decoding and the backend that the service chooses, without a server.

    One image after another; on a GPU, for the rate, batches that other threads decode meanwhile.
    """
    preprocess = model.preprocess
    assert preprocess is not None
    backend, _ = select_backend(model, settings, model.card.sha256, lambda: dev)
    backend = with_cuda_graphs(backend, (preprocess.channels, preprocess.size, preprocess.size))

    def prepare(image: bytes) -> Pixels:
        return preprocess.apply(decode(image, settings).image)

    times: list[float] = []
    for number, image in enumerate(cycle(images)):
        started = time.perf_counter()
        backend.run(prepare(image)[None])
        if number >= _WARM:
            times.append(time.perf_counter() - started)
        if sum(times) > seconds:
            break
    rate = len(times) / sum(times)
    if backend.device == "cuda":
        rate = _batched_rate(backend, prepare, images, seconds)
    return Bare(rate, 1000 * statistics.median(times), backend.precision)


def _batched_rate(
    backend: Backend, prepare: Callable[[bytes], Pixels], images: Sequence[bytes], seconds: float
) -> float:
    """Images per second in batches of the size that the service uses on a GPU, decoded ahead by all processors."""
    size, source = warm_up([backend.run], np.shape(prepare(images[0])), CUDA_SIZES).size, cycle(images)
    done, started = 0, time.perf_counter()
    with ThreadPoolExecutor(usable_cpus()) as pool:
        ahead = deque(pool.submit(prepare, image) for image in islice(source, 4 * size))
        while time.perf_counter() < started + seconds:
            batch = np.stack([ahead.popleft().result() for _ in range(size)])
            ahead.extend(pool.submit(prepare, image) for image in islice(source, size))
            backend.run(batch)
            done += size
        elapsed = time.perf_counter() - started
        pool.shutdown(cancel_futures=True)
    return done / elapsed
