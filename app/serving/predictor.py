"""One loaded model, ready to answer: bytes and caption in, calibrated probabilities out."""

import asyncio
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from numpy.typing import NDArray
from PIL import Image

from app.core.exceptions import UnprocessableError
from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.serving.admission import Admission
from app.serving.backends.base import Backend
from app.serving.batch_tuning import noise
from app.serving.daemon_pool import DaemonThreadPool
from app.serving.deadline import until
from app.serving.decode.decoded_image import ImageInfo
from app.serving.explain import Explainer, by_input
from app.serving.image_encoder import ImageEncoder
from app.serving.precision import Choice, LoadRecords
from app.serving.prediction import Explained, Observation, Prediction, Prepared, Upload
from app.serving.prediction_cache import PredictionCache
from ml.models.base import EMBEDDING, Floats, InputError, ServedModel
from ml.registry.model_card import ModelCard
from ml.registry.reference_embeddings import Reference

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
        dev: reads the dev split, to see whether the model may compute in less than fp32; None where there is none.

    Attributes:
        admission: counts what is in work; ask it before anything else.
    """

    def __init__(
        self,
        model: ServedModel,
        reference: Reference | None,
        settings: Settings,
        pool: DaemonThreadPool,
        cache: PredictionCache[Prediction],
        metrics: Metrics,
        dev: LoadRecords | None = None,
    ) -> None:
        self.model = model
        self.reference = reference
        self._distance = _distance_of(reference, model.card)
        self._pool = pool
        self._cache = cache
        self._metrics = metrics
        self._sha256 = model.card.sha256
        self.image_encoder = ImageEncoder(model, settings, metrics, pool.count, dev)
        self.admission = Admission(settings.max_queue, lambda: self.image_encoder.seconds_per_image)
        self._postprocessing = DaemonThreadPool(1, f"postprocess-{model.card.name}")
        backend = self.image_encoder.backend
        # A network that OpenVINO runs is idle as a PyTorch module: explanations may use it as it is.
        self._explainer = Explainer(model, settings, shared=backend is not None and backend.name == "torch")

    @property
    def card(self) -> ModelCard:
        """What is known about the model."""
        return self.model.card

    @property
    def backend(self) -> Backend | None:
        """What the network runs on; None for a model without network."""
        return self.image_encoder.backend

    @property
    def precision(self) -> Choice | None:
        """What the network computes in, and why; None for a model without network."""
        return self.image_encoder.precision

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered."""
        return self.image_encoder.healthy

    def start(self) -> None:
        """Start to answer, on the running event loop."""
        self.image_encoder.start()

    async def stop(self) -> None:
        """Finish accepted requests, then shut down."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self.admission.idle()
        await self.image_encoder.stop()
        self._explainer.stop()
        self._postprocessing.shutdown(wait=False, cancel_futures=True)

    async def prepare(self, task: str, upload: Upload, deadline: float) -> Prepared | Prediction:
        """The decoded image of an upload, or the answer to it that was given before.

        Args:
            task: one of the model's tasks.
            upload: image and caption.
            deadline: on the clock of ``time.perf_counter``.

        Raises:
            ApiError: the image cannot be used, or the deadline passed.
        """
        async with until(deadline):
            return await _in(self._pool, self._recall_or_prepare, task, upload, time.perf_counter())

    async def answer(
        self, task: str, caption: str | None, prepared: Prepared | Prediction, deadline: float
    ) -> Prediction:
        """The answer to what ``prepare`` gave.

        Raises:
            ApiError: the service is full, or the deadline passed.
        """
        if isinstance(prepared, Prediction):
            prediction = prepared
        else:
            async with until(deadline):
                prediction = await self._postprocess(
                    task, caption, await self.image_encoder.observe(prepared, deadline)
                )
            self._cache.put(self._key(task, prepared.info.sha256, caption), prediction)
        label, probability = max(prediction.probabilities[task].items(), key=lambda pair: pair[1])
        self._metrics.prediction(task, label, probability, confident=prediction.confident, cached=prediction.cached)
        self._metrics.stages(self.card.name, prediction.timings_s)
        return prediction

    async def warm_up(self) -> None:
        """Run a dummy prediction so that lazy initialisation is paid before traffic."""
        picture = io.BytesIO()
        Image.fromarray(noise(1, (1, 256, 256))[0, 0]).save(picture, "PNG")
        caption = "A picture without meaning" if "caption" in self.model.inputs else None
        observation = await self._observe(picture.getvalue(), time.perf_counter() + _DRAIN_S)
        for task in self.model.tasks:
            await self._postprocess(task, caption, observation)

    async def nearest(
        self, data: bytes, count: int, deadline: float
    ) -> tuple[ImageInfo, list[tuple[str, float]], Mapping[str, float]]:
        """The images of the dataset that look most like an image file.

        Args:
            data: of the file.
            count: how many.
            deadline: on the clock of ``time.perf_counter``.

        Returns:
            The file; (image, cosine similarity) pairs, the most similar first; and seconds per stage.

        Raises:
            ApiError: the image or the model cannot be used, the service is full, or the deadline passed.
        """
        if self.reference is None:
            raise UnprocessableError(f"The model {self.card.name} compares no images. Ask with another task.")
        async with until(deadline):
            observation = await self._observe(data, deadline)
            embedding = (observation.outputs or {}).get(EMBEDDING)
            if embedding is None:
                raise UnprocessableError(f"The model {self.card.name} does not look at images.")
            started = time.perf_counter()
            found = await _in(self._postprocessing, self.reference.nearest, embedding[0], count)
        timings = {**observation.timings_s, "postprocess": time.perf_counter() - started}
        self._metrics.stages(self.card.name, timings)
        return observation.info, found, timings

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
        async with until(deadline):
            observation = await self._observe(upload.data, deadline)
            prediction = await self._postprocess(task, upload.caption, observation)
            started = time.perf_counter()
            inputs = await _in(self._postprocessing, by_input, self.model, task, observation.outputs, upload.caption)
            shares = prediction.probabilities[task]
            chosen = label or max(shares, key=lambda name: shares[name])
            explanation = await self._explainer.explain(task, upload.data, chosen)
        timings = {**prediction.timings_s, "explain": time.perf_counter() - started}
        self._metrics.stages(self.card.name, timings)
        return Explained(replace(prediction, timings_s=timings), explanation, inputs)

    async def _observe(self, data: bytes, deadline: float) -> Observation:
        prepared = await _in(self._pool, self.image_encoder.prepare, data, None, time.perf_counter())
        return await self.image_encoder.observe(prepared, deadline)

    def _recall_or_prepare(self, task: str, upload: Upload, queued_at: float) -> Prepared | Prediction:
        started = time.perf_counter()
        sha256 = hashlib.sha256(upload.data).hexdigest()
        known = self._cache.get(self._key(task, sha256, upload.caption))
        if known is None:
            return self.image_encoder.prepare(upload.data, sha256, queued_at)
        timings = {"wait": started - queued_at, "cache": time.perf_counter() - started}
        return replace(known, cached=True, timings_s=timings)

    def _key(self, task: str, sha256: str, caption: str | None) -> tuple[str | None, ...]:
        """All that an answer depends on; the version stands for temperatures and thresholds, which are in no file."""
        return task, sha256, caption, self._sha256, self.card.version, self.card.preprocess_hash

    async def _postprocess(self, task: str, caption: str | None, observation: Observation) -> Prediction:
        """The prediction, made in a thread of its own: what is finished must not wait for others' images."""
        started = time.perf_counter()
        prediction = await _in(self._postprocessing, self.postprocess, task, caption, observation)
        timings = {**observation.timings_s, "postprocess": time.perf_counter() - started}
        return replace(prediction, timings_s=timings)

    def postprocess(self, task: str, caption: str | None, observation: Observation) -> Prediction:
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
        out_of_distribution = self._is_out_of_distribution(outputs) if observation.plausible else True
        sure = max(probabilities[task].values()) >= self.card.thresholds.get(task, 0.0)
        used = [name for name, given in (("image", outputs is not None), ("caption", uses_caption)) if given]
        return Prediction(
            card=self.card,
            task=task,
            probabilities=probabilities,
            confident=sure and not out_of_distribution,
            out_of_distribution=out_of_distribution,
            inputs_used=tuple(used),
            info=observation.info,
            timings_s=observation.timings_s,
        )

    def _is_out_of_distribution(self, outputs: dict[str, Array] | None) -> bool | None:
        if outputs is None or self._distance is None or self.card.ood_threshold is None or EMBEDDING not in outputs:
            return None
        return bool(self._distance(outputs[EMBEDDING])[0] > self.card.ood_threshold)


def _distance_of(reference: Reference | None, card: ModelCard) -> Callable[[Floats], Floats] | None:
    if reference is None:
        return None
    return reference.density().distance if card.ood_distance == "mahalanobis" else reference.distance


async def _in(threads: DaemonThreadPool, function: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
