"""The engine: batches, deadlines, faults of the model, and streams."""

import asyncio
import threading
from collections.abc import Mapping

import pytest
import torch

from app.core.exceptions import DeadlineExceededError, UnavailableError
from app.serving.engine import BatchOutput
from tests.serving.engine_model import POISON, Model, Pixels, becomes, image_of, running_engine, soon, submit, until


def test_everybody_gets_their_own_answer_in_batches_that_form_while_the_model_is_busy() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model) as engine:
            model.free.clear()
            tasks = [submit(engine, value) for value in range(10)]
            await asyncio.sleep(0.05)
            model.free.set()
            answers = await asyncio.gather(*tasks)
        assert [int(answer.outputs["value"]) for answer in answers] == list(range(10))
        assert sum(model.sizes) == 10
        assert max(model.sizes) == 4

    asyncio.run(scenario())


def test_only_the_image_that_breaks_the_model_fails() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model, size=8) as engine:
            model.free.clear()
            tasks = [submit(engine, value) for value in (0, 1, 2, POISON, 4, 5)]
            await asyncio.sleep(0.05)
            model.free.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(answers[3], ValueError)
            good = [answer for answer in answers if isinstance(answer, BatchOutput)]
            assert [int(answer.outputs["value"]) for answer in good] == [0, 1, 2, 4, 5]
            assert engine.healthy

    asyncio.run(scenario())


def test_when_the_batch_task_is_killed_all_are_told_at_once_and_it_comes_back() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model) as engine:
            model.free.clear()
            tasks = [submit(engine, value) for value in range(10)]
            await asyncio.sleep(0.05)
            assert engine._task is not None
            engine._task.cancel()
            async with asyncio.timeout(5):  # the model still hangs: nobody waits for it
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(answer, UnavailableError) for answer in answers)
            assert not engine.healthy
            with pytest.raises(UnavailableError, match="not running"):
                await engine.submit(image_of(1), soon())
            model.free.set()
            await becomes(engine, healthy=True)
            assert int((await engine.submit(image_of(7), soon())).outputs["value"]) == 7

    asyncio.run(scenario())


def test_a_model_that_fails_on_everything_is_not_ready_until_it_runs_again() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model) as engine:
            model.broken = True
            with pytest.raises(RuntimeError, match="device is lost"):
                await engine.submit(image_of(1), soon())
            await becomes(engine, healthy=False)
            await asyncio.sleep(0.2)
            assert not engine.healthy
            model.broken = False
            await becomes(engine, healthy=True)
            assert int((await engine.submit(image_of(7), soon())).outputs["value"]) == 7

    asyncio.run(scenario())


def test_a_run_that_hangs_is_noticed_and_left_behind() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model, max_run_s=0.2) as engine:
            model.free.clear()
            tasks = [submit(engine, value) for value in range(6)]
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(answer, UnavailableError) for answer in answers)
            assert not engine.healthy
            await asyncio.sleep(0.5)  # the probe hangs too, in a second thread, and no third is made
            assert not engine.healthy
            assert sum(thread.name.startswith("model-fake") for thread in threading.enumerate()) == 2
            model.free.set()
            await becomes(engine, healthy=True)
            assert int((await engine.submit(image_of(7), soon())).outputs["value"]) == 7

    asyncio.run(scenario())


def test_a_deadline_ends_the_wait_and_the_image_is_not_run() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model, size=1) as engine:
            model.free.clear()
            first = submit(engine, 1)
            await asyncio.sleep(0.05)
            late = submit(engine, 2, seconds=0.1)
            with pytest.raises(DeadlineExceededError):
                await late
            model.free.set()
            assert int((await first).outputs["value"]) == 1
        assert model.sizes == [1]

    asyncio.run(scenario())


def test_who_leaves_is_not_run() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model, size=1) as engine:
            model.free.clear()
            first, gone, third = (submit(engine, value) for value in (1, 2, 3))
            await asyncio.sleep(0.05)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            model.free.set()
            assert [int(answer.outputs["value"]) for answer in await asyncio.gather(first, third)] == [1, 3]
        assert len(model.sizes) == 2

    asyncio.run(scenario())


