"""The image half of a model: a file is decoded in a thread, then waits for its turn on the device."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.serving.autotune import autotune
from app.serving.backends.base import Backend
from app.serving.backends.cuda_graphs import SIZES
from app.serving.batch_tuning import CPU_SIZES, noise, warm_up
from app.serving.decode.image import decode
from app.serving.engine import Engine
from app.serving.input_heuristics import is_colourful, is_plausible
from app.serving.latency import LatencyEstimator
from app.serving.precision import Choice, LoadRecords, select_backend
from app.serving.prediction import Observation, Prepared
from ml.dataset.preprocess import Preprocess
from ml.models.base import ServedModel

Array = NDArray[Any]

_LEAST_HANG_S: Final = 30.0


class ImageEncoder:
    """Runs the image half of one model on image files.

    Args:
        model: loaded from the registry.
        settings: limits, device and batch size.
        metrics: to report to.
        decoders: how many threads decode.
        dev: reads the dev split, to see whether the model may compute in less than fp32; None where there is none.

    Attributes:
        backend: what the network runs on; None for a model without network.
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
        self._decoding = LatencyEstimator()
        self._unwatch: Callable[[], None] = lambda: None
        self._preprocess = model.preprocess
        self.backend: Backend | None = None
        self.precision: Choice | None = None
        self.engine = None if self._preprocess is None else self._make_engine(self._preprocess, dev)

    def _make_engine(self, preprocess: Preprocess, dev: LoadRecords | None) -> Engine:
        name = self._model.card.name
        shape = (preprocess.channels, preprocess.size, preprocess.size)
        if self._model.network is None:
            run: Callable[[Array], Mapping[str, Array]] = self._run_without_network
        else:
            self.backend, self.precision = select_backend(self._model, self._settings, self._weights_key(), dev)
            self.backend = autotune(self.backend, shape)
            run = self.backend.run
        plan = warm_up(run, shape, self._batch_sizes())
        return Engine(
            name,
            run,
            plan=plan,
            probe=noise(1, shape),
            # Admission counts too, before a body is read; this is for those who came in at the same time.
            max_queue=2 * max(self._settings.max_queue, self._settings.max_images_per_request),
            max_run_s=max(self._settings.request_deadline_s, _LEAST_HANG_S),
            on_batch=lambda size: self._metrics.batch(name, size),
        )

    def _batch_sizes(self) -> tuple[int, ...]:
        """The largest batch, or those to choose it from."""
        if self._settings.max_batch is not None:
            return (self._settings.max_batch,)
        return SIZES[-1:] if self.backend is not None and self.backend.device == "cuda" else CPU_SIZES

    def _weights_key(self) -> str:
        """Names the weights and what the network does with them (its tasks)."""
        card = self._model.card
        return " ".join([*card.tasks, *(file.sha256 for file in card.files)])

    def _run_without_network(self, pixels: Array) -> Mapping[str, Array]:
        outputs = self._model.encode_images(pixels)
        assert outputs is not None
        return outputs

    @property
    def healthy(self) -> bool:
        """Whether images can be judged."""
        return self.engine is None or self.engine.healthy

    @property
    def seconds_per_image(self) -> float:
        """How long an image takes when there are many, in seconds: the slower of decoding and running."""
        run_s = self.engine.seconds_per_image if self.engine is not None else 0.0
        return max(run_s, self._decoding.seconds / self._decoders)

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

    def prepare(self, data: bytes, sha256: str | None, queued_at: float) -> Prepared:
        """An image file as the network takes it; not for the event loop.

        Args:
            data: of the file.
            sha256: of the file, where it is known already.
            queued_at: when this was asked for, on the clock of ``time.perf_counter``.

        Raises:
            ApiError: the image cannot be used.
        """
        started = time.perf_counter()
        decoded = decode(data, self._settings, sha256)
        pixels, plausible = None, True
        if self._preprocess is not None:
            pixels = self._preprocess.apply(decoded.image)
            plausible = is_plausible(pixels) and not is_colourful(decoded.image)
        decode_s = time.perf_counter() - started
        self._decoding.add(decode_s)
        return Prepared(decoded.info, pixels, plausible, {"wait": started - queued_at, "decode": decode_s})

    async def observe(self, prepared: Prepared, deadline: float) -> Observation:
        """What the image half gives for an image.

        Args:
            prepared: the image.
            deadline: on the clock of ``time.perf_counter``.

        Raises:
            ApiError: the service is full, or the deadline passed.
        """
        if prepared.pixels is None or self.engine is None:
            return Observation(prepared.info, None, prepared.timings_s, prepared.plausible)
        answer = await self.engine.submit(prepared.pixels, deadline)
        outputs = {name: np.asarray(row)[None] for name, row in answer.outputs.items()}
        timings = {**prepared.timings_s, "queue": answer.queue_s, "run": answer.run_s}
        return Observation(prepared.info, outputs, timings, prepared.plausible)
