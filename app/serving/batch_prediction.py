"""Predicts the files of an archive with the pipeline of the prediction routes."""

import asyncio
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
from threadpoolctl import threadpool_limits

from app.core.cpus import usable_cpus
from app.core.exceptions import ApiError, ContentTooLargeError, UnavailableError, UnprocessableError, UserError
from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.serving.daemon_pool import DaemonThreadPool
from app.serving.decode.dicom_header import is_dicom
from app.serving.model_selection import selection_error
from app.serving.precision import LoadRecords
from app.serving.prediction_cache import PredictionCache
from app.serving.prediction_context import PredictionContext
from app.serving.predictor import Predictor
from ml.registry.model_card import ModelCard
from ml.registry.registry import Registry, RegistryError, is_complete, load_model, load_reference

SCHEMA: Final = pa.schema(
    [
        ("file", pa.string()),
        ("task", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float64()),
        ("decision", pa.string()),
        ("inputs_used", pa.string()),
        ("location_category", pa.string()),
        ("probabilities", pa.string()),  # a JSON object, so that CSV holds it too
        ("model", pa.string()),
        ("model_version", pa.string()),
        ("model_sha256", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("header_modality", pa.string()),
        ("notes", pa.string()),
        ("error", pa.string()),
    ]
)
_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})
# Enough of a file without a suffix to tell whether it is DICOM, as archives of scanners name them.
_HEADER_BYTES: Final = 1024
_IN_FLIGHT: Final = 64
_DEADLINE_S: Final = 300.0
_RETRY_S: Final = 2.0


class BatchPredictionError(UserError):
    """The run cannot start or go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image of an archive.

    Attributes:
        name: path below the archive's folder, with slashes; names the file in the results.
        path: of the file.
        caption: that belongs to it; None without one.
    """

    name: str
    path: str
    caption: str | None = None


def find_images(source: Path) -> list[ImageFile]:
    """The PNG, JPEG and DICOM files of a folder and those below it, by name; a file is taken whatever its name.

    Files without a suffix are taken where they begin as DICOM does; hidden files and DICOMDIR are left out.

    Raises:
        BatchPredictionError: there is no such file or folder, it cannot be read, or it holds no image.
    """
    if source.is_file():
        return [ImageFile(source.name, str(source))]
    if not source.is_dir():
        raise BatchPredictionError(f"{source}: there is no such file or folder.")

    def refuse(error: OSError) -> None:
        raise BatchPredictionError(f"{error.filename} cannot be read: {error.strerror}.") from error

    images = []
    for folder, folders, names in os.walk(source, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in _SUFFIXES or _is_dicom_without_suffix(path):
                name = os.fsencode(path.relative_to(source).as_posix()).decode(errors="replace")
                images.append(ImageFile(name, str(path)))
    if not images:
        raise BatchPredictionError(
            f"{source} holds no image: neither it nor a folder below it has a file in {', '.join(sorted(_SUFFIXES))}."
        )
    return sorted(images, key=lambda image: image.name)


def _is_dicom_without_suffix(path: Path) -> bool:
    if path.suffix or path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(_HEADER_BYTES))
    except OSError:
        return False


def select_cards(registry: Registry, settings: Settings, tasks: Sequence[str]) -> dict[str, ModelCard]:
    """The models that answer some tasks: those that the API would serve.

    Raises:
        BatchPredictionError: none is trained for a task, or the setting names one that cannot answer it.
    """
    cards = list(registry.cards())
    chosen = {}
    for task in tasks:
        selected = settings.selected_models[task]
        if (fault := selection_error(task, cards, selected)) is not None:
            raise BatchPredictionError(fault)
        usable = [
            card
            for card in registry.ranked(task, cards)
            if selected in (None, card.name) and is_complete(card, registry.models_dir)
        ]
        if not usable:
            raise BatchPredictionError(
                f"No model for {task} that takes an image is trained in {registry.models_dir}. "
                f"Run `medpix train {selected or task}`, or give --task to leave the other task out."
            )
        chosen[task] = usable[0]
    return chosen


