"""The image encoder of a model: decodes a file in a thread, then runs the network on it in batches."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.serving.admission import LatencyEstimator
from app.serving.autotune import tune
from app.serving.backends.base import Backend, Run
from app.serving.batch_tuning import CPU_SIZES, CUDA_SIZES, noise, warm_up
from app.serving.decode.image import decode
from app.serving.engine import Engine
from app.serving.input_heuristics import is_colourful, is_plausible
from app.serving.precision import LoadRecords, PrecisionChoice, select_backend
from app.serving.prediction_context import PredictionContext
from ml.dataset.preprocess import Preprocess
from ml.models.base import ServedModel
from ml.models.image_model import WEIGHTS_FILE, DeferredImageModel

Array = NDArray[Any]

_MIN_HANG_S: Final = 30.0


class ImageEncoder:
    """Encodes image files with the image encoder of one model.

    Args:
        model: loaded from the registry.
        settings: limits, device and batch size.
        metrics: to report to.
        decoders: number of decode threads.
        dev: reads the dev split, to see whether the model may compute in less than fp32; None where there is none.

    Attributes:
        backend: runs the network; None for a model without network.
        precision: what it computes in, and why; None for a model without network.
    """

    def __init__(
        self,
        model: ServedModel,
        settings: Settings,
        metrics: Metrics,
        decoders: int,
        dev: LoadRecords | None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._metrics = metrics
        self._decoders = decoders
        self._decode_latency = LatencyEstimator()
        self._unwatch: Callable[[], None] = lambda: None
        self._preprocess = model.preprocess
        self.backend: Backend | None = None
        self.precision: PrecisionChoice | None = None
        self.engine = None if self._preprocess is None else self._make_engine(self._preprocess, dev)

    def _make_engine(self, preprocess: Preprocess, dev: LoadRecords | None) -> Engine:
        name = self._model.card.name
        shape = (preprocess.channels, preprocess.size, preprocess.size)
        if not self._model.has_network:
            run: Run = self._run_without_network
            streams: Sequence[Run] = ()
            plan = warm_up([run], shape, self._batch_sizes())
        else:
            self.backend, self.precision = select_backend(self._model, self._settings, self._weights_key(), dev)
            tuned = tune(self.backend, shape, self._batch_sizes())
            self.backend, run, streams, plan = tuned.backend, tuned.backend.run, tuned.streams, tuned.plan
        return Engine(
            name,
            run,
            plan=plan,
            streams=streams,
            probe=noise(1, shape),
            # Admission limits too, before a body is read; this is for requests that were admitted at the same time.
            max_queue=2 * max(self._settings.max_queue, self._settings.max_images_per_request),
            max_run_s=max(self._settings.request_deadline_s, _MIN_HANG_S),
            on_batch=lambda size: self._metrics.batch(name, size),
        )

    def _batch_sizes(self) -> tuple[int, ...]:
        """Candidates for the batch size."""
        if self._settings.max_batch is not None:
            return (self._settings.max_batch,)
        return CUDA_SIZES if self.backend is not None and self.backend.device == "cuda" else CPU_SIZES

    def _weights_key(self) -> str:
        """Names the weights and what the network does with them (its tasks, and what it gives beside).

        That of a fusion is its image model's, so that both run one graph.
        """
        card = self._model.card
        owner, files = getattr(self._model, "image_model", self._model), card.files
        if isinstance(owner, DeferredImageModel):
            files = [file for file in files if file.name == WEIGHTS_FILE]
        given = ["stages"] if card.ood_distance == "stages" else []
        return " ".join([*owner.card.tasks, *given, *(file.sha256 for file in files)])

    def _run_without_network(self, pixels: Array) -> Mapping[str, Array]:
        outputs = self._model.encode_images(pixels)
        assert outputs is not None
        return outputs

    @property
    def healthy(self) -> bool:
        """Whether images can be encoded."""
        return self.engine is None or self.engine.healthy

    @property
    def fatal_error(self) -> str | None:
        """What the device said when it failed for good; None while it did not."""
        return None if self.engine is None else self.engine.fatal_error

    @property
    def seconds_per_image(self) -> float:
        """Estimated seconds per image under load: the slower of decoding and running."""
        run_s = self.engine.seconds_per_image if self.engine is not None else 0.0
        return max(run_s, self._decode_latency.seconds / self._decoders)

    def start(self) -> None:
        """Start to answer, on the running event loop."""
        if (engine := self.engine) is not None:
            engine.start()
            self._unwatch = self._metrics.watch_queue(self._model.card.name, lambda: engine.depth)

    async def stop(self) -> None:
        """Finish accepted requests, then shut down."""
        if self.engine is not None:
            await self.engine.stop()
            self._unwatch()

    def decode(self, context: PredictionContext, sha256: str | None, queued_at: float) -> None:
        """Decode and resize the image file; not for the event loop.

        Args:
            context: with data; filled up to ``plausible``.
            sha256: of the file, where it is known already.
            queued_at: when this was asked for, on the clock of ``time.perf_counter``.

        Raises:
            ApiError: the image cannot be used.
        """
        started = time.perf_counter()
        decoded = decode(context.data, self._settings, sha256)
        context.info = decoded.info
        context.pixels, context.plausible = None, True
        if self._preprocess is not None:
            context.pixels = self._preprocess.apply(decoded.image)
            context.plausible = is_plausible(context.pixels) and not is_colourful(decoded.image)
        decode_s = time.perf_counter() - started
        self._decode_latency.add(decode_s)
        context.timings_s |= {"wait": started - queued_at, "decode": decode_s}

    async def encode(self, context: PredictionContext) -> None:
        """Run the network on the image.

        Args:
            context: after decode; filled up to ``outputs``.

        Raises:
            ApiError: the service is full, or the deadline passed.
        """
        if context.pixels is None or self.engine is None:
            context.outputs = None
            return
        answer = await self.engine.submit(context.pixels, context.deadline)
        context.outputs = {name: np.asarray(row)[None] for name, row in answer.outputs.items()}
        context.timings_s |= {"queue": answer.queue_s, "run": answer.run_s}
