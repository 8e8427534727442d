"""The models that are served: found in the registry, loaded and replaced while the service runs."""

import asyncio
import gc
import logging
from collections.abc import Mapping
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import PyMongoError
from threadpoolctl import threadpool_limits

from app.config import Settings
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.errors import UnavailableError
from app.inference.cache import ResultCache
from app.inference.prediction import Prediction
from app.inference.predictor import Predictor
from app.inference.threads import Threads
from app.inference.training import Progress, read_progress
from app.metrics import Metrics
from ml.card import ModelCard
from ml.records import load_records
from ml.registry import Registry, RegistryError, load_model, load_reference

logger = logging.getLogger(__name__)

Document = dict[str, Any]

TASKS: Final = ("modality", "location")
_POLL_S: Final = 2.0


class ModelServer:
    """Keeps the best registered model of each task ready."""

    def __init__(self, settings: Settings, database: Database[Document], metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._database = database
        self._registry = Registry(database, settings.model_files_dir)
        self._pins = {"modality": settings.model_modality, "location": settings.model_location}
        self._pool = Threads(settings.decode_threads, "decode")
        self._cache: ResultCache[Prediction] = ResultCache(settings.cache_entries)
        self._progress: list[Progress] = []
        self._cards: list[ModelCard] = []
        self._serving: dict[str, Predictor] = {}
        self._faults: dict[str, str] = {}
        self._blas: list[threadpool_limits] = []
        self._loaded = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether every registered model is loaded, warm and running."""
        alive = self._watch is not None and not self._watch.done()
        return (
            alive
            and self._loaded
            and not self._faults
            and all(predictor.healthy for predictor in self._serving.values())
        )

    @property
    def cards(self) -> list[ModelCard]:
        """Every registered model, by name."""
        return self._cards

    @property
    def serving(self) -> Mapping[str, Predictor]:
        """The model that answers each task."""
        return self._serving

    def predictor(self, task: str) -> Predictor:
        """The model that answers a task.

        Raises:
            UnavailableError: none is ready; the answer says how far its training is.
        """
        if task not in self._serving:
            raise self.not_ready(task)
        return self._serving[task]

    def start(self) -> None:
        """Begin to load what is registered, and to watch for more; the data are served meanwhile."""
        self._watch = asyncio.create_task(self._watch_registry(), name="model-watch")

    async def stop(self) -> None:
        """End the watch; answer what was accepted."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.gather(*(predictor.stop() for predictor in set(self._serving.values())))
        # A decoder that hangs is left behind: nobody waits for its image any more.
        self._pool.shutdown(wait=False, cancel_futures=True)
        for limits in reversed(self._blas):
            limits.restore_original_limits()
        gc.unfreeze()

    def status(self) -> dict[str, Mapping[str, Any]]:
        """Per task: what serves it, or how far its training is."""
        return {task: self._task_status(task) for task in TASKS}

    def _task_status(self, task: str) -> Mapping[str, Any]:
        status: dict[str, Any] = {"state": "missing" if self._loaded else "loading"}
        progress = self._progress_of(task)
        if progress is not None and progress.state != "done":
            status = {"state": progress.state, "training": progress.as_json()}
        if task in self._serving:
            card = self._serving[task].card
            status |= {"state": "serving", "model": card.name, "version": card.version}
        if task in self._faults:
            status["fault"] = self._faults[task]
        return status

    def _progress_of(self, task: str) -> Progress | None:
        return next((progress for progress in self._progress if task in progress.tasks), None)

    def not_ready(self, task: str) -> UnavailableError:
        """The answer while no model serves a task."""
        progress = self._progress_of(task)
        if not self._loaded:
            return UnavailableError("The models are being loaded. Try again shortly.", retry_after_s=5)
        if task in self._faults:
            return UnavailableError(f"The model for {task} cannot be served: {self._faults[task]}", retry_after_s=60)
        if progress is None:
            return UnavailableError(f"No model for {task} is trained yet. Run `medpix train {task}`.", retry_after_s=60)
        wait = 30 if progress.eta_s is None else max(5, min(120, round(progress.eta_s)))
        detail = f"The model for {task} is not ready. {progress.describe()}"
        return UnavailableError(detail, retry_after_s=wait, training=progress.as_json())

    async def _watch_registry(self) -> None:
        while True:
            self._loaded = await self._refresh() or self._loaded
            await asyncio.sleep(_POLL_S)

    async def _refresh(self) -> bool:
        """Look once; whether the registry could be read."""
        try:
            self._progress = await asyncio.to_thread(read_progress, self._database)
            self._cards = await asyncio.to_thread(lambda: list(self._registry.list()))
        except PyMongoError as error:
            reason = str(error).partition(" (configured timeouts")[0]
            logger.warning("the model registry cannot be read: %s", reason)
            return False
        for task in TASKS:
            await self._serve_best(task)
        return True

    def _choose(self, task: str) -> ModelCard | None:
        """The model that MEDPIX_MODEL_<TASK> names, else the one that the registry thinks best."""
        pinned = self._pins[task]
        if pinned:
            return next((card for card in self._cards if card.name == pinned and card.can_serve(task)), None)
        return self._registry.best_for_task(task)

    async def _serve_best(self, task: str) -> None:
        card = await asyncio.to_thread(self._choose, task)
        current = self._serving.get(task)
        if card is None or (current is not None and current.card.version == card.version):
            return
        shared = next((p for p in self._serving.values() if p.card.version == card.version), None)
        try:
            predictor = await asyncio.to_thread(self._load, card) if shared is None else shared
        except (RegistryError, RuntimeError) as error:
            if self._faults.get(task) != str(error):
                logger.error("the model %s cannot be served: %s", card.name, error)  # noqa: TRY400  # expected
            self._faults[task] = str(error)
            return
        if shared is None:
            predictor.start()
            await self._rehearse(predictor)
            await asyncio.to_thread(_spare_the_collector)
        self._serving[task] = predictor
        self._faults.pop(task, None)
        cards = {task: predictor.card for task, predictor in self._serving.items()}
        self._metrics.serving({task: (card.name, card.version, card.sha256) for task, card in cards.items()})
        logger.info("%s %s answers %s", card.name, card.version, task)
        if current is not None and current not in self._serving.values():
            await current.stop()

    async def _rehearse(self, predictor: Predictor) -> None:
        try:
            await predictor.rehearse()
        except Exception:  # it may still answer others; its engine says whether it is alive
            logger.exception("%s could not answer a question at its start", predictor.card.name)

    def _load(self, card: ModelCard) -> Predictor:
        folder = self._settings.model_files_dir
        model = load_model(card, folder)
        # Threads of BLAS wait for work in a loop that takes the cores from the network's own threads for
        # milliseconds after each small product. Anew for each model: it may have brought a BLAS of its own.
        self._blas.append(threadpool_limits(1, user_api="blas"))
        return Predictor(
            model,
            load_reference(card, folder),
            self._settings,
            self._pool,
            self._cache,
            self._metrics,
            dev=lambda: load_records(self._database, find_dataset(self._settings.dataset_dir) / IMAGE_FOLDER, ("dev",)),
        )


def _spare_the_collector() -> None:
    """Keep the hundreds of thousands of objects of a loaded model out of garbage collection.

    Going through them stops every thread for 0.2 s or more, in the midst of requests.
    """
    gc.unfreeze()  # what a replaced model left
    gc.collect()
    gc.freeze()
