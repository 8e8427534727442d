"""One loaded model and its prediction pipeline: decode -> encode -> postprocess."""

import asyncio
import hashlib
import io
import time
from contextlib import suppress
from typing import Final

import numpy as np
from PIL import Image

from app.core.exceptions import UnprocessableError
from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.serving.admission import Admission, enforce_deadline
from app.serving.backends.base import Backend
from app.serving.batch_tuning import noise
from app.serving.daemon_pool import DaemonThreadPool
from app.serving.explain import Explainer, by_input
from app.serving.image_encoder import ImageEncoder
from app.serving.precision import LoadRecords, PrecisionChoice
from app.serving.prediction_cache import PredictionCache
from app.serving.prediction_context import PredictionContext
from ml.dataset.labels import MODALITIES
from ml.models.base import EMBEDDING, InputError, ServedModel
from ml.registry.model_card import ModelCard
from ml.registry.reference_embeddings import Reference

# The shortest time in which accepted requests may end before a model is stopped.
_MIN_DRAIN_S: Final = 30.0
_WARM_UP_S: Final = 30.0


class Predictor:
    """Predicts with one model.

    Args:
        model: loaded from the registry.
        reference: embeddings of the dataset's images, None where the model has none.
        settings: limits and batch size.
        pool: threads for decoding.
        cache: of predictions, shared by all models.
        metrics: to report to.
        dev: reads the dev split, to see whether the model may compute in less than fp32; None where there is none.

    Attributes:
        admission: counts the images in flight; ask it before anything else.
    """

    def __init__(
        self,
        model: ServedModel,
        reference: Reference | None,
        settings: Settings,
        pool: DaemonThreadPool,
        cache: PredictionCache[PredictionContext],
        metrics: Metrics,
        dev: LoadRecords | None = None,
    ) -> None:
        self.model = model
        self.reference = reference
        self._distance = None if reference is None else reference.distance_by(model.card.ood_distance)
        self._pool = pool
        self._drain_s = max(_MIN_DRAIN_S, settings.request_deadline_s)
        self._cache = cache
        self._metrics = metrics
        self._sha256 = model.card.sha256
        self.image_encoder = ImageEncoder(model, settings, metrics, pool.count, dev)
        self.admission = Admission(settings.max_queue, lambda: self.image_encoder.seconds_per_image)
        # A thread of its own: a finished image must not wait for the decoding of others.
        self._postprocessing = DaemonThreadPool(1, f"postprocess-{model.card.name}")
        self._explainer = Explainer(model, settings, self.image_encoder.backend)

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self.model.card

    @property
    def backend(self) -> Backend | None:
        """What the network runs on; None for a model without network."""
        return self.image_encoder.backend

    @property
    def precision(self) -> PrecisionChoice | None:
        """What the network computes in, and why; None for a model without network."""
        return self.image_encoder.precision

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered."""
        return self.image_encoder.healthy and not self._pool.exhausted

    @property
    def fatal_error(self) -> str | None:
        """Why only a new process can answer again: the device failed for good, or too many decoders hang; else None."""
        return "too many decode threads hang" if self._pool.exhausted else self.image_encoder.fatal_error

    def start(self) -> None:
        """Start to answer, on the running event loop."""
        self.image_encoder.start()

    async def stop(self) -> None:
        """Finish accepted requests, then shut down."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await self.admission.idle()
        await self.image_encoder.stop()
        self._explainer.stop()
        self._postprocessing.shutdown(wait=False)  # what the network has answered already is finished

    async def predict(self, context: PredictionContext) -> None:
        """Predict the context's task.

        Args:
            context: with data, caption, task and deadline; filled up to ``notes``.

        Raises:
            ApiError: the image cannot be used, the service is full, or the deadline passed.
        """
        async with enforce_deadline(context.deadline):
            await self._pool.run(self._lookup_or_decode, context, time.perf_counter())
            if not context.cached:
                await self.image_encoder.encode(context)
                await self._postprocess(context)
                self._cache.put(self._key(context, context.info.sha256), context.without_inputs())
        probability = context.probabilities[context.task][context.label]
        self._metrics.prediction(
            context.task, context.label, probability, confident=context.confident, cached=context.cached
        )
        self._metrics.stages(self.card.name, context.timings_s)

    async def explain(self, context: PredictionContext, label: str | None) -> None:
        """Predict the context's task, and explain one class of it.

        Args:
            context: with data, caption, task and deadline; filled up to ``by_input``.
            label: class to explain; None: the one that the model answers.

        Raises:
            ApiError: image or label cannot be used, the service is full, or the deadline passed.
        """
        classes = self.model.tasks[context.task]
        if label is not None and label not in classes:
            raise UnprocessableError(f"There is no {context.task} {label[:80]!r}. There is: {'; '.join(classes)}.")
        async with enforce_deadline(context.deadline):
            await self._decode_and_encode(context)
            await self._postprocess(context)
            started = time.perf_counter()
            context.by_input = await self._postprocessing.run(
                by_input, self.model, context.task, context.outputs, context.caption
            )
            context.explanation = await self._explainer.explain(context.task, context.data, label or context.label)
        context.timings_s["explain"] = time.perf_counter() - started
        self._metrics.stages(self.card.name, context.timings_s)

    async def nearest(self, context: PredictionContext, count: int) -> None:
        """Find the images of the dataset that look most like an image.

        Args:
            context: with data and deadline; filled up to ``outputs``, and ``neighbours``.
            count: how many.

        Raises:
            ApiError: the image or the model cannot be used, the service is full, or the deadline passed.
        """
        if self.reference is None:
            raise UnprocessableError(f"The model {self.card.name} compares no images. Ask with another task.")
        async with enforce_deadline(context.deadline):
            await self._decode_and_encode(context)
            embedding = (context.outputs or {}).get(EMBEDDING)
            if embedding is None:
                raise UnprocessableError(f"The model {self.card.name} does not look at images.")
            started = time.perf_counter()
            context.neighbours = await self._postprocessing.run(self.reference.nearest, embedding[0], count)
        context.timings_s["postprocess"] = time.perf_counter() - started
        self._metrics.stages(self.card.name, context.timings_s)

    async def warm_up(self) -> None:
        """Run a dummy prediction so that lazy initialisation is paid before traffic."""
        file = io.BytesIO()
        Image.fromarray(noise(1, (1, 256, 256))[0, 0]).save(file, "PNG")
        caption = "A picture without meaning" if "caption" in self.model.inputs else None
        context = PredictionContext(file.getvalue(), caption, deadline=time.perf_counter() + _WARM_UP_S)
        await self._decode_and_encode(context)
        for context.task in self.model.tasks:
            await self._postprocess(context)

    async def _decode_and_encode(self, context: PredictionContext) -> None:
        await self._pool.run(self.image_encoder.decode, context, None, time.perf_counter())
        await self.image_encoder.encode(context)

    def _lookup_or_decode(self, context: PredictionContext, queued_at: float) -> None:
        """Decode the image, unless the cache has the answer; in a decode thread."""
        started = time.perf_counter()
        sha256 = hashlib.sha256(context.data).hexdigest()
        cached = self._cache.get(self._key(context, sha256))
        if cached is None:
            self.image_encoder.decode(context, sha256, queued_at)
        else:
            context.answer_from(cached)
            context.timings_s = {"wait": started - queued_at, "cache": time.perf_counter() - started}

    def _key(self, context: PredictionContext, sha256: str) -> tuple[str | None, ...]:
        """All that an answer depends on; the version stands for temperatures and thresholds, which are in no file.

        Of a caption it holds the hash: captions may be long.
        """
        caption = context.caption
        if caption is not None:
            caption = hashlib.sha256(caption.encode(errors="surrogatepass")).hexdigest()
        return context.task, sha256, caption, self._sha256, self.card.version, self.card.preprocess_hash

    async def _postprocess(self, context: PredictionContext) -> None:
        started = time.perf_counter()
        await self._postprocessing.run(self.postprocess, context)
        context.timings_s["postprocess"] = time.perf_counter() - started

    def postprocess(self, context: PredictionContext) -> None:
        """From network outputs and caption to calibrated probabilities and a decision; not for the event loop.

        Args:
            context: after encode; filled up to ``notes``.

        Raises:
            UnprocessableError: the model lacks an input that it cannot do without.
        """
        takes_caption = context.caption is not None and "caption" in self.model.inputs
        encoded = self.model.encode_captions([context.caption]) if takes_caption else None
        uses_caption = encoded is not None and not bool(np.isnan(encoded).any())
        try:
            combined = self.model.combine(context.outputs, encoded)
        except InputError as error:
            raise UnprocessableError(f"The model cannot answer: {error}.") from error
        context.card = self.card
        context.probabilities = {
            name: dict(zip(self.model.tasks[name], map(float, rows[0]), strict=True)) for name, rows in combined.items()
        }
        context.out_of_distribution = True if not context.plausible else self._is_out_of_distribution(context)
        threshold = self.card.threshold(context.task, with_caption=uses_caption)
        sure = max(context.probabilities[context.task].values()) >= threshold
        header_note = self._header_note(context)
        context.confident = sure and not context.out_of_distribution and header_note is None
        used = (("image", context.outputs is not None), ("caption", uses_caption))
        context.inputs_used = tuple(name for name, is_used in used if is_used)
        context.notes = (*self._notes(context), *([header_note] if header_note else []))

    def _notes(self, context: PredictionContext) -> tuple[str, ...]:
        """What a reader of the answer should know of the image and of the inputs used."""
        notes = list(context.info.notes)
        if context.out_of_distribution:
            notes.append("The image is out of distribution: it differs from all images that the model was trained on.")
        if context.task == "location" and "caption" not in context.inputs_used:
            reason = "the caption has no word that the model knows"
            if context.caption is None:
                reason = "there was no caption"
            elif "caption" not in self.model.inputs:
                reason = "the model takes no caption"
            notes.append(f"Predicted from the image alone: {reason}.")
        return tuple(notes)

    def _header_note(self, context: PredictionContext) -> str | None:
        """What in a DICOM header's modality contradicts the prediction; None where nothing does."""
        header = context.info.header_modality
        if header is None:
            return None
        if header not in MODALITIES:
            return f"The DICOM header says modality {header[:16]}; the model was trained on CT and MR images only."
        if context.task == "modality" and header != context.label:
            return f"The DICOM header says modality {header}, which contradicts the prediction."
        return None

    def _is_out_of_distribution(self, context: PredictionContext) -> bool | None:
        limit = self.card.ood_threshold
        if context.outputs is None or self._distance is None or limit is None:
            return None
        return bool(self._distance(context.outputs)[0] > limit)
