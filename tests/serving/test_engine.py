import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.core.exceptions import DeadlineExceededError, UnavailableError
from app.serving.batch_tuning import BatchPlan, warm_up
from app.serving.engine import BatchOutput, Engine

Pixels = NDArray[np.generic]
POISON = 255


class Model:
    """Answers each image with its first pixel; fails on a poisoned one; can be held and broken."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.broken = False
        self.memory = 100
        self.sizes: list[int] = []

    def __call__(self, pixels: Pixels) -> Mapping[str, Pixels]:
        self.free.wait(30)
        self.sizes.append(len(pixels))
        if len(pixels) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.broken:
            raise RuntimeError("the device is lost")
        if (pixels == POISON).any():
            raise ValueError("poison")
        return {"value": pixels[:, 0, 0, 0]}


def _image(value: int) -> Pixels:
    return np.full((1, 2, 2), value, dtype=np.uint8)


def _soon(seconds: float = 30) -> float:
    return time.perf_counter() + seconds


@asynccontextmanager
async def _engine(
    model: Model, *, size: int = 4, max_queue: int = 100, max_run_s: float = 30.0, streams: Sequence[Model] = ()
) -> AsyncIterator[Engine]:
    engine = Engine(
        "fake",
        model,
        plan=BatchPlan(size, 0.01),
        streams=streams,
        probe=_image(0)[None],
        max_queue=max_queue,
        max_run_s=max_run_s,
        restart_s=0.05,
    )
    engine.start()
    try:
        yield engine
    finally:
        for one in (model, *streams):
            one.free.set()
        await engine.stop()


def _submit(engine: Engine, value: int, seconds: float = 30) -> "asyncio.Task[BatchOutput]":
    return asyncio.create_task(engine.submit(_image(value), _soon(seconds)))


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


async def _becomes(engine: Engine, *, healthy: bool) -> None:
    await _until(lambda: engine.healthy is healthy)


def test_everybody_gets_their_own_answer_in_batches_that_form_while_the_model_is_busy() -> None:
    async def scenario() -> None:
        model = Model()
        async with _engine(model) as engine:
            model.free.clear()
            tasks = [_submit(engine, value) for value in range(10)]
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
        async with _engine(model, size=8) as engine:
            model.free.clear()
            tasks = [_submit(engine, value) for value in (0, 1, 2, POISON, 4, 5)]
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
        async with _engine(model) as engine:
            model.free.clear()
            tasks = [_submit(engine, value) for value in range(10)]
            await asyncio.sleep(0.05)
            assert engine._task is not None
            engine._task.cancel()
            async with asyncio.timeout(5):  # the model still hangs: nobody waits for it
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(answer, UnavailableError) for answer in answers)
            assert not engine.healthy
            with pytest.raises(UnavailableError, match="not running"):
                await engine.submit(_image(1), _soon())
            model.free.set()
            await _becomes(engine, healthy=True)
            assert int((await engine.submit(_image(7), _soon())).outputs["value"]) == 7

    asyncio.run(scenario())


def test_a_model_that_fails_on_everything_is_not_ready_until_it_runs_again() -> None:
    async def scenario() -> None:
        model = Model()
        async with _engine(model) as engine:
            model.broken = True
            with pytest.raises(RuntimeError, match="device is lost"):
                await engine.submit(_image(1), _soon())
            await _becomes(engine, healthy=False)
            await asyncio.sleep(0.2)
            assert not engine.healthy
            model.broken = False
            await _becomes(engine, healthy=True)
            assert int((await engine.submit(_image(7), _soon())).outputs["value"]) == 7

    asyncio.run(scenario())


def test_a_run_that_hangs_is_noticed_and_left_behind() -> None:
    async def scenario() -> None:
        model = Model()
        async with _engine(model, max_run_s=0.2) as engine:
            model.free.clear()
            tasks = [_submit(engine, value) for value in range(6)]
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(answer, UnavailableError) for answer in answers)
            assert not engine.healthy
            await asyncio.sleep(0.5)  # the probe hangs too, in a second thread, and no third is made
            assert not engine.healthy
            assert sum(thread.name.startswith("model-fake") for thread in threading.enumerate()) == 2
            model.free.set()
            await _becomes(engine, healthy=True)
            assert int((await engine.submit(_image(7), _soon())).outputs["value"]) == 7

    asyncio.run(scenario())


def test_a_batch_that_does_not_fit_into_memory_is_halved_for_good() -> None:
    async def scenario() -> None:
        model = Model()
        async with _engine(model, size=8) as engine:
            model.memory = 3
            model.free.clear()
            tasks = [_submit(engine, value) for value in range(9)]
            await asyncio.sleep(0.05)
            model.free.set()
            answers = await asyncio.gather(*tasks)
            assert [int(answer.outputs["value"]) for answer in answers] == list(range(9))
            assert engine.healthy
            assert model.sizes.count(8) == model.sizes.count(4) == 1
            model.sizes.clear()
            await asyncio.gather(*(_submit(engine, value) for value in range(9)))
            assert max(model.sizes) == 2

    asyncio.run(scenario())


def test_the_tensors_of_a_run_without_memory_are_freed_before_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.serving.engine.logger.disabled", True)  # pytest keeps log records with their tracebacks

    class Tensors:
        """What a forward allocates."""

    class Holding(Model):
        """Notes at each run how many tensors of earlier runs are still alive."""

        def __init__(self) -> None:
            super().__init__()
            self.tensors: list[weakref.ref[Tensors]] = []
            self.alive: list[int] = []

        def __call__(self, pixels: Pixels) -> Mapping[str, Pixels]:
            self.alive.append(sum(reference() is not None for reference in self.tensors))
            tensors = Tensors()
            self.tensors.append(weakref.ref(tensors))
            return super().__call__(pixels)

    async def scenario() -> None:
        model = Holding()
        async with _engine(model, size=8) as engine:
            model.memory = 1
            model.free.clear()
            tasks = [_submit(engine, value) for value in range(9)]
            await asyncio.sleep(0.05)
            model.free.set()
            await asyncio.gather(*tasks)
            assert [size for size in model.sizes if size > 1] == [8, 4, 2]
            assert set(model.alive) == {0}
            model.alive.clear()
            model.memory = 0  # the probe fails too: the engine is restarted
            answer = await asyncio.gather(_submit(engine, 1), return_exceptions=True)
            assert isinstance(answer[0], UnavailableError)
            await _becomes(engine, healthy=False)
            model.memory = 1
            await _becomes(engine, healthy=True)
            assert len(model.alive) >= 3
            assert set(model.alive) == {0}

    asyncio.run(scenario())


def test_a_deadline_ends_the_wait_and_the_image_is_not_run() -> None:
    async def scenario() -> None:
        model = Model()
        async with _engine(model, size=1) as engine:
            model.free.clear()
            first = _submit(engine, 1)
            await asyncio.sleep(0.05)
            late = _submit(engine, 2, seconds=0.1)
            with pytest.raises(DeadlineExceededError):
                await late
            model.free.set()
            assert int((await first).outputs["value"]) == 1
        assert model.sizes == [1]

    asyncio.run(scenario())


def test_who_leaves_is_not_run() -> None:
    async def scenario() -> None:
        model = Model()
        async with _engine(model, size=1) as engine:
            model.free.clear()
            first, gone, third = (_submit(engine, value) for value in (1, 2, 3))
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
        async with _engine(model, size=1, max_queue=3) as engine:
            model.free.clear()
            first = _submit(engine, 0)
            await asyncio.sleep(0.05)
            tasks = [first, *(_submit(engine, value) for value in range(1, 4))]
            await asyncio.sleep(0.05)
            assert engine.depth == 3
            with pytest.raises(UnavailableError, match="capacity") as caught:
                await engine.submit(_image(9), _soon())
            assert int(caught.value.headers["Retry-After"]) >= 1
            model.free.set()
            assert len(await asyncio.gather(*tasks)) == 4

    asyncio.run(scenario())


def test_stopping_answers_what_was_accepted() -> None:
    async def scenario() -> None:
        model = Model()
        async with _engine(model) as engine:
            model.free.clear()
            tasks = [_submit(engine, value) for value in range(20)]
            await asyncio.sleep(0.05)
            stopping = asyncio.create_task(engine.stop())
            await asyncio.sleep(0.05)
            with pytest.raises(UnavailableError):
                await engine.submit(_image(1), _soon())
            model.free.set()
            answers = await asyncio.gather(*tasks)
            await stopping
        assert [int(answer.outputs["value"]) for answer in answers] == list(range(20))

    asyncio.run(scenario())


@pytest.mark.parametrize(("cost", "chosen"), [(lambda n: 0.004 * n, 1), (lambda n: 0.02 + 0.001 * n, 8)])
def test_the_batch_size_is_the_smallest_that_pays(monkeypatch: pytest.MonkeyPatch, cost: "object", chosen: int) -> None:
    clock = 0.0
    ran: list[int] = []

    def run(pixels: Pixels) -> Mapping[str, Pixels]:
        nonlocal clock
        assert callable(cost)
        clock += cost(len(pixels))
        ran.append(len(pixels))
        return {}

    monkeypatch.setattr("app.serving.batch_tuning.time.perf_counter", lambda: clock)
    plan = warm_up([run], (1, 4, 4), (1, 2, 4, 8))
    assert plan.size == chosen
    assert set(range(1, chosen + 1)) <= set(ran)


def test_a_large_batch_size_is_warmed_up_with_few_runs() -> None:
    sizes: list[int] = []

    def run(pixels: Pixels) -> Mapping[str, Pixels]:
        sizes.append(len(pixels))
        return {}

    assert warm_up([run], (1, 2, 2), (200,)).size == 200
    assert sorted(set(sizes)) == [*range(1, 9), 16, 32, 64, 128, 200]


def test_no_memory_for_one_image_is_a_503_and_passes() -> None:
    async def scenario() -> None:
        model = Model()
        async with _engine(model) as engine:
            model.memory = 0
            with pytest.raises(UnavailableError, match="has no memory left") as caught:
                await engine.submit(_image(1), _soon())
            assert int(caught.value.headers["Retry-After"]) > 0
            await _becomes(engine, healthy=False)
            assert engine.fatal_error is None
            model.memory = 100
            await _becomes(engine, healthy=True)
            assert (await engine.submit(_image(1), _soon())).outputs["value"] == 1

    asyncio.run(scenario())


def test_a_device_that_failed_for_good_is_not_waited_for() -> None:
    class Failed(Model):
        def __call__(self, pixels: Pixels) -> Mapping[str, Pixels]:
            if self.broken:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
            return super().__call__(pixels)

    async def scenario() -> None:
        model = Failed()
        async with _engine(model) as engine:
            model.broken = True
            with pytest.raises(torch.AcceleratorError):
                await engine.submit(_image(1), _soon())
            for _ in range(1000):
                if engine.fatal_error is not None:
                    break
                await asyncio.sleep(0.01)
            assert engine.fatal_error == "CUDA error: an illegal memory access was encountered"
            assert not engine.healthy

    asyncio.run(scenario())


def test_sizes_without_memory_are_no_candidates() -> None:
    model = Model()
    model.memory = 4
    assert warm_up([model], (1, 2, 2), (1, 2, 4, 8, 16)).size <= 4
    assert max(model.sizes) == 8, "what is larger than one that failed is not tried"
    model.memory = 0
    with pytest.raises(torch.OutOfMemoryError):
        warm_up([model], (1, 2, 2), (1, 2))


def test_streams_run_side_by_side_and_share_the_queue() -> None:
    async def main() -> None:
        alone, streams = Model(), (Model(), Model())
        for stream in streams:
            stream.free.clear()
        async with _engine(alone, streams=streams) as engine:
            assert (await _submit(engine, 1)).outputs["value"] == 1
            assert (alone.sizes, [stream.sizes for stream in streams]) == ([1], [[], []]), "one image has all cores"
            first = [_submit(engine, value) for value in (2, 3, 4)]
            await asyncio.sleep(0.01)  # they are queued
            await _until(lambda: engine.depth == 0)
            rest = [_submit(engine, value) for value in range(5, 13)]
            await _until(lambda: engine.depth == 8)
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
        async with _engine(alone, streams=streams, max_run_s=0.2) as engine:
            engine._restart_s = 1.0  # long enough to be seen
            answers = await asyncio.gather(*(_submit(engine, value) for value in range(3)), return_exceptions=True)
            assert any(isinstance(answer, UnavailableError) for answer in answers)
            await _becomes(engine, healthy=False)
            streams[0].free.set()
            await _becomes(engine, healthy=True)
            assert (await _submit(engine, 7)).outputs["value"] == 7

    asyncio.run(main())
