"""The watch over the registry: what it serves, and what it says of what it cannot serve."""

import asyncio
import logging
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from app.core.exceptions import UnavailableError
from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.data.schema import MODELS, TRAINING_RUNS
from app.serving import model_manager as manager_module
from app.serving import predictor as predictor_module
from app.serving.model_manager import ModelManager
from app.serving.prediction_context import PredictionContext
from app.serving.predictor import Predictor
from ml.models.image_model import WEIGHTS_FILE
from ml.registry.model_card import ModelCard

Document = dict[str, Any]


class TrainedCopies:
    """A registry of the test's own with copies of trained models."""

    def __init__(
        self, database: Database[Document], trained: Database[Document], source: Path, settings: Settings
    ) -> None:
        self.database, self._trained, self._source = database, trained, source
        self.settings = settings

    def register(self, name: str, *, of: str = "compact", number: int = 1, score: float = 0.5, **changes: Any) -> Path:
        """Register a copy of a trained model; returns its folder."""
        version = f"{name}-{number}"
        document = self._trained[MODELS].find_one({"_id": of})
        assert document is not None
        folder = self.settings.model_files_dir / name / version
        shutil.copytree(self._source / of / document["version"], folder)
        document["metrics"]["dev"] = {task: {"accuracy": score} for task in document["tasks"]}
        changed = document | {"_id": name, "name": name, "version": version} | changes
        self.database[MODELS].replace_one({"_id": name}, changed, upsert=True)
        return folder


