"""Loads the best registered models and replaces them while the service runs.

PyTorch, OpenVINO and the models' code are imported where models are loaded, in a thread: the data are served from
the first second, and the imports take ten times as long as those of the data service.
"""

import asyncio
import gc
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pymongo.database import Database
from pymongo.errors import PyMongoError
from threadpoolctl import threadpool_limits

from app.core.exceptions import UnavailableError, UserError
from app.core.progress import Progress
from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.data.client import reason_of
from app.data.dataset import IMAGE_FOLDER, find_dataset
from app.serving.admission import UploadBudget
from app.serving.daemon_pool import DaemonThreadPool
from app.serving.model_memory import freeze_garbage_collector, release_replaced
from app.serving.model_selection import TASKS, selection_reason, setting_name
from app.serving.prediction_cache import PredictionCache
from app.serving.prediction_context import PredictionContext
from app.serving.registry_state import RegistryState
from ml.dataset.records import load_records
from ml.registry.model_card import ModelCard

if TYPE_CHECKING:
    from app.serving.predictor import Predictor
    from app.serving.text_search import TextSearch
    from ml.registry.registry import Registry

logger = logging.getLogger(__name__)

Document = dict[str, Any]
_Loaded = TypeVar("_Loaded")

# What is trained for the search of images by words, where no registered model can do it.
TEXT_SEARCH_MODEL: Final = "clip-location"
# A training under way says more than one that has ended.
_STATE_ORDER: Final = {"running": 0, "queued": 1}
# The largest bodies that are held in memory at once; images are seldom a hundredth of that.
_MAX_BODIES: Final = 8
_POLL_S: Final = 2.0
# The shortest time after which decoding counts as hung; nobody waits for it beyond the request's deadline.
_MIN_HANG_S: Final = 30.0
# A model that could not be loaded is tried again after this long: its files may have been repaired.
_RETRY_S: Final = 30.0


