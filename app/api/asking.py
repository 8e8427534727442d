"""What all routes that ask a model share: the deadline, capacity, the dataset's word, a caller who leaves."""

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Mapping
from typing import Annotated, Any, Final

import pymongo
from fastapi import Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from pymongo.errors import PyMongoError

from app.api.deps import ModelsDep, RepositoryDep, SettingsDep
from app.api.predictions import Task, prediction_notes, prediction_view
from app.config import Settings
from app.data.repository import Repository
from app.errors import Responses, documented
from app.inference.models import ModelServer
from app.inference.prediction import Prediction, Upload
from app.inference.predictor import Predictor

# A prediction does not wait longer for the database than this: it can be given without.
_LOOKUP_S: Final = 0.5
_CLIENT_CLOSED_REQUEST: Final = 499

ASKING_ERRORS: Final = documented(400, 413, 415, 422, 503, 504)
TIMED: Final[Responses] = {
    200: {
        "headers": {
            "Server-Timing": {
                "description": "Milliseconds per stage: decode, queue and run, or cache",
                "schema": {"type": "string"},
            },
            "X-Cache": {
                "description": "Whether the same question to the same model was answered before",
                "schema": {"type": "string", "enum": ["hit", "miss"]},
            },
        }
    }
}


class Asking:
    """One request to the models.

    Args:
        request: as it came in.
        models: that are served.
        repository: to find out whether an image is of the dataset.
        settings: limits.
        timeout_s: what the caller allows; None: as long as the service does.
    """

    def __init__(
        self,
        request: Request,
        models: ModelServer,
        repository: Repository,
        settings: Settings,
        timeout_s: float | None,
    ) -> None:
        self.request = request
        self.repository = repository
        self.settings = settings
        self.seconds = min(timeout_s or settings.request_deadline_s, settings.request_deadline_s)
        self._models = models

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return str(self.request.state.request_id)

    def predictor(self, task: str, count: int = 1) -> Predictor:
        """The model of a task, if it can answer in time.

        Ask before the body is read, to refuse it unread, and after it: meanwhile there may be another model.

        Args:
            task: modality or location.
            count: images to judge.

        Raises:
            UnavailableError: no model is ready, or it has too much to do.
        """
        predictor = self._models.predictor(task)
        predictor.admit(self.seconds, count)
        return predictor

    def deadline(self) -> float:
        """The end of the time that this request has from now on, on the clock of ``time.perf_counter``."""
        return time.perf_counter() + self.seconds

    async def predict(
        self, predictor: Predictor, task: Task, upload: Upload, deadline: float
    ) -> tuple[Prediction, dict[str, Any]]:
        """A prediction, and the same as a ``PredictionView``.

        Raises:
            ApiError: the image cannot be used, the service is full, or the deadline passed.
        """
        # The database answers while the model works.
        finding = asyncio.ensure_future(self.find(hashlib.sha256(upload.data).hexdigest()))
        try:
            prediction = await predictor.predict(task, upload, deadline)
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

    async def unless_gone(self, work: Coroutine[Any, Any, Response]) -> Response:
        """Answer, or stop working as soon as the caller hangs up; the body must have been read."""
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
    return JSONResponse(content, headers=timing_headers(prediction.timings_s, cached=prediction.cached))


def timing_headers(timings_s: Mapping[str, float], *, cached: bool) -> dict[str, str]:
    """The headers that ``TIMED`` documents."""
    timing = ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in timings_s.items())
    return {"Server-Timing": timing, "X-Cache": "hit" if cached else "miss"}


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


async def get_asking(
    request: Request,
    models: ModelsDep,
    repository: RepositoryDep,
    settings: SettingsDep,
    timeout_s: TimeoutHeader = None,
) -> Asking:
    """One request to the models."""
    return Asking(request, models, repository, settings, timeout_s)


AskingDep = Annotated[Asking, Depends(get_asking)]


def _retrieve(task: "asyncio.Future[Any]") -> None:
    """Take note of how a task ended that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