class BatchPredictor:
    """Predicts files in batches with one model per task; use it as a context manager.

    Args:
        cards: the model of each task.
        settings: limits, device, batch size, and where the model files are.
        dev: reads the dev split, for the choice of the precision on a GPU; None where there is none.

    Raises:
        BatchPredictionError: a model cannot be loaded.
    """

    def __init__(self, cards: Mapping[str, ModelCard], settings: Settings, dev: LoadRecords | None = None) -> None:
        self._settings = settings
        self._pool = DaemonThreadPool(settings.decode_threads or usable_cpus(), "decode", max_job_s=_DEADLINE_S)
        own = settings.model_copy(update={"cache_entries": 0, "max_queue": 4 * _IN_FLIGHT})
        cache: PredictionCache[PredictionContext] = PredictionCache(0)
        folder, metrics = settings.model_files_dir, Metrics()
        loaded: dict[str, Predictor] = {}
        for card in cards.values():
            try:
                if card.version not in loaded:
                    model, reference = load_model(card, folder), load_reference(card, folder)
                    # Threads of BLAS spin after each small product and take the cores from the network's own.
                    threadpool_limits(1, user_api="blas")
                    loaded[card.version] = Predictor(model, reference, own, self._pool, cache, metrics, dev)
            except RegistryError as error:
                raise BatchPredictionError(str(error)) from error
        self._predictors = {task: loaded[card.version] for task, card in cards.items()}
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._stop())
        self._runner.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def predict(self, images: Iterable[ImageFile]) -> pa.Table:
        """Predict files; one that cannot be predicted has its error in its rows.

        Returns:
            A row per file and task, of ``SCHEMA``, in the order of the files.

        Raises:
            BatchPredictionError: the model or its device failed, whatever the file.
        """
        rows = self._runner.run(self._predict(images))
        return pa.Table.from_pylist(rows, SCHEMA)

    async def _start(self) -> None:
        for predictor in set(self._predictors.values()):
            predictor.start()
            await predictor.warm_up()

    async def _stop(self) -> None:
        await asyncio.gather(*(predictor.stop() for predictor in set(self._predictors.values())))

    async def _predict(self, images: Iterable[ImageFile]) -> list[dict[str, Any]]:
        slots = asyncio.Semaphore(_IN_FLIGHT)  # bounds the files in memory

        async def rows_of(image: ImageFile) -> list[dict[str, Any]]:
            async with slots:
                data = await asyncio.get_running_loop().run_in_executor(self._pool, self._read, image)
                return [await self._row(image, data, task) for task in self._predictors]

        return [row for rows in await asyncio.gather(*map(rows_of, images)) for row in rows]

    def _read(self, image: ImageFile) -> bytes | ApiError:
        try:
            size, limit = Path(image.path).stat().st_size, self._settings.max_image_bytes
            if size > limit:
                return ContentTooLargeError(
                    f"The image has {size / 1024**2:.1f} MiB; the limit is {limit / 1024**2:.1f} MiB "
                    "(MEDPIX_MAX_IMAGE_BYTES)."
                )
            return Path(image.path).read_bytes()
        except OSError as error:
            return UnprocessableError(f"The file cannot be read: {error.strerror}.")

    async def _row(self, image: ImageFile, data: bytes | ApiError, task: str) -> dict[str, Any]:
        try:
            return _described(image, await self._predicted(image, data, task))
        except BatchPredictionError:
            raise
        except ApiError as error:
            return {"file": image.name, "task": task, "error": error.detail}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the error of this file alone
            return {"file": image.name, "task": task, "error": f"{type(error).__name__}: {error}"}

    async def _predicted(self, image: ImageFile, data: bytes | ApiError, task: str) -> PredictionContext:
        if isinstance(data, ApiError):
            raise data
        caption = image.caption if task == "location" else None
        longest = self._settings.max_caption_chars
        if caption is not None and len(caption) > longest:
            raise UnprocessableError(f"The caption has {len(caption)} characters; the limit is {longest}.")
        predictor = self._predictors[task]
        deadline = time.perf_counter() + _DEADLINE_S
        while True:
            context = PredictionContext(data, caption, task, deadline)
            try:
                await predictor.predict(context)
            except UnavailableError as error:  # a fault of the model or its device, not of the file
                if predictor.fatal_error is not None or time.perf_counter() + _RETRY_S > deadline:
                    raise BatchPredictionError(
                        f"{predictor.card.name} stopped: {predictor.fatal_error or error.detail} "
                        "Start the command again to go on."
                    ) from error
                await asyncio.sleep(_RETRY_S)
            else:
                return context


def _described(image: ImageFile, context: PredictionContext) -> dict[str, Any]:
    """The row of a prediction."""
    probabilities = context.probabilities[context.task]
    ranked = sorted(probabilities.items(), key=lambda pair: -pair[1])
    region = context.probabilities.get("location_category") if context.task == "location" else None
    return {
        "file": image.name,
        "task": context.task,
        "label": context.label,
        "probability": probabilities[context.label],
        "decision": "confident" if context.confident else "uncertain",
        "inputs_used": " ".join(context.inputs_used),
        "location_category": max(region, key=region.__getitem__) if region else None,
        "probabilities": json.dumps({label: round(value, 6) for label, value in ranked}),
        "model": context.card.name,
        "model_version": context.card.version,
        "model_sha256": context.card.sha256,
        "sha256": context.info.sha256,
        "width": context.info.width,
        "height": context.info.height,
        "header_modality": context.info.header_modality,
        "notes": " ".join(context.notes) or None,
    }


def predict_files(
    images: Iterable[ImageFile],
    cards: Mapping[str, ModelCard],
    settings: Settings,
    *,
    dev: LoadRecords | None = None,
    part_files: int = 128,
) -> Iterator[pa.Table]:
    """Predict files on this machine, a part after the other.

    Args:
        images: of the archive.
        cards: the model of each task.
        settings: limits, device, batch size, and where the model files are.
        dev: reads the dev split, for the choice of the precision on a GPU; None where there is none.
        part_files: files per table.

    Yields:
        Tables of ``SCHEMA``.

    Raises:
        BatchPredictionError: a model cannot be loaded, or its device failed.
    """
    remaining = iter(images)
    with BatchPredictor(cards, settings, dev) as predictor:
        while part := list(itertools.islice(remaining, part_files)):
            yield predictor.predict(part)
