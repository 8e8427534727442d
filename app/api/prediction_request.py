"""Shared by the prediction routes: deadline, admission, dataset lookup, client disconnects."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import pymongo
from fastapi import Depends, Header, Request
from pymongo.errors import PyMongoError
from starlette.requests import ClientDisconnect

from app.api.errors import Responses, documented
from app.api.schemas.predictions import Task, prediction_view
from app.api.uploads import body_limit
from app.core.settings import Settings
from app.data.repository import Repository
from app.serving.admission import enforce_deadline
from app.serving.model_manager import ModelManager
from app.serving.prediction_context import PredictionContext

if TYPE_CHECKING:  # imports PyTorch
    from app.serving.predictor import Predictor

# A prediction does not wait longer than this for the database: it can be given without.
_LOOKUP_S: Final = 0.5

_SLOW_UPLOAD: Final = (
    "The upload was not complete before the deadline. Send less at once, or allow more time in X-Request-Timeout."
)

T = TypeVar("T")

# Of routes that take an upload, and of those that predict for an image of the dataset.
UPLOAD_ERRORS: Final = documented(400, 413, 415, 422, 429, 500, 503, 504)
DATASET_IMAGE_ERRORS: Final = documented(404, 422, 429, 500, 503, 504)
_STAGES: Final = "Milliseconds per stage: wait (for a thread), decode, queue (for the model), run, postprocess"
_TIMING: Final = {"description": f"{_STAGES}; or wait and cache", "schema": {"type": "string"}}
TIMED: Final[Responses] = {
    200: {
        "headers": {
            "Server-Timing": _TIMING,
            "X-Cache": {
                "description": "Whether the same question to the same model was answered before",
                "schema": {"type": "string", "enum": ["hit", "miss"]},
            },
        }
    }
}
TIMED_TOGETHER: Final[Responses] = {
    200: {
        "headers": {
            "Server-Timing": _TIMING
            | {"description": f"{_STAGES}; each is that of the prediction that it took longest"}
        }
    }
}


class PredictionRequest:
    """One HTTP request for one or several predictions.

    A route calls, in this order: ``admit`` before the body is read, ``read``, ``acquire_slot``,
    ``cancel_on_disconnect``, and ``predict`` for each image.

    Args:
        http: the request as it came in.
        models: that are served.
        repository: to look up whether an image is of the dataset.
        settings: limits.
        timeout_s: the client's deadline in seconds; None: the service's own.

    Attributes:
        deadline: on the clock of ``time.perf_counter``; the time runs from the request's first bytes.
    """

    def __init__(
        self,
        http: Request,
        models: ModelManager,
        repository: Repository,
        settings: Settings,
        timeout_s: float | None,
    ) -> None:
        self.http = http
        self.repository = repository
        self.settings = settings
        seconds = min(timeout_s or settings.request_deadline_s, settings.request_deadline_s)
        self.deadline: float = http.state.started + seconds
        self._models = models

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return str(self.http.state.request_id)

    @contextmanager
    def admit(self, task: str) -> Iterator[None]:
        """Refuse what cannot be answered in time before its body is read; reserve memory for the body.

        Args:
            task: modality or location.

        Raises:
            UnavailableError: no model is ready, it is overloaded, or there is no memory for the body.
        """
        length = self.http.headers.get("content-length", "")
        declared = int(length) if length.isdigit() else None
        fewest = 1 if declared is None else math.ceil(max(1, declared) / self.settings.max_image_bytes)
        self._models.predictor(task).admission.check(self._seconds_left(), fewest)
        size = body_limit(self.settings, self.http.url.path) if declared is None else declared
        with self._models.upload_budget.reserve(size):
            yield

    async def read(self, upload: Awaitable[T]) -> T:
        """Read the body before the deadline.

        Raises:
            ApiError: the body cannot be used, or came too slowly.
        """
        async with enforce_deadline(self.deadline, _SLOW_UPLOAD):
            return await upload

    @contextmanager
    def acquire_slot(self, task: str, count: int = 1) -> Iterator["Predictor"]:
        """The model of a task, with capacity for some images until the end.

        Raises:
            UnavailableError: no model is ready, or it is overloaded.
        """
        predictor = self._models.predictor(task)
        with predictor.admission.admit(self._seconds_left(), count):
            yield predictor

    @asynccontextmanager
    async def cancel_on_disconnect(self) -> AsyncIterator[None]:
        """Cancel the body of the ``async with`` when the client disconnects; the request must have been read.

        Raises:
            ClientDisconnect: the client is gone.
        """
        task = asyncio.current_task()
        assert task is not None
        disconnected = False

        async def watch() -> None:
            nonlocal disconnected
            while (await self.http.receive())["type"] != "http.disconnect":
                pass
            disconnected = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if disconnected and task.uncancel() == 0:
                raise ClientDisconnect from None
            raise
        finally:
            watcher.cancel()

    async def predict(self, predictor: "Predictor", task: Task, context: PredictionContext) -> dict[str, Any]:
        """Predict one image: decode -> encode -> postprocess -> ``PredictionView``.

        Raises:
            ApiError: the image cannot be used, the service is full, or the deadline passed.
        """
        context.task, context.deadline = task, self.deadline
        await predictor.predict(context)
        return await self.view(context)

    async def view(self, context: PredictionContext) -> dict[str, Any]:
        """A prediction as a ``PredictionView``, with what the dataset knows of its image."""
        in_dataset, notes = await self.find_in_dataset(context.info.sha256)
        members = {"in_dataset": in_dataset, "notes": [*context.notes, *notes], "request_id": self.request_id}
        return prediction_view(context) | members

    async def find_in_dataset(self, sha256: str) -> tuple[dict[str, Any] | None, list[str]]:
        """The image of the dataset with a content hash, and notes about it."""
        # Shielded: PyMongo loses the socket of a query that is cancelled while it connects.
        return await asyncio.shield(self._find_in_dataset(sha256))

    async def _find_in_dataset(self, sha256: str) -> tuple[dict[str, Any] | None, list[str]]:
        try:
            with pymongo.timeout(_LOOKUP_S):
                image = await self.repository.image_with_content(sha256)
        except PyMongoError:
            return None, ["The database could not be asked whether this image is in the dataset."]
        if image is None or image["split"] == "test":
            return image, []
        use = "trained" if image["split"] == "train" else "chosen"
        return image, [f"The model was {use} on this image ({image['image']}), so a correct answer means little."]

    def _seconds_left(self) -> float:
        return self.deadline - time.perf_counter()


def cache_header(context: PredictionContext) -> dict[str, str]:
    """The header X-Cache."""
    return {"X-Cache": "hit" if context.cached else "miss"}


def timing_header(*timings_s: Mapping[str, float]) -> dict[str, str]:
    """The header Server-Timing: per stage, the longest of some predictions."""
    longest: dict[str, float] = {}
    for timings in timings_s:
        longest |= {stage: max(seconds, longest.get(stage, 0.0)) for stage, seconds in timings.items()}
    return {"Server-Timing": ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in longest.items())}


TimeoutHeader = Annotated[
    float | None,
    Header(
        alias="X-Request-Timeout",
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="Client deadline in seconds; the service's own limit holds too",
    ),
]


async def get_prediction_request(http: Request, timeout_s: TimeoutHeader = None) -> PredictionRequest:
    """One request for predictions; each further dependency would cost FastAPI 0.05 ms."""
    state = http.app.state
    return PredictionRequest(http, state.models, state.repository, state.settings, timeout_s)


PredictionRequestDep = Annotated[PredictionRequest, Depends(get_prediction_request)]
