"""The models that are served: found in the registry, loaded and replaced while the service runs."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import PyMongoError

from app.config import Settings
from app.errors import UnavailableError
from app.inference.training import Progress, read_progress

logger = logging.getLogger(__name__)

Document = dict[str, Any]

TASKS: Final = ("modality", "location")
_POLL_S: Final = 2.0


class ModelServer:
    """Keeps the best registered model of each task ready."""

    def __init__(self, settings: Settings, database: Database[Document]) -> None:
        self._settings = settings
        self._database = database
        self._progress: list[Progress] = []
        self._watch: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether every registered model is loaded and runs."""
        return self._watch is not None and not self._watch.done()

    async def start(self) -> None:
        """Load what is registered and begin to watch for more."""
        await self._refresh()
        self._watch = asyncio.create_task(self._watch_registry(), name="model-watch")

    async def stop(self) -> None:
        """End the watch; answer what was accepted."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    def status(self) -> dict[str, Mapping[str, Any]]:
        """Per task: what serves it, or how far its training is."""
        return {task: self._training_status(task) for task in TASKS}

    def _training_status(self, task: str) -> Mapping[str, Any]:
        progress = self._progress_of(task)
        return {"state": "missing"} if progress is None else {"training": progress.as_json(), "state": "training"}

    def _progress_of(self, task: str) -> Progress | None:
        return next((progress for progress in self._progress if task in progress.tasks), None)

    def not_ready(self, task: str) -> UnavailableError:
        """The answer while no model serves a task."""
        progress = self._progress_of(task)
        if progress is None:
            return UnavailableError(f"No model for {task} is trained yet. Run `medpix train {task}`.", retry_after_s=60)
        wait = 30 if progress.eta_s is None else max(5, min(120, round(progress.eta_s)))
        detail = f"The model for {task} is not ready. {progress.describe()}"
        return UnavailableError(detail, retry_after_s=wait, training=progress.as_json())

    async def _watch_registry(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            self._progress = await asyncio.to_thread(read_progress, self._database)
        except PyMongoError as error:
            reason = str(error).partition(" (configured timeouts")[0]
            logger.warning("the model registry cannot be read: %s", reason)
