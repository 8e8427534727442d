"""The models that are served: found in the registry, loaded and replaced while the service runs."""

import asyncio
import gc
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pymongo.database import Database
from pymongo.errors import PyMongoError
from threadpoolctl import threadpool_limits

from app.core.cpus import usable_cpus
from app.core.exceptions import UnavailableError
from app.core.progress import Progress
from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.serving.admission import Room
from app.serving.backends.base import on_cuda
from app.serving.daemon_pool import Threads
from app.serving.model_selection import pin_fault, variable
from app.serving.prediction import Prediction
from app.serving.prediction_cache import ResultCache
from app.serving.predictor import Predictor
from app.serving.training_status import read_progress
from ml.dataset.records import load_records
from ml.registry.model_card import ModelCard
from ml.registry.registry import Registry, RegistryError, load_model, load_reference

logger = logging.getLogger(__name__)

Document = dict[str, Any]

TASKS: Final = ("modality", "location")
# What a task waits for comes before what has ended.
_RELEVANCE: Final = {"running": 0, "queued": 1}
# The largest bodies that are held in memory at once; images are seldom a hundredth of that.
_MOST_BODIES: Final = 8
_POLL_S: Final = 2.0
# A model that could not be loaded is tried again after this long: its files may have been put right.
_RETRY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Found:
    """What the last look at the database found.

    Attributes:
        progress: the training runs, newest report first.
        cards: every registered model, by name.
        ranked: per task, the models that answer it from an image, the best first.
    """

    progress: list[Progress]
    cards: list[ModelCard]
    ranked: Mapping[str, list[ModelCard]]


class ModelServer:
    """Keeps the best registered model of each task ready.

    Attributes:
        room: for the uploads that are in work.
    """

    def __init__(self, settings: Settings, database: Database[Document], metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._database = database
        self._registry = Registry(database, settings.model_files_dir)
        self._pins = {"modality": settings.model_modality, "location": settings.model_location}
        self._pool = Threads(settings.decode_threads or _decoders(settings), "decode")
        self.room = Room(_MOST_BODIES * settings.max_body_bytes)
        self._cache: ResultCache[Prediction] = ResultCache(settings.cache_entries)
        self._found = _Found([], [], {})
        self._serving: dict[str, Predictor] = {}
        self._faults: dict[str, str] = {}
        self._unusable: dict[str, tuple[float, str]] = {}
        self._blas: list[threadpool_limits] = []
        self._loaded = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether every task for which a model is registered, or named by a setting, is answered."""
        return (
            self._loaded
            and self._watch is not None
            and not self._watch.done()
            and self._faults.keys() <= self._serving.keys()
            and all(predictor.healthy for predictor in self._serving.values())
        )

    @property
    def cards(self) -> list[ModelCard]:
        """Every registered model, by name."""
        return self._found.cards

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
        """The training that a task waits for: one under way, else the last."""
        pin = self._pins[task]
        runs = [run for run in self._found.progress if task in run.tasks and (pin is None or run.name == pin)]
        return min(runs, key=lambda run: _RELEVANCE.get(run.state, len(_RELEVANCE)), default=None)

    def not_ready(self, task: str) -> UnavailableError:
        """The answer while no model serves a task."""
        progress = self._progress_of(task)
        if not self._loaded:
            return UnavailableError("The models are being loaded. Try again shortly.", retry_after_s=5)
        if task in self._faults:
            return UnavailableError(f"The model for {task} cannot be served: {self._faults[task]}", retry_after_s=60)
        if progress is None or (progress.state == "done" and not self._candidates(task)):
            pin = self._pins[task]
            lack = f"No model for {task} that takes an image is trained yet."
            if pin is not None:
                lack = f"{variable(task)} names the model {pin}, which is not trained yet."
            return UnavailableError(f"{lack} Run `medpix train {pin or task}`.", retry_after_s=60)
        wait = 30 if progress.remaining_s is None else max(5, min(120, round(progress.remaining_s)))
        detail = f"The model for {task} is not ready. {progress.describe()}"
        return UnavailableError(detail, retry_after_s=wait, training=progress.as_json())

    async def _watch_registry(self) -> None:
        last = ""
        while True:
            try:
                self._found = await asyncio.to_thread(self._look)
                for task in TASKS:
                    await self._serve_best(task)
                self._loaded = True
                last = ""
            except PyMongoError as error:
                reason = str(error).partition(" (configured timeouts")[0]
                logger.warning("the model registry cannot be read: %s", reason)
            except Exception as error:  # whatever it was, the next look may succeed; the models serve on
                if repr(error) != last:
                    logger.exception("looking for models failed")
                last = repr(error)
            await asyncio.sleep(_POLL_S)

    def _look(self) -> _Found:
        progress = read_progress(self._database)
        cards = list(self._registry.list())
        return _Found(progress, cards, {task: self._registry.ranked(task, cards) for task in TASKS})

    async def _serve_best(self, task: str) -> None:
        """Serve a task with the best model that can be loaded; what answers goes on until there is a better one."""
        fault = pin_fault(task, self._found.cards, self._pins[task])
        current = self._serving.get(task)
        for card in self._candidates(task):
            if current is not None and current.card.version == card.version:
                break
            try:
                predictor = await self._ready(card)
            except RegistryError as error:
                fault = fault or str(error)
                if current is not None:
                    break
            else:
                await self._replace(task, predictor)
                break
        if fault is None:
            self._faults.pop(task, None)
        else:
            self._faults[task] = fault

    def _candidates(self, task: str) -> list[ModelCard]:
        """The models to try for a task, in this order; where a setting names one, that one alone."""
        pin = self._pins[task]
        return [card for card in self._found.ranked.get(task, ()) if pin in (None, card.name)]

    async def _ready(self, card: ModelCard) -> Predictor:
        """A model that answers.

        Raises:
            RegistryError: it cannot be loaded, now or when it was last tried; this is logged once.
        """
        shared = next((each for each in self._serving.values() if each.card.version == card.version), None)
        if shared is not None:
            return shared
        tried_at, reason = self._unusable.get(card.version, (-math.inf, ""))
        if time.monotonic() < tried_at + _RETRY_S:
            raise RegistryError(reason)
        try:
            predictor = await asyncio.to_thread(self._load, card)
        except Exception as error:
            found = str(error) or repr(error)
            if found != reason:
                expected = isinstance(error, (RegistryError, RuntimeError))
                logger.exception("the model %s cannot be served: %s", card.name, found, exc_info=not expected)
            self._unusable[card.version] = (time.monotonic(), found)
            raise RegistryError(found) from error
        self._unusable.pop(card.version, None)
        predictor.start()
        await self._rehearse(predictor)
        await asyncio.to_thread(_spare_the_collector)
        return predictor

    async def _replace(self, task: str, predictor: Predictor) -> None:
        former = self._serving.get(task)
        self._serving[task] = predictor
        cards = {task: each.card for task, each in self._serving.items()}
        self._metrics.serving({task: (card.name, card.version, card.sha256) for task, card in cards.items()})
        logger.info("%s %s answers %s", predictor.card.name, predictor.card.version, task)
        if former is not None and former not in self._serving.values():
            await former.stop()

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


def _decoders(settings: Settings) -> int:
    return min(64 if on_cuda(settings) else 4, usable_cpus())


def _spare_the_collector() -> None:
    """Keep the hundreds of thousands of objects of a loaded model out of garbage collection.

    Going through them stops every thread for 0.2 s or more, in the midst of requests.
    """
    gc.unfreeze()  # what a replaced model left
    gc.collect()
    gc.freeze()
