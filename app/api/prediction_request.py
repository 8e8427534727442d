"""Shared by the prediction routes: deadline, admission, dataset lookup, client disconnects."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar

import pymongo
from fastapi import Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from pymongo.errors import PyMongoError

from app.api.errors import Responses, documented
from app.api.schemas.predictions import Task, prediction_notes, prediction_view
from app.api.uploads import body_limit
from app.core.settings import Settings
from app.data.repository import Repository
from app.serving.deadline import until
from app.serving.model_manager import ModelManager
from app.serving.prediction import Prediction, Upload
from app.serving.predictor import Predictor

# A prediction does not wait longer for the database than this: it can be given without.
_LOOKUP_S: Final = 0.5
_CLIENT_CLOSED_REQUEST: Final = 499

_SLOW_UPLOAD: Final = (
    "The upload was not complete before the deadline. Send less at once, or allow more time in X-Request-Timeout."
)

T = TypeVar("T")

# Of routes that take an upload, and of those that judge an image of the dataset.
UPLOAD_ERRORS: Final = documented(400, 413, 415, 422, 429, 500, 503, 504)
DATASET_IMAGE_ERRORS: Final = documented(404, 422, 500, 503, 504)
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
    """One request to the models.

    Args:
        request: as it came in.
        models: that are served.
        repository: to find out whether an image is of the dataset.
        settings: limits.
        timeout_s: what the caller allows; None: as long as the service does.

    Attributes:
        deadline: on the clock of ``time.perf_counter``; the time runs from the request's first bytes.
    """

    def __init__(
        self,
        request: Request,
        models: ModelManager,
        repository: Repository,
        settings: Settings,
        timeout_s: float | None,
    ) -> None:
        self.request = request
        self.repository = repository
        self.settings = settings
        seconds = min(timeout_s or settings.request_deadline_s, settings.request_deadline_s)
        self.deadline: float = request.state.started + seconds
        self._models = models

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return str(self.request.state.request_id)

    @contextmanager
    def acquire_slot(self, task: str, count: int = 1) -> Iterator[Predictor]:
        """The model of a task, with a place for some images until the end.

        Raises:
            UnavailableError: no model is ready, or it has too much to do.
        """
        predictor = self._models.predictor(task)
        with predictor.admission.admit(self._left(), count):
            yield predictor

    async def answer_upload(
        self,
        task: str,
        read: Callable[[], Awaitable[T]],
        work: Callable[[Predictor, T], Coroutine[Any, Any, Response]],
        *,
        count: Callable[[T], int] = lambda _: 1,
    ) -> Response:
        """Read an upload if there is room and time for it, and answer as long as the caller is there.

        Who cannot be answered in time is refused before the body is read.

        Args:
            task: modality or location.
            read: reads the body.
            work: answers; its model has places for all images.
            count: images in the upload.

        Raises:
            ApiError: no model is ready or it has too much to do, the upload cannot be used or came too slowly.
        """
        size = self._declared_size()
        least = 1 if size is None else math.ceil(max(1, size) / self.settings.max_image_bytes)
        self._models.predictor(task).admission.check(self._left(), least)
        with self._models.upload_budget.reserve(
            body_limit(self.settings, self.request.url.path) if size is None else size
        ):
            async with until(self.deadline, _SLOW_UPLOAD):
                upload = await read()
            with self.acquire_slot(task, count(upload)) as predictor:  # there may be another model by now
                return await self.cancel_on_disconnect(work(predictor, upload))

    def _left(self) -> float:
        return self.deadline - time.perf_counter()

    def _declared_size(self) -> int | None:
        """The length of the body, where the caller says it."""
        length = self.request.headers.get("content-length", "")
        return int(length) if length.isdigit() else None

    async def predict(self, predictor: Predictor, task: Task, upload: Upload) -> tuple[Prediction, dict[str, Any]]:
        """A prediction, and the same as a ``PredictionView``.

        Raises:
            ApiError: the image cannot be used, the service is full, or the deadline passed.
        """
        prepared = await predictor.prepare(task, upload, self.deadline)
        # The database answers while the model works.
        finding = asyncio.ensure_future(self.find(prepared.info.sha256))
        try:
            prediction = await predictor.answer(task, upload.caption, prepared, self.deadline)
            return prediction, self.view(prediction, await asyncio.shield(finding))
        finally:
            # Never cancelled: PyMongo then loses the socket that it is connecting.
            finding.add_done_callback(_retrieve)

    def view(self, prediction: Prediction, found: tuple[dict[str, Any] | None, list[str]]) -> dict[str, Any]:
        """A prediction as a ``PredictionView``, with what ``find`` said of its image."""
        in_dataset, notes = found
        notes = prediction_notes(prediction) + notes
        view = prediction_view(prediction)
        return view | {"in_dataset": in_dataset, "notes": notes, "request_id": self.request_id}

    async def find(self, sha256: str) -> tuple[dict[str, Any] | None, list[str]]:
        """The image of the dataset with a content hash, and what there is to say about that."""
        try:
            # PyMongo's own limit, not asyncio's: a cancelled connection loses its socket.
            with pymongo.timeout(_LOOKUP_S):
                found = await self.repository.image_with_content(sha256)
        except PyMongoError:
            return None, ["The database could not be asked whether this image is in the dataset."]
        if found is None or found["split"] == "test":
            return found, []
        use = "trained" if found["split"] == "train" else "chosen"
        return found, [f"The model was {use} on this image ({found['image']}): its answer proves nothing."]

    async def cancel_on_disconnect(self, work: Coroutine[Any, Any, Response]) -> Response:
        """Await the work, or cancel it when the client disconnects; the body must have been read."""
        answering = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return answering.result()
            return Response(status_code=_CLIENT_CLOSED_REQUEST)  # for the metrics; nobody reads it
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def timed(content: Mapping[str, Any], prediction: Prediction) -> Response:
    """An answer in JSON that says how long each stage took."""
    cache = {"X-Cache": "hit" if prediction.cached else "miss"}
    return JSONResponse(content, headers=timing_headers(prediction.timings_s) | cache)


def timing_headers(*timings_s: Mapping[str, float]) -> dict[str, str]:
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
        description="Seconds after which an answer is of no use any more; the service's own limit holds too",
    ),
]


async def get_prediction_request(request: Request, timeout_s: TimeoutHeader = None) -> PredictionRequest:
    """One request to the models; each further dependency would take FastAPI a twentieth of a millisecond."""
    state = request.app.state
    return PredictionRequest(request, state.models, state.repository, state.settings, timeout_s)


PredictionRequestDep = Annotated[PredictionRequest, Depends(get_prediction_request)]


def _retrieve(task: "asyncio.Future[Any]") -> None:
    """Take note of how a task ended that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