class ModelManager:
    """Serves each task with its best registered model.

    Attributes:
        upload_budget: memory for the uploads in flight.
    """

    def __init__(self, settings: Settings, database: Database[Document], metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._database = database
        self._registry: Registry | None = None
        self._selected = settings.selected_models
        self._pool: DaemonThreadPool | None = None
        self.upload_budget = UploadBudget(_MAX_BODIES * settings.max_body_bytes)
        self._cache: PredictionCache[PredictionContext] = PredictionCache(settings.cache_entries)
        metrics.watch_cached_predictions(lambda: len(self._cache))
        self._state = RegistryState([], [], {}, {})
        self._serving: dict[str, Predictor] = {}
        self._text_search: TextSearch | None = None
        self._text_fault: str | None = None
        self._faults: dict[str, str] = {}
        self._unusable: dict[tuple[str, str], tuple[float, str]] = {}
        self._blas: list[threadpool_limits] = []
        self._loaded = False
        self._replaced = False
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
    def fatal_error(self) -> str | None:
        """Why only a new process can serve the models again; None while this one can."""
        return next((error for each in self._serving.values() if (error := each.fatal_error) is not None), None)

    @property
    def cards(self) -> list[ModelCard]:
        """Every registered model, by name."""
        return self._state.cards

    @property
    def training_choice(self) -> Document | None:
        """Which models the last start trains, and why; None before the first."""
        return self._state.training_choice

    @property
    def serving(self) -> Mapping[str, "Predictor"]:
        """The model that answers each task."""
        return self._serving

    def predictor(self, task: str) -> "Predictor":
        """The model that answers a task.

        Raises:
            UnavailableError: none is ready; the answer says how far its training is.
        """
        if task not in self._serving:
            raise self.not_ready(task)
        return self._serving[task]

    @property
    def text_search_version(self) -> str | None:
        """The version of the model that finds images by words; None where none does."""
        return None if self._text_search is None else self._text_search.card.version

    def text_search(self) -> "TextSearch":
        """What finds images by words.

        Raises:
            UnavailableError: no model can, or it is being loaded or trained; the answer says what to do.
        """
        if self._text_search is not None:
            return self._text_search
        if not self._loaded or (self._state.text_search_card is not None and self._text_fault is None):
            raise UnavailableError("The model that finds images by words is being loaded. Try again.", retry_after_s=5)
        if self._text_fault is not None:
            raise UnavailableError(f"Images cannot be found by words: {self._text_fault}", retry_after_s=60)
        run = next((each for each in self._state.progress if each.name == TEXT_SEARCH_MODEL), None)
        if run is not None and run.state in _STATE_ORDER:
            detail = f"The model that finds images by words is not ready. {run.describe()}"
            raise UnavailableError(detail, retry_after_s=30, training=run.as_json())
        raise UnavailableError(
            f"Images are found by words with the model {TEXT_SEARCH_MODEL}, which is not trained here; train it "
            f"with: medpix train {TEXT_SEARCH_MODEL}",
            retry_after_s=60,
        )

    def start(self) -> None:
        """Start to load what is registered and to watch for more; the data are served meanwhile."""
        self._watch = asyncio.create_task(self._watch_registry(), name="model-watch")

    async def stop(self) -> None:
        """Stop watching the registry, and finish accepted requests."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.gather(*(predictor.stop() for predictor in set(self._serving.values())))
        if self._text_search is not None:
            self._text_search.stop()
        # A decoder that hangs is abandoned: no request waits for it any more.
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        for limits in reversed(self._blas):
            limits.restore_original_limits()
        gc.unfreeze()

    def status(self) -> dict[str, Mapping[str, Any]]:
        """Per task: what serves it, or how far its training is."""
        return {task: self._task_status(task) for task in TASKS}

    def not_serving(self) -> list[str]:
        """The tasks whose predictions answer 503 at the moment."""
        return [task for task in TASKS if task not in self._serving or not self._serving[task].healthy]

    def _task_status(self, task: str) -> Mapping[str, Any]:
        progress = self._progress_of(task)
        if self._is_loading(task):
            status: dict[str, Any] = {"state": "loading"}
        elif progress is not None and progress.state != "done":
            status = {"state": progress.state, "training": progress.as_json()}
        else:
            status = {"state": "missing" if self._loaded else "loading"}
        if task in self._serving:
            card = self._serving[task].card
            status |= {"state": "serving", "model": card.name, "version": card.version, "reason": self._reason(task)}
        if task in self._faults:
            status["fault"] = self._faults[task]
        return status

    def _reason(self, task: str) -> str:
        """Why the model that serves a task does."""
        return selection_reason(task, self._serving[task].card, self._state.ranked.get(task, ()), self._selected[task])

    def _is_loading(self, task: str) -> bool:
        """Whether a model of a task is trained, but not served yet."""
        return task not in self._serving and task not in self._faults and bool(self._candidates(task))

    def _progress_of(self, task: str) -> Progress | None:
        """The training run of a task: one under way, else the last."""
        selected = self._selected[task]
        runs = [run for run in self._state.progress if task in run.tasks and (selected is None or run.name == selected)]
        return min(runs, key=lambda run: _STATE_ORDER.get(run.state, len(_STATE_ORDER)), default=None)

    def not_ready(self, task: str) -> UnavailableError:
        """The answer while no model serves a task."""
        progress = self._progress_of(task)
        if not self._loaded or self._is_loading(task):
            return UnavailableError(f"The model for {task} is being loaded. Try again shortly.", retry_after_s=5)
        if task in self._faults:
            return UnavailableError(f"The model for {task} cannot be served: {self._faults[task]}", retry_after_s=60)
        if progress is None or progress.state == "done":
            selected = self._selected[task]
            lack = f"No model for {task} that takes an image is trained yet."
            if selected is not None:
                lack = f"{setting_name(task)} names the model {selected}, which is not trained yet."
            return UnavailableError(f"{lack} Run `medpix train {selected or task}`.", retry_after_s=60)
        wait = 30 if progress.remaining_s is None else max(5, min(120, round(progress.remaining_s)))
        detail = f"The model for {task} is not ready. {progress.describe()}"
        return UnavailableError(detail, retry_after_s=wait, training=progress.as_json())

    async def _watch_registry(self) -> None:
        last = ""
        while True:
            try:
                self._state = await asyncio.to_thread(self._read_registry)
                self._metrics.training(self._state.progress)
                for task in TASKS:
                    await self._serve_best(task)
                await self._serve_text_search()
                self._loaded = True
                last = ""
                if self._replaced:
                    self._replaced = False
                    await asyncio.to_thread(release_replaced)
            except Exception as error:  # whatever it was, the next read may succeed; the models go on serving
                # The rest of what the driver says differs from poll to poll.
                reason = reason_of(error) if isinstance(error, PyMongoError) else repr(error)
                if reason != last:
                    is_outage = isinstance(error, PyMongoError)
                    logger.warning("the model registry cannot be read: %s", reason, exc_info=not is_outage)
                last = reason
            if self.fatal_error is not None:
                logger.critical("this process ends, so that a new one is started: %s", self.fatal_error)
                _end_process()
                return
            await asyncio.sleep(_POLL_S)

    def _read_registry(self) -> RegistryState:
        if self._registry is None:
            from ml.registry.registry import Registry  # noqa: PLC0415 - not at start-up, see the module's docstring

            self._registry = Registry(self._database, self._settings.model_files_dir)
        return RegistryState.read(self._registry, self._database, self._selected)

    async def _serve_best(self, task: str) -> None:
        """Serve a task with the best model that can be loaded; the current one serves until there is a better one."""
        fault = self._state.selection_errors[task]
        current = self._serving.get(task)
        for card in self._candidates(task):
            if current is not None and current.card.version == card.version:
                break
            try:
                predictor = await self._load_and_warm_up(card)
            except UserError as error:
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

    async def _serve_text_search(self) -> None:
        """Serve the search by words with its best model; the current one serves until there is a better one."""
        card, current = self._state.text_search_card, self._text_search
        if card is None or (current is not None and current.card.version == card.version):
            return
        predictor = next((each for each in self._serving.values() if each.card.version == card.version), None)
        try:
            self._text_search = await self._load_or_recall_fault(
                "text-to-image search", card, lambda: self._load_text_search(card, predictor)
            )
        except UserError as error:
            self._text_fault = str(error)
            return
        self._text_fault = None
        logger.info("%s %s serves text-to-image search", card.name, card.version)
        await asyncio.to_thread(freeze_garbage_collector)
        if current is not None:
            current.stop()
            self._replaced = True

    def _candidates(self, task: str) -> list[ModelCard]:
        """The models to try for a task, best first; where a setting selects one, that one alone."""
        selected = self._selected[task]
        return [card for card in self._state.ranked.get(task, ()) if selected in (None, card.name)]

    async def _load_and_warm_up(self, card: ModelCard) -> "Predictor":
        """A predictor that is ready to answer.

        Raises:
            UserError: it cannot be loaded, now or when it was last tried; this is logged once.
        """
        shared = next((each for each in self._serving.values() if each.card.version == card.version), None)
        if shared is not None:
            return shared
        predictor = await self._load_or_recall_fault("predictions", card, lambda: self._load(card))
        predictor.start()
        await self._warm_up(predictor)
        await asyncio.to_thread(freeze_garbage_collector)
        return predictor

    async def _load_or_recall_fault(self, purpose: str, card: ModelCard, load: Callable[[], _Loaded]) -> _Loaded:
        """Load a model in a thread for a purpose, unless that failed less than ``_RETRY_S`` ago.

        Raises:
            UserError: it cannot be loaded, now or when it was last tried; the same message is logged once.
        """
        key = (card.version, purpose)
        tried_at, reason = self._unusable.get(key, (-math.inf, ""))
        if time.monotonic() < tried_at + _RETRY_S:
            raise UserError(reason)
        try:
            loaded = await asyncio.to_thread(load)
        except Exception as error:
            message = str(error) or repr(error)
            if message != reason:
                expected = isinstance(error, (UserError, RuntimeError))
                logger.exception("%s cannot serve %s: %s", card.name, purpose, message, exc_info=not expected)
            self._unusable[key] = (time.monotonic(), message)
            raise UserError(message) from error
        self._unusable.pop(key, None)
        return loaded

    async def _replace(self, task: str, predictor: "Predictor") -> None:
        former = self._serving.get(task)
        self._serving[task] = predictor
        cards = {task: each.card for task, each in self._serving.items()}
        self._metrics.serving({task: (card.name, card.version, card.sha256) for task, card in cards.items()})
        logger.info("%s %s answers %s: %s", predictor.card.name, predictor.card.version, task, self._reason(task))
        if former is not None and former not in self._serving.values():
            await former.stop()
            self._replaced = True

    async def _warm_up(self, predictor: "Predictor") -> None:
        try:
            await predictor.warm_up()
        except Exception:  # real requests may still succeed; the engine reports its own health
            logger.exception("the warm-up of %s failed", predictor.card.name)

    def _load_text_search(self, card: ModelCard, predictor: "Predictor | None") -> "TextSearch":
        """The search with a model that is served already, or that is loaded for it."""
        from app.serving.text_search import TextSearch  # noqa: PLC0415 - not at start-up, see the module's docstring
        from ml.registry.registry import load_model, load_reference  # noqa: PLC0415 - not at start-up, see the module's docstring

        folder = self._settings.model_files_dir
        model = load_model(card, folder) if predictor is None else predictor.model
        reference = load_reference(card, folder) if predictor is None else predictor.reference
        if reference is None:
            raise UserError(f"{card.name} has no embeddings of the images. Train it again: `medpix train {card.name}`.")
        return TextSearch(model, reference)

    def _load(self, card: ModelCard) -> "Predictor":
        from app.serving.backends.devices import decode_threads  # noqa: PLC0415 - not at start-up, see the module's docstring
        from app.serving.predictor import Predictor  # noqa: PLC0415 - not at start-up, see the module's docstring
        from ml.registry.registry import load_model, load_reference  # noqa: PLC0415 - not at start-up, see the module's docstring

        if self._pool is None:
            longest = max(self._settings.request_deadline_s, _MIN_HANG_S)
            self._pool = DaemonThreadPool(decode_threads(self._settings), "decode", max_job_s=longest)
        folder = self._settings.model_files_dir
        model = load_model(card, folder, defer_network=True)
        # BLAS threads spin for milliseconds after each small product and take the cores from the network's own
        # threads. Set again for each model: it may have loaded another BLAS.
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


def _end_process() -> None:
    """Shut down in an orderly way: Compose and systemd start an ended process again, an unhealthy one they leave."""
    signal.raise_signal(signal.SIGTERM)
