"""One loaded model, ready to answer: bytes and caption in, calibrated probabilities out."""

import asyncio
import hashlib
import io
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from numpy.typing import NDArray
from PIL import Image

from app.config import Settings
from app.errors import DeadlineExceededError, UnavailableError, UnprocessableError
from app.inference.backends import Backend
from app.inference.cache import ResultCache
from app.inference.calibrate import noise
from app.inference.explain import Explainer, by_input
from app.inference.observer import Observer
from app.inference.picture import Source
from app.inference.precision import Choice, LoadRecords
from app.inference.prediction import Explained, Observation, Prediction, Upload
from app.inference.threads import Threads
from app.metrics import Metrics
from ml.card import ModelCard
from ml.models.base import EMBEDDING, InputError, ServedModel
from ml.reference import Reference

Array = NDArray[Any]
T = TypeVar("T")

_DRAIN_S: Final = 30.0


class Predictor:
    """Answers with one model.

    Args:
        model: loaded from the registry.
        reference: embeddings of the dataset's images, None where the model has none.
        settings: limits and batch size.
        pool: threads for decoding.
        cache: of predictions, shared by all models.
        metrics: to report to.
        dev: reads the dev split, to see whether the model may compute in bf16; None where there is none.
    """

    def __init__(
        self,
        model: ServedModel,
        reference: Reference | None,
        settings: Settings,
        pool: Threads,
        cache: ResultCache[Prediction],
        metrics: Metrics,
        dev: LoadRecords | None = None,
    ) -> None:
        self.model = model
        self.reference = reference
        self._settings = settings
        self._pool = pool
        self._cache = cache
        self._metrics = metrics
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._sha256 = model.card.sha256
        self.observer = Observer(model, settings, pool, metrics, dev)
        backend = self.observer.backend
        # A network that OpenVINO runs is idle as a PyTorch module: explanations may use it as it is.
        self._explainer = Explainer(model, settings, shared=backend is not None and backend.name == "torch")

    @property
    def card(self) -> ModelCard:
        """What is known about the model."""
        return self.model.card

    @property
    def backend(self) -> Backend | None:
        """What the network runs on; None for a model without network."""
        return self.observer.backend

    @property
    def precision(self) -> Choice | None:
        """What the network computes in, and why; None for a model without network."""
        return self.observer.precision

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered."""
        return self.observer.healthy

    def start(self) -> None:
        """Start to answer, on the running event loop."""
        self.observer.start()

    async def stop(self) -> None:
        """Answer what was accepted, then end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self._idle.wait()
        await self.observer.stop()
        self._explainer.stop()

    def admit(self, seconds: float, count: int = 1) -> None:
        """Refuse what would spend more than half of its time waiting for its turn.

        Args:
            seconds: that the request has.
            count: images in it.

        Raises:
            UnavailableError: says when to try again.
        """
        limit = self._settings.max_queue
        if self._active and self._active + count > limit:
            raise UnavailableError(
                f"The service is at its capacity: {self._active} of {limit} images are in work. Try again later.",
                retry_after_s=max(1, math.ceil(count * self.observer.seconds_per_image)),
            )
        wait = (self._active + count - 1) * self.observer.seconds_per_image
        if wait > seconds / 2:
            raise UnavailableError(
                f"The service has too much to do: the answer would begin in about {wait:.1f} s. Try again later.",
                retry_after_s=max(1, math.ceil(wait - seconds / 2)),
            )

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def predict(self, task: str, upload: Upload, deadline: float) -> Prediction:
        """The answer to one upload.

        Args:
            task: one of the model's tasks.
            upload: image and caption.
            deadline: on the clock of ``time.perf_counter``.

        Raises:
            ApiError: the image cannot be used, the service is full, or the deadline passed.
        """
        with self._working():
            prediction = await self._predict(task, upload, deadline)
        label, probability = max(prediction.probabilities[task].items(), key=lambda pair: pair[1])
        self._metrics.prediction(task, label, probability, confident=prediction.confident, cached=prediction.cached)
        self._metrics.stages(self.card.name, prediction.timings_s)
        return prediction

    async def _predict(self, task: str, upload: Upload, deadline: float) -> Prediction:
        async with until(deadline):
            started = time.perf_counter()
            key, known = await self._in_pool(self._recall_or_prepare, task, upload)
            if isinstance(known, Prediction):
                return replace(known, cached=True, timings_s={"cache": time.perf_counter() - started})
            decode_s = time.perf_counter() - started
            observation = await self.observer.observe_prepared(*known, decode_s, deadline)
            prediction = await self._in_pool(self.conclude, task, upload.caption, observation)
            self._cache.put(key, prediction)
            return prediction

    async def rehearse(self) -> None:
        """Answer a question that nobody asked, so that the first caller does not pay for what is made on first use."""
        picture = io.BytesIO()
        Image.fromarray(noise(1, (1, 256, 256))[0, 0]).save(picture, "PNG")
        caption = "A picture without meaning" if "caption" in self.model.inputs else None
        observation = await self.observer.observe(picture.getvalue(), time.perf_counter() + _DRAIN_S)
        for task in self.model.tasks:
            await self._in_pool(self.conclude, task, caption, observation)

    async def nearest(self, data: bytes, count: int, deadline: float) -> tuple[Source, list[tuple[str, float]]]:
        """The images of the dataset that look most like an image file.

        Args:
            data: of the file.
            count: how many.
            deadline: on the clock of ``time.perf_counter``.

        Returns:
            The file, and (image, cosine similarity) pairs, the most similar first.

        Raises:
            ApiError: the image or the model cannot be used, the service is full, or the deadline passed.
        """
        if self.reference is None:
            raise UnprocessableError(f"The model {self.card.name} compares no images. Ask with another task.")
        with self._working():
            async with until(deadline):
                observation = await self.observer.observe(data, deadline)
                embedding = (observation.outputs or {}).get(EMBEDDING)
                if embedding is None:
                    raise UnprocessableError(f"The model {self.card.name} does not look at images.")
                found = await self._in_pool(self.reference.nearest, embedding[0], count)
        self._metrics.stages(self.card.name, observation.timings_s)
        return observation.source, found

    async def explain(self, task: str, upload: Upload, label: str | None, deadline: float) -> Explained:
        """The answer to one upload, with what speaks for it.

        Args:
            task: one of the model's tasks.
            upload: image and caption.
            label: class to explain; None: the one that the model answers.
            deadline: on the clock of ``time.perf_counter``.

        Raises:
            ApiError: image or label cannot be used, the service is full, or the deadline passed.
        """
        classes = self.model.tasks[task]
        if label is not None and label not in classes:
            raise UnprocessableError(f"There is no {task} {label[:80]!r}. There is: {'; '.join(classes)}.")
        with self._working():
            async with until(deadline):
                observation = await self.observer.observe(upload.data, deadline)
                prediction = await self._in_pool(self.conclude, task, upload.caption, observation)
                inputs = await self._in_pool(by_input, self.model, task, observation.outputs, upload.caption)
                shares = prediction.probabilities[task]
                started = time.perf_counter()
                chosen = label or max(shares, key=lambda name: shares[name])
                explanation = await self._explainer.explain(task, upload.data, chosen)
        timings = {**prediction.timings_s, "explain": time.perf_counter() - started}
        self._metrics.stages(self.card.name, timings)
        return Explained(replace(prediction, timings_s=timings), explanation, inputs)

    async def _in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _recall_or_prepare(
        self, task: str, upload: Upload
    ) -> tuple[tuple[str | None, ...], Prediction | tuple[Source, Array | None]]:
        """All that an answer depends on, and the answer if it was given before, else the decoded image.

        The version stands for what is not in the model's files: temperatures and thresholds.
        """
        content = hashlib.sha256(upload.data).hexdigest()
        key = (task, content, upload.caption, self._sha256, self.card.version, self.card.preprocess_hash)
        known = self._cache.get(key)
        return key, self.observer.prepare(upload.data) if known is None else known

    def conclude(self, task: str, caption: str | None, observation: Observation) -> Prediction:
        """The prediction from what the image half gave and a caption; not for the event loop.

        Raises:
            UnprocessableError: the model lacks an input that it cannot do without.
        """
        outputs = observation.outputs
        uses_caption = caption is not None and "caption" in self.model.inputs
        encoded = self.model.encode_captions([caption]) if uses_caption else None
        try:
            combined = self.model.combine(outputs, encoded)
        except InputError as error:
            raise UnprocessableError(f"The model cannot answer: {error}.") from error
        probabilities = {
            name: dict(zip(self.model.tasks[name], map(float, rows[0]), strict=True)) for name, rows in combined.items()
        }
        unusual = self._is_unusual(outputs) if observation.plausible else True
        sure = max(probabilities[task].values()) >= self.card.thresholds.get(task, 0.0)
        used = [name for name, given in (("image", outputs is not None), ("caption", uses_caption)) if given]
        return Prediction(
            card=self.card,
            task=task,
            probabilities=probabilities,
            confident=sure and not unusual,
            unusual=unusual,
            inputs_used=tuple(used),
            source=observation.source,
            timings_s=observation.timings_s,
        )

    def _is_unusual(self, outputs: dict[str, Array] | None) -> bool | None:
        if outputs is None or self.reference is None or self.card.ood_threshold is None or EMBEDDING not in outputs:
            return None
        return bool(self.reference.distance(outputs[EMBEDDING])[0] > self.card.ood_threshold)


@asynccontextmanager
async def until(deadline: float) -> AsyncIterator[None]:
    """Cancel what runs inside at a deadline on the clock of ``time.perf_counter``.

    Raises:
        DeadlineExceededError: the deadline passed.
    """
    try:
        async with asyncio.timeout(deadline - time.perf_counter()):
            yield
    except TimeoutError:
        raise DeadlineExceededError(
            "The answer was not ready before the deadline. Try again, or allow more time in X-Request-Timeout."
        ) from None
