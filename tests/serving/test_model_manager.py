"""The watch over the registry: what it serves, and what it says of what it cannot serve."""

import asyncio
import logging
import subprocess
import sys
import threading
import weakref
from typing import Any
from unittest.mock import Mock

import pytest
from pymongo.errors import ServerSelectionTimeoutError

from app.core.exceptions import UserError
from app.core.settings import load_settings
from app.core.telemetry import Metrics
from app.data.schema import TRAINING_RUNS
from app.serving import model_manager as manager_module
from app.serving.model_manager import ModelManager
from app.serving.predictor import Predictor
from app.serving.registry_state import RegistryState
from ml.models.image_model import WEIGHTS_FILE
from ml.registry.model_card import ModelCard
from tests.serving.trained_copies import TrainedCopies, running_manager, until

Document = dict[str, Any]


def _version(server: ModelManager) -> str | None:
    predictor = server.serving.get("modality")
    return None if predictor is None else predictor.card.version


def test_a_document_that_cannot_be_read_does_not_end_the_watch(
    copies: TrainedCopies, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        copies.database[TRAINING_RUNS].insert_one({"_id": "of another version"})
        async with running_manager(copies) as server:
            await until(lambda: "the model registry cannot be read" in caplog.text)
            await asyncio.sleep(0.2)
            assert not server.healthy
            copies.register("compact")
            copies.database[TRAINING_RUNS].delete_many({})
            await until(lambda: server.healthy)
            assert _version(server) == "compact-1"

    asyncio.run(scenario())
    assert caplog.text.count("the model registry cannot be read") == 1


def test_a_card_that_cannot_be_used_is_said_and_does_not_end_the_watch(
    copies: TrainedCopies, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        copies.register("compact", settings={})
        async with running_manager(copies) as server:
            await until(lambda: "fault" in server.status()["modality"])
            assert not server.healthy
            assert "architecture" in server.not_ready("modality").detail
            copies.register("compact", number=2)
            await until(lambda: server.healthy)
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
        async with running_manager(copies) as server:
            await until(lambda: server.healthy)
            assert _version(server) == "second-1"
            assert "it was cut" in server.status()["modality"]["fault"]
            weights.write_bytes(whole)
            await until(lambda: _version(server) == "best-1")
            await until(lambda: "fault" not in server.status()["modality"])
            assert server.healthy

    asyncio.run(scenario())


def test_a_damaged_new_version_does_not_replace_what_answers(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        copies.register("compact")
        copies.register("second", score=0.1)
        async with running_manager(copies) as server:
            await until(lambda: server.healthy)
            (copies.register("compact", number=2) / WEIGHTS_FILE).unlink()
            await until(lambda: "fault" in server.status()["modality"])
            assert "is missing" in server.status()["modality"]["fault"]
            assert server.healthy
            assert _version(server) == "compact-1"
            copies.register("compact", number=3)
            await until(lambda: _version(server) == "compact-3")
            await until(lambda: "fault" not in server.status()["modality"])

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
        async with running_manager(copies, selected=selected) as server:
            await until(lambda: len(server.serving) == 1 and server._loaded)
            assert not server.healthy
            assert task not in server.serving
            detail = server.not_ready(task).detail
            assert [word for word in [*words, "leave it unset"] if word not in detail] == []

    asyncio.run(scenario())


def test_a_setting_that_names_a_model_to_come_waits_for_it(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        copies.register("compact")
        async with running_manager(copies, selected={"model_modality": "resnet50-modality"}) as server:
            await until(lambda: server._loaded)
            assert server.healthy
            assert _version(server) is None
            assert "Run `medpix train resnet50-modality`" in server.not_ready("modality").detail
            copies.register("resnet50-modality")
            await until(lambda: _version(server) == "resnet50-modality-1")

    asyncio.run(scenario())


def test_a_model_of_captions_alone_is_not_said_to_be_loading(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        copies.register("caption-location", of="caption-location")
        run = {"state": "done", "fraction": 1.0, "tasks": ["location"], "updated_at": None, "eta_s": None}
        copies.database[TRAINING_RUNS].insert_one({"_id": "caption-location", **run})
        async with running_manager(copies) as server:
            await until(lambda: server.healthy)
            detail = server.not_ready("location").detail
            assert "takes an image" in detail
            assert "medpix train location" in detail
            copies.database[TRAINING_RUNS].insert_one({"_id": "fused-location", **run, "state": "queued"})
            await until(lambda: "fused-location is queued" in server.not_ready("location").detail)

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
        async with running_manager(copies) as server:
            await until(lambda: server._loaded)
            assert server.status()["modality"]["state"] == "missing"
            monkeypatch.setattr(ModelManager, "_load", load_slowly)
            copies.register("compact")
            await until(loading.is_set)
            assert server.status()["modality"] == {"state": "loading"}
            assert server.not_serving() == ["modality", "location"]
            assert "being loaded" in server.not_ready("modality").detail
            free.set()
            await until(lambda: "modality" not in server.not_serving())

    asyncio.run(scenario())


def test_a_replaced_model_leaves_the_metrics(copies: TrainedCopies) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        copies.register("first")
        async with running_manager(copies, metrics) as server:
            await until(lambda: server.healthy)
            copies.register("first", number=2)
            await until(lambda: _version(server) == "first-2")
            await asyncio.sleep(0.1)
            assert 'medpix_queue_depth{model="first"} 0.0' in metrics.text().decode()
            copies.register("better", score=0.9)
            await until(lambda: _version(server) == "better-1")
            await until(lambda: 'queue_depth{model="first"}' not in metrics.text().decode())
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
        async with running_manager(copies) as server:
            await until(lambda: server.healthy and len(server.serving) == 2)
            network = weakref.ref(server.serving["modality"].model.network)
            copies.register("compact", number=2)
            await until(lambda: _version(server) == "compact-2" and len(set(server.serving.values())) == 1)
            await until(lambda: network() is None)

    asyncio.run(scenario())


def test_a_device_that_failed_for_good_ends_the_process(
    copies: TrainedCopies, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(manager_module, "_end_process", lambda: ended.append(1))

    async def scenario() -> None:
        copies.register("compact")
        async with running_manager(copies) as server:
            await until(lambda: server.healthy)
            assert server.fatal_error is None
            engine = server.serving["modality"].image_encoder.engine
            assert engine is not None
            engine.fatal_error = "CUDA error: uncorrectable ECC error encountered"
            await until(lambda: bool(ended))
            assert str(server.fatal_error).endswith("uncorrectable ECC error encountered")
            await asyncio.sleep(0.2)

    asyncio.run(scenario())
    assert ended == [1], "once"
    assert "this process ends, so that a new one is started: CUDA error: uncorrectable ECC" in caplog.text


def test_when_too_many_decoders_hang_only_a_new_process_can_answer(
    copies: TrainedCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(manager_module, "_end_process", lambda: ended.append(1))

    async def scenario() -> None:
        copies.register("compact")
        async with running_manager(copies) as server:
            await until(lambda: server.healthy)
            assert server._pool is not None
            assert server._pool._max_job_s == max(copies.settings.request_deadline_s, 30)
            monkeypatch.setattr("app.serving.daemon_pool._MAX_HUNG", 0)
            assert not server.healthy
            await until(lambda: bool(ended))
            assert server.fatal_error == "too many decode threads hang"

    asyncio.run(scenario())


def test_a_fault_of_the_database_or_of_a_model_that_repeats_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Mock(version="clip-1", shared_embedding=True, retrieval_score=0.5)
    state = RegistryState([], [card], {}, {"modality": None, "location": None})
    manager = ModelManager(load_settings(), Mock(), Metrics())
    read = Mock(return_value=state)
    load = Mock(side_effect=UserError("embeddings are missing"))

    def refuse_read() -> RegistryState:
        raise ServerSelectionTimeoutError(
            f"connection refused (configured timeouts: 3 s), Timeout: {read.call_count} s"
        )

    async def scenario() -> None:
        manager.start()
        await until(lambda: load.call_count > 2)
        read.side_effect = refuse_read
        count = read.call_count
        await until(lambda: read.call_count > count + 3)
        await manager.stop()

    monkeypatch.setattr(manager_module, "_POLL_S", 0.01)
    monkeypatch.setattr(manager_module, "_RETRY_S", 0.0)
    monkeypatch.setattr(manager, "_read_registry", read)
    monkeypatch.setattr(manager, "_load_text_search", load)
    asyncio.run(scenario())
    assert caplog.text.count("cannot serve text-to-image search: embeddings are missing") == 1
    assert caplog.text.count("the model registry cannot be read: connection refused") == 1