def test_a_full_queue_is_said_at_once() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model, size=1, max_queue=3) as engine:
            model.free.clear()
            first = submit(engine, 0)
            await asyncio.sleep(0.05)
            tasks = [first, *(submit(engine, value) for value in range(1, 4))]
            await asyncio.sleep(0.05)
            assert engine.depth == 3
            with pytest.raises(UnavailableError, match="capacity") as caught:
                await engine.submit(image_of(9), soon())
            assert int(caught.value.headers["Retry-After"]) >= 1
            model.free.set()
            assert len(await asyncio.gather(*tasks)) == 4

    asyncio.run(scenario())


def test_stopping_answers_what_was_accepted() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model) as engine:
            model.free.clear()
            tasks = [submit(engine, value) for value in range(20)]
            await asyncio.sleep(0.05)
            stopping = asyncio.create_task(engine.stop())
            await asyncio.sleep(0.05)
            with pytest.raises(UnavailableError):
                await engine.submit(image_of(1), soon())
            model.free.set()
            answers = await asyncio.gather(*tasks)
            await stopping
        assert [int(answer.outputs["value"]) for answer in answers] == list(range(20))

    asyncio.run(scenario())


def test_a_device_that_failed_for_good_is_not_waited_for() -> None:
    class Failed(Model):
        def __call__(self, pixels: Pixels) -> Mapping[str, Pixels]:
            if self.broken:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
            return super().__call__(pixels)

    async def scenario() -> None:
        model = Failed()
        async with running_engine(model) as engine:
            model.broken = True
            with pytest.raises(torch.AcceleratorError):
                await engine.submit(image_of(1), soon())
            for _ in range(1000):
                if engine.fatal_error is not None:
                    break
                await asyncio.sleep(0.01)
            assert engine.fatal_error == "CUDA error: an illegal memory access was encountered"
            assert not engine.healthy

    asyncio.run(scenario())


def test_streams_run_side_by_side_and_share_the_queue() -> None:
    async def main() -> None:
        alone, streams = Model(), (Model(), Model())
        for stream in streams:
            stream.free.clear()
        async with running_engine(alone, streams=streams) as engine:
            assert (await submit(engine, 1)).outputs["value"] == 1
            assert (alone.sizes, [stream.sizes for stream in streams]) == ([1], [[], []]), "one image has all cores"
            first = [submit(engine, value) for value in (2, 3, 4)]
            await asyncio.sleep(0.01)  # they are queued
            await until(lambda: engine.depth == 0)
            rest = [submit(engine, value) for value in range(5, 13)]
            await until(lambda: engine.depth == 8)
            streams[1].free.set()  # the other is stuck: this one goes on
            for value, task in enumerate(rest, start=5):
                assert (await task).outputs["value"] == value
            assert not all(task.done() for task in first)
            streams[0].free.set()
            assert [(await task).outputs["value"] for task in first] == [2, 3, 4]
            assert alone.sizes == [1]
            assert max(streams[1].sizes) == 4, "a stream takes its share of the queue"

    asyncio.run(main())


def test_a_stream_that_hangs_fails_what_waits_and_the_engine_comes_back() -> None:
    async def main() -> None:
        alone, streams = Model(), (Model(), Model())
        streams[0].free.clear()
        async with running_engine(alone, streams=streams, max_run_s=0.2) as engine:
            engine._restart_s = 1.0  # long enough to be seen
            answers = await asyncio.gather(*(submit(engine, value) for value in range(3)), return_exceptions=True)
            assert any(isinstance(answer, UnavailableError) for answer in answers)
            await becomes(engine, healthy=False)
            streams[0].free.set()
            await becomes(engine, healthy=True)
            assert (await submit(engine, 7)).outputs["value"] == 7

    asyncio.run(main())
