"""A predictor: what it answers while it stops, and what it keeps of an answer."""

import asyncio
import threading
import time
from typing import Any

import pytest

from app.core.exceptions import UnavailableError
from app.serving import predictor as predictor_module
from app.serving.prediction_context import PredictionContext
from app.serving.predictor import Predictor
from tests.serving.trained_copies import TrainedCopies, running_manager, until

Document = dict[str, Any]


def test_a_model_is_stopped_when_the_longest_request_has_ended(
    copies: TrainedCopies, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_module, "_MIN_DRAIN_S", 0.05)

    async def scenario() -> None:
        copies.register("compact")
        async with running_manager(copies) as server:
            await until(lambda: server.healthy)
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
        async with running_manager(copies) as server:
            await until(lambda: server.healthy)
            predictor = server.serving["modality"]
            predictor._drain_s = 0.1
            monkeypatch.setattr(Predictor, "postprocess", slowly)
            with predictor.admission.admit(30, 2):
                contexts = [
                    PredictionContext(png, None, task, time.perf_counter() + 30) for task in predictor.model.tasks
                ]
                jobs = [asyncio.create_task(predictor.predict(context)) for context in contexts[:2]]
                await until(lambda: entered.is_set() and predictor._postprocessing._jobs.qsize() == 1)
                await predictor.stop()
                free.set()
                await asyncio.gather(*jobs)
            context = PredictionContext(png + b"!", None, "modality", time.perf_counter() + 30)
            with pytest.raises(UnavailableError):
                await predictor.predict(context)

    asyncio.run(scenario())


def test_the_cache_keeps_no_caption(copies: TrainedCopies, png: bytes) -> None:
    async def ask(predictor: Predictor, caption: str | None) -> PredictionContext:
        context = PredictionContext(png, caption, "location", time.perf_counter() + 30)
        await predictor.predict(context)
        return context

    async def scenario() -> None:
        copies.register("fused-location", of="fused-location")
        async with running_manager(copies) as server:
            await until(lambda: server.healthy)
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
