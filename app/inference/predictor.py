"""One loaded model, ready to answer: bytes and caption in, calibrated probabilities out."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.config import Settings
from app.errors import UnprocessableError
from app.inference.backends import Backend, make_backend
from app.inference.decode import Picture, decode
from app.inference.engine import Engine
from ml.card import ModelCard
from ml.models.base import EMBEDDING, InputError, ServedModel
from ml.preprocess import Preprocess
from ml.reference import Reference

Array = NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upload:
    """What a caller sends: the bytes of an image file, and a caption or None."""

    data: bytes
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model to one upload.

    Attributes:
        card: of the model.
        task: that was asked.
        probabilities: per task of the model, class to probability.
        confident: whether the best answer passes the threshold that was set on dev, and the image
            resembles the training images.
        unusual: whether the image is unlike every training image; None where that is not known.
        inputs_used: image, caption or both.
        picture: what was decoded.
        timings_s: seconds per stage: decode, queue, run.
    """

    card: ModelCard
    task: str
    probabilities: Mapping[str, Mapping[str, float]]
    confident: bool
    unusual: bool | None
    inputs_used: tuple[str, ...]
    picture: Picture
    timings_s: Mapping[str, float]


class Predictor:
    """Answers with one model.

    Args:
        model: loaded from the registry.
        reference: embeddings of the dataset's images, None where the model has none.
        settings: limits and batch size.
        pool: threads for decoding.
    """

    def __init__(
        self, model: ServedModel, reference: Reference | None, settings: Settings, pool: ThreadPoolExecutor
    ) -> None:
        self._model = model
        self._reference = reference
        self._settings = settings
        self._pool = pool
        self._preprocess: Preprocess | None = model.preprocess
        self.backend: Backend | None = None
        self._engine: Engine | None = None
        if self._preprocess is not None:
            self._engine = self._make_engine(self._preprocess)

    def _make_engine(self, preprocess: Preprocess) -> Engine:
        if self._model.network is None:
            run: Callable[[Array], Mapping[str, Array]] = self._run_without_network
        else:
            self.backend = make_backend(self._model.network, preprocess, self._settings)
            run = self.backend.run
        for count in range(1, self._settings.max_batch + 1):
            # The first run of a shape compiles it; nobody should wait for that.
            run(np.zeros((count, preprocess.channels, preprocess.size, preprocess.size), dtype=np.uint8))
        max_batch = self._settings.max_batch
        return Engine(self.card.name, run, max_batch=max_batch, max_queue=64 * max_batch)

    def _run_without_network(self, pixels: Array) -> Mapping[str, Array]:
        outputs = self._model.encode_images(pixels)
        assert outputs is not None
        return outputs

    @property
    def card(self) -> ModelCard:
        """What is known about the model."""
        return self._model.card

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered."""
        return self._engine is None or self._engine.healthy

    def start(self) -> None:
        """Start to answer, on the running event loop."""
        if self._engine is not None:
            self._engine.start()

    async def stop(self) -> None:
        """Answer what was accepted, then end."""
        if self._engine is not None:
            await self._engine.stop()

    async def predict(self, task: str, upload: Upload, deadline: float) -> Prediction:
        """The answer to one upload.

        Args:
            task: one of the model's tasks.
            upload: image and caption.
            deadline: on the clock of ``time.perf_counter``.

        Raises:
            ApiError: the image cannot be used, the service is full, or the deadline passed.
        """
        started = time.perf_counter()
        picture, pixels = await self._in_pool(self._prepare, upload.data)
        decoded = time.perf_counter()
        outputs: dict[str, Array] | None = None
        timings = {"decode": decoded - started}
        if pixels is not None and self._engine is not None:
            answer = await self._engine.submit(pixels, deadline)
            outputs = {name: np.asarray(row)[None] for name, row in answer.outputs.items()}
            timings |= {"queue": answer.queue_s, "run": answer.run_s}
        return await self._in_pool(self._conclude, task, upload.caption, picture, outputs, timings)

    async def _in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _prepare(self, data: bytes) -> tuple[Picture, Array | None]:
        picture = decode(data, self._settings)
        return picture, None if self._preprocess is None else self._preprocess.apply(picture.image)

    def _conclude(
        self,
        task: str,
        caption: str | None,
        picture: Picture,
        outputs: dict[str, Array] | None,
        timings: dict[str, float],
    ) -> Prediction:
        uses_caption = caption is not None and "caption" in self._model.inputs
        encoded = self._model.encode_captions([caption]) if uses_caption else None
        try:
            combined = self._model.combine(outputs, encoded)
        except InputError as error:
            raise UnprocessableError(f"The model cannot answer: {error}.") from error
        probabilities = {
            name: dict(zip(self._model.tasks[name], map(float, rows[0]), strict=True))
            for name, rows in combined.items()
        }
        unusual = self._is_unusual(outputs)
        sure = max(probabilities[task].values()) >= self.card.thresholds.get(task, 0.0)
        used = [name for name, given in (("image", outputs is not None), ("caption", uses_caption)) if given]
        return Prediction(
            card=self.card,
            task=task,
            probabilities=probabilities,
            confident=sure and not unusual,
            unusual=unusual,
            inputs_used=tuple(used),
            picture=picture,
            timings_s=timings,
        )

    def _is_unusual(self, outputs: dict[str, Array] | None) -> bool | None:
        if outputs is None or self._reference is None or self.card.ood_threshold is None or EMBEDDING not in outputs:
            return None
        return bool(self._reference.distance(outputs[EMBEDDING])[0] > self.card.ood_threshold)