@pytest.fixture
def copies(
    database: Database[Document],
    ml_database: Database[Document],
    models_dir: Path,
    predict_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> TrainedCopies:
    monkeypatch.setattr(manager_module, "_POLL_S", 0.05)
    monkeypatch.setattr(manager_module, "_RETRY_S", 0.2)
    # The home holds what was converted before: that takes seconds.
    settings = predict_settings.model_copy(update={"models_dir": tmp_path, "max_batch": 1})
    return TrainedCopies(database, ml_database, models_dir, settings)


@asynccontextmanager
async def _serving(
    copies: TrainedCopies, metrics: Metrics | None = None, selected: Mapping[str, str] | None = None
) -> AsyncIterator[ModelManager]:
    settings = copies.settings.model_copy(update=selected)
    server = ModelManager(settings, copies.database, metrics or Metrics())
    server.start()
    try:
        yield server
    finally:
        await server.stop()


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen within a minute")


def _version(server: ModelManager) -> str | None:
    predictor = server.serving.get("modality")
    return None if predictor is None else predictor.card.version


def test_a_document_that_cannot_be_read_does_not_end_the_watch(
    copies: TrainedCopies, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        copies.database[TRAINING_RUNS].insert_one({"_id": "of another version"})
        async with _serving(copies) as server:
            await _until(lambda: "reading the model registry failed" in caplog.text)
            await asyncio.sleep(0.2)
            assert not server.healthy
            copies.register("compact")
            copies.database[TRAINING_RUNS].delete_many({})
            await _until(lambda: server.healthy)
            assert _version(server) == "compact-1"

    asyncio.run(scenario())
    assert caplog.text.count("reading the model registry failed") == 1


def test_a_card_that_cannot_be_used_is_said_and_does_not_end_the_watch(
    copies: TrainedCopies, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        copies.register("compact", settings={})
        async with _serving(copies) as server:
            await _until(lambda: "fault" in server.status()["modality"])
            assert not server.healthy
            assert "architecture" in server.not_ready("modality").detail
            copies.register("compact", number=2)
            await _until(lambda: server.healthy)
            assert _version(server) == "compact-2"
            assert "fault" not in server.status()["modality"]

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert caplog.text.count("train compact again") == 1


def test_where_the_best_is_damaged_the_next_best_answers(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        weights = copies.register("best", score=0.9) / WEIGHTS_FILE
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-9])
        copies.register("second", score=0.6)
        async with _serving(copies) as server:
            await _until(lambda: server.healthy)
            assert _version(server) == "second-1"
            assert "it was cut" in server.status()["modality"]["fault"]
            weights.write_bytes(whole)
            await _until(lambda: _version(server) == "best-1")
            await _until(lambda: "fault" not in server.status()["modality"])
            assert server.healthy

    asyncio.run(scenario())


def test_a_damaged_new_version_does_not_replace_what_answers(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        copies.register("compact")
        copies.register("second", score=0.1)
        async with _serving(copies) as server:
            await _until(lambda: server.healthy)
            (copies.register("compact", number=2) / WEIGHTS_FILE).unlink()
            await _until(lambda: "fault" in server.status()["modality"])
            assert "is missing" in server.status()["modality"]["fault"]
            assert server.healthy
            assert _version(server) == "compact-1"
            copies.register("compact", number=3)
            await _until(lambda: _version(server) == "compact-3")
            await _until(lambda: "fault" not in server.status()["modality"])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("selected", "task", "words"),
    [
        ({"model_modality": "compakt"}, "modality", ["MEDPIX_MODEL_MODALITY=compakt", "no such model", "compact"]),
        ({"model_modality": "clip-location"}, "modality", ["does not answer modality", "compact"]),
        ({"model_location": "caption-location"}, "location", ["takes no image", "fused-location"]),
    ],
)
def test_a_setting_that_names_no_usable_model_is_a_fault_that_says_what_to_do(
    copies: TrainedCopies, selected: dict[str, str], task: str, words: list[str]
) -> None:
    async def scenario() -> None:
        for name in ("compact", "caption-location", "fused-location"):
            copies.register(name, of=name)
        async with _serving(copies, selected=selected) as server:
            await _until(lambda: len(server.serving) == 1 and server._loaded)
            assert not server.healthy
            assert task not in server.serving
            detail = server.not_ready(task).detail
            assert [word for word in [*words, "leave it unset"] if word not in detail] == []

    asyncio.run(scenario())


def test_a_setting_that_names_a_model_to_come_waits_for_it(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        copies.register("compact")
        async with _serving(copies, selected={"model_modality": "resnet50-modality"}) as server:
            await _until(lambda: server._loaded)
            assert server.healthy
            assert _version(server) is None
            assert "Run `medpix train resnet50-modality`" in server.not_ready("modality").detail
            copies.register("resnet50-modality")
            await _until(lambda: _version(server) == "resnet50-modality-1")

    asyncio.run(scenario())


def test_a_model_of_captions_alone_is_not_said_to_be_loading(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        copies.register("caption-location", of="caption-location")
        run = {"state": "done", "fraction": 1.0, "tasks": ["location"], "updated_at": None, "eta_s": None}
        copies.database[TRAINING_RUNS].insert_one({"_id": "caption-location", **run})
        async with _serving(copies) as server:
            await _until(lambda: server.healthy)
            detail = server.not_ready("location").detail
            assert "takes an image" in detail
            assert "medpix train location" in detail
            copies.database[TRAINING_RUNS].insert_one({"_id": "fused-location", **run, "state": "queued"})
            await _until(lambda: "fused-location is queued" in server.not_ready("location").detail)

    asyncio.run(scenario())


def test_a_trained_model_that_is_being_loaded_is_not_missing(
    copies: TrainedCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loading, free = ModelManager._load, threading.Event(), threading.Event()

    def load_slowly(manager: ModelManager, card: ModelCard) -> Predictor:
        loading.set()
        free.wait(30)
        return load(manager, card)

    async def scenario() -> None:
        async with _serving(copies) as server:
            await _until(lambda: server._loaded)
            assert server.status()["modality"]["state"] == "missing"
            monkeypatch.setattr(ModelManager, "_load", load_slowly)
            copies.register("compact")
            await _until(loading.is_set)
            assert server.status()["modality"] == {"state": "loading"}
            assert server.not_serving() == ["modality", "location"]
            assert "being loaded" in server.not_ready("modality").detail
            free.set()
            await _until(lambda: "modality" not in server.not_serving())

    asyncio.run(scenario())


def test_a_replaced_model_leaves_the_metrics(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        copies.register("first")
        async with _serving(copies, metrics) as server:
            await _until(lambda: server.healthy)
            copies.register("first", number=2)
            await _until(lambda: _version(server) == "first-2")
            await asyncio.sleep(0.1)
            assert 'medpix_queue_depth{model="first"} 0.0' in metrics.text().decode()
            copies.register("better", score=0.9)
            await _until(lambda: _version(server) == "better-1")
            await _until(lambda: 'queue_depth{model="first"}' not in metrics.text().decode())
            assert 'medpix_queue_depth{model="better"} 0.0' in metrics.text().decode()

    asyncio.run(scenario())


def test_the_application_is_made_without_the_libraries_of_the_models() -> None:
    """They take seconds to import, in which the data can be served already."""
    heavy = "torch, openvino, sklearn, scipy, pandas, pydicom"
    code = f"import sys, app.api.factory; print(*sorted(set('{heavy}'.split(', ')) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_replaced_model_is_freed(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        copies.register("compact")
        async with _serving(copies) as server:
            await _until(lambda: server.healthy and len(server.serving) == 2)
            network = weakref.ref(server.serving["modality"].model.network)
            copies.register("compact", number=2)
            await _until(lambda: _version(server) == "compact-2" and len(set(server.serving.values())) == 1)
            await _until(lambda: network() is None)

    asyncio.run(scenario())


def test_a_device_that_failed_for_good_ends_the_process(
    copies: TrainedCopies, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(manager_module, "_end_process", lambda: ended.append(1))

    async def scenario() -> None:
        copies.register("compact")
        async with _serving(copies) as server:
            await _until(lambda: server.healthy)
            assert server.fatal_error is None
            engine = server.serving["modality"].image_encoder.engine
            assert engine is not None
            engine.fatal_error = "CUDA error: uncorrectable ECC error encountered"
            await _until(lambda: bool(ended))
            assert str(server.fatal_error).endswith("uncorrectable ECC error encountered")
            await asyncio.sleep(0.2)

    asyncio.run(scenario())
    assert ended == [1], "once"
    assert "this process ends, so that a new one is started: CUDA error: uncorrectable ECC" in caplog.text


def test_a_model_is_stopped_when_the_longest_request_has_ended(
    copies: TrainedCopies, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_module, "_MIN_DRAIN_S", 0.05)

    async def scenario() -> None:
        copies.register("compact")
        async with _serving(copies) as server:
            await _until(lambda: server.healthy)
            predictor = server.serving["modality"]
            with predictor.admission.admit(30):
                stopping = asyncio.create_task(predictor.stop())
                await asyncio.sleep(0.2)
                context = PredictionContext(png, task="modality", deadline=time.perf_counter() + 30)
                await predictor.predict(context)
                assert context.label
            await stopping

    asyncio.run(scenario())


def test_what_outlasts_the_drain_is_answered_if_the_network_has_answered(
    copies: TrainedCopies, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    postprocess, entered, free = Predictor.postprocess, threading.Event(), threading.Event()

    def slowly(predictor: Predictor, context: PredictionContext) -> None:
        entered.set()
        free.wait(30)
        postprocess(predictor, context)

    async def scenario() -> None:
        copies.register("compact")
        async with _serving(copies) as server:
            await _until(lambda: server.healthy)
            predictor = server.serving["modality"]
            predictor._drain_s = 0.1
            monkeypatch.setattr(Predictor, "postprocess", slowly)
            with predictor.admission.admit(30, 2):
                contexts = [
                    PredictionContext(png, None, task, time.perf_counter() + 30) for task in predictor.model.tasks
                ]
                jobs = [asyncio.create_task(predictor.predict(context)) for context in contexts[:2]]
                await _until(lambda: entered.is_set() and predictor._postprocessing._jobs.qsize() == 1)
                await predictor.stop()
                free.set()
                await asyncio.gather(*jobs)
            context = PredictionContext(png + b"!", None, "modality", time.perf_counter() + 30)
            with pytest.raises(UnavailableError):
                await predictor.predict(context)

    asyncio.run(scenario())


def test_when_too_many_decoders_hang_only_a_new_process_can_answer(
    copies: TrainedCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(manager_module, "_end_process", lambda: ended.append(1))

    async def scenario() -> None:
        copies.register("compact")
        async with _serving(copies) as server:
            await _until(lambda: server.healthy)
            assert server._pool is not None
            assert server._pool._max_job_s == max(copies.settings.request_deadline_s, 30)
            monkeypatch.setattr("app.serving.daemon_pool._MAX_HUNG", 0)
            assert not server.healthy
            await _until(lambda: bool(ended))
            assert server.fatal_error == "too many decode threads hang"

    asyncio.run(scenario())


def test_the_cache_keeps_no_caption(copies: TrainedCopies, png: bytes) -> None:
    async def ask(predictor: Predictor, caption: str | None) -> PredictionContext:
        context = PredictionContext(png, caption, "location", time.perf_counter() + 30)
        await predictor.predict(context)
        return context

    async def scenario() -> None:
        copies.register("fused-location", of="fused-location")
        async with _serving(copies) as server:
            await _until(lambda: server.healthy)
            predictor = server.serving["location"]
            caption = "Axial CT of the chest \ud800" * 200
            contexts = [await ask(predictor, each) for each in (caption, caption, "Sagittal MR of the knee", None)]
            assert [context.cached for context in contexts] == [False, True, False, False]
            assert contexts[0].notes == contexts[1].notes
            assert len(server._cache) == 3
            for key, kept in server._cache._results.items():
                assert all(len(str(part)) <= 64 for part in key)
                assert kept.caption is None

    asyncio.run(scenario())
