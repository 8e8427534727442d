"""Batch sizes: which one is chosen, and what happens where the memory is too small for it."""

import asyncio
import weakref
from collections.abc import Mapping

import pytest
import torch

from app.core.exceptions import UnavailableError
from app.serving.batch_tuning import warm_up
from tests.serving.engine_model import Model, Pixels, becomes, image_of, running_engine, soon, submit


def test_a_batch_that_does_not_fit_into_memory_is_halved_for_good() -> None:
    async def scenario() -> None:
        model = Model()
        async with running_engine(model, size=8) as engine:
            model.memory = 3
            model.free.clear()
            tasks = [submit(engine, value) for value in range(9)]
            await asyncio.sleep(0.05)
            model.free.set()
            answers = await asyncio.gather(*tasks)
            assert [int(answer.outputs["value"]) for answer in answers] == list(range(9))
            assert engine.healthy
            assert model.sizes.count(8) == model.sizes.count(4) == 1
            model.sizes.clear()
            await asyncio.gather(*(submit(engine, value) for value in range(9)))
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
        async with running_engine(model, size=8) as engine:
            model.memory = 1
            model.free.clear()
            tasks = [submit(engine, value) for value in range(9)]
            await asyncio.sleep(0.05)
            model.free.set()
            await asyncio.gather(*tasks)
            assert [size for size in model.sizes if size > 1] == [8, 4, 2]
            assert set(model.alive) == {0}
            model.alive.clear()
            model.memory = 0  # the probe fails too: the engine is restarted
            answer = await asyncio.gather(submit(engine, 1), return_exceptions=True)
            assert isinstance(answer[0], UnavailableError)
            await becomes(engine, healthy=False)
            model.memory = 1
            await becomes(engine, healthy=True)
            assert len(model.alive) >= 3
            assert set(model.alive) == {0}

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
        async with running_engine(model) as engine:
            model.memory = 0
            with pytest.raises(UnavailableError, match="has no memory left") as caught:
                await engine.submit(image_of(1), soon())
            assert int(caught.value.headers["Retry-After"]) > 0
            await becomes(engine, healthy=False)
            assert engine.fatal_error is None
            model.memory = 100
            await becomes(engine, healthy=True)
            assert (await engine.submit(image_of(1), soon())).outputs["value"] == 1

    asyncio.run(scenario())


def test_sizes_without_memory_are_no_candidates() -> None:
    model = Model()
    model.memory = 4
    assert warm_up([model], (1, 2, 2), (1, 2, 4, 8, 16)).size <= 4
    assert max(model.sizes) == 8, "what is larger than one that failed is not tried"
    model.memory = 0
    with pytest.raises(torch.OutOfMemoryError):
        warm_up([model], (1, 2, 2), (1, 2))
