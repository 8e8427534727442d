"""A model that can be held and broken, and an engine that runs it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from app.serving.batch_tuning import BatchPlan
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


def image_of(value: int) -> Pixels:
    return np.full((1, 2, 2), value, dtype=np.uint8)


def soon(seconds: float = 30) -> float:
    return time.perf_counter() + seconds


@asynccontextmanager
async def running_engine(
    model: Model, *, size: int = 4, max_queue: int = 100, max_run_s: float = 30.0, streams: Sequence[Model] = ()
) -> AsyncIterator[Engine]:
    engine = Engine(
        "fake",
        model,
        plan=BatchPlan(size, 0.01),
        streams=streams,
        probe=image_of(0)[None],
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


def submit(engine: Engine, value: int, seconds: float = 30) -> "asyncio.Task[BatchOutput]":
    return asyncio.create_task(engine.submit(image_of(value), soon(seconds)))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


async def becomes(engine: Engine, *, healthy: bool) -> None:
    await until(lambda: engine.healthy is healthy)
