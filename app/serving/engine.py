"""Dynamic batching: workers share one queue; a batch forms while the device runs the one before.

There is no batching delay: an idle engine runs an image at once, and what arrives meanwhile is the next batch.
"""

import asyncio
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.exceptions import DeadlineExceededError, UnavailableError
from app.serving.admission import LatencyEstimator
from app.serving.backends.base import Run, is_fatal, is_out_of_memory
from app.serving.batch_tuning import BatchPlan
from app.serving.daemon_pool import DaemonThreadPool

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Outputs = Mapping[str, Array]

_MAX_RESTART_S: Final = 30.0
_NO_MEMORY_RETRY_S: Final = 5


class _HungError(Exception):
    """A run does not end."""


@dataclass(slots=True, eq=False)
class _Item:
    """One queued image."""

    pixels: Array
    deadline: float
    future: asyncio.Future["BatchOutput"]
    queued_at: float = field(default_factory=time.perf_counter)


class _Worker:
    """Runs one batch at a time, in a thread of its own."""

    def __init__(self, name: str, run: Run) -> None:
        self.run = run
        self.batch: Sequence[_Item] = ()
        self._name = name
        self._thread = DaemonThreadPool(1, name)

    async def call(self, run: Run, pixels: Array, limit_s: float | None) -> Outputs:
        """Run a batch; one that outlasts the limit is abandoned with its thread."""
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await asyncio.get_running_loop().run_in_executor(self._thread, run, pixels)
        except TimeoutError:
            if not limit.expired():
                raise
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = DaemonThreadPool(1, self._name)
            raise _HungError(f"a run has not ended after {limit_s:g} s") from None

    def shutdown(self) -> None:
        """End the thread."""
        self._thread.shutdown()


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """The network's outputs for one image.

    Attributes:
        outputs: one row of every output of the network.
        queue_s: time between submission and the start of its batch, in seconds.
        run_s: time of the run, in seconds.
    """

    outputs: Outputs
    queue_s: float
    run_s: float


class Engine:
    """Runs one network for many concurrent callers.

    When the batch loop dies, a run hangs, or the model fails on the probe, all queued requests fail at once, and
    the loop restarts as soon as the model runs again.

    Args:
        name: of the model, for log lines.
        run: a batch of images (N, C, H, W) to outputs with N rows each; called by one thread at a time, unless a run
            was abandoned because it hangs.
        plan: batch size, and the latency to start with.
        streams: runs of the same network on a part of the cores each, called concurrently, so that none waits for
            another at the end of every layer; ``run`` then has an image that is alone. Without them ``run`` has all.
        probe: a batch (1, C, H, W) that the model can take.
        max_queue: largest number of queued images; one more is refused.
        max_run_s: a run that takes longer counts as hung: the engine is dead then, and its thread is abandoned.
        restart_s: delay before a dead engine is restarted; doubles with every failure.
        on_batch: called with the size of every batch that ran.

    Attributes:
        fatal_error: what the device said when it failed for good; None while it can be hoped to come back. After such
            an error (an illegal access, a failed memory check) no call of this process to the device succeeds.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        *,
        plan: BatchPlan,
        streams: Sequence[Run] = (),
        probe: Array,
        max_queue: int,
        max_run_s: float,
        restart_s: float = 1.0,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._name = name
        self._run = run
        self._max_batch = plan.size
        self._probe = probe
        self._max_queue = max_queue
        self._max_run_s = max_run_s
        self._restart_s = restart_s
        self._on_batch = on_batch
        self._queue: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._workers = [_Worker(f"model-{name}", stream) for stream in streams or (run,)]
        self._task: asyncio.Task[None] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._latency = LatencyEstimator(plan.seconds_per_image)
        self._draining = False
        self.fatal_error: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether the batch loop is alive."""
        return self._task is not None and not self._task.done()

    @property
    def depth(self) -> int:
        """Number of queued images."""
        return len(self._queue)

    @property
    def seconds_per_image(self) -> float:
        """Moving average of the seconds per image."""
        return self._latency.seconds

    def start(self) -> None:
        """Start the batch loop on the running event loop."""
        self._task = asyncio.create_task(self._serve(), name=f"engine-{self._name}")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Finish accepted requests, then shut down."""
        self._draining = True
        self._arrived.set()
        if self._restarting is not None:
            self._restarting.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        for worker in self._workers:
            await asyncio.to_thread(worker.shutdown)

    async def submit(self, pixels: Array, deadline: float) -> BatchOutput:
        """Queue one image and wait for its outputs.

        Args:
            pixels: (C, H, W), as the network's preprocessing made it.
            deadline: on the clock of ``time.perf_counter``.

        Raises:
            UnavailableError: the queue is full, or the engine is down or stopping.
            DeadlineExceededError: no answer before the deadline.
        """
        if not self.healthy or self._draining:
            raise UnavailableError(f"The model {self._name} is not running at the moment. Try again shortly.")
        if len(self._queue) >= self._max_queue:
            wait = max(1, math.ceil(len(self._queue) * self._latency.seconds))
            raise UnavailableError("The service is at its capacity. Try again shortly.", retry_after_s=wait)
        item = _Item(pixels, deadline, asyncio.get_running_loop().create_future())
        self._queue.append(item)
        self._arrived.set()
        try:
            async with asyncio.timeout(deadline - time.perf_counter()):
                return await item.future
        except TimeoutError:
            raise DeadlineExceededError("The prediction was not ready before the deadline.") from None

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(self._work(worker))

    async def _work(self, worker: _Worker) -> None:
        while self._queue or not self._draining:
            await self._arrived.wait()
            worker.batch = self._next_batch()
            if worker.batch:
                await self._run_batch(worker, worker.batch)
            worker.batch = ()

    def _next_batch(self) -> list[_Item]:
        """The oldest items whose callers still wait: a worker's share of the queue."""
        batch: list[_Item] = []
        now = time.perf_counter()
        size = min(self._max_batch, math.ceil(len(self._queue) / len(self._workers)))
        while self._queue and len(batch) < size:
            item = self._queue.popleft()
            if not item.future.done() and item.deadline > now:
                batch.append(item)
        if not self._queue and not self._draining:
            self._arrived.clear()
        return batch

    async def _run_batch(self, worker: _Worker, batch: Sequence[_Item]) -> None:
        busy = sum(1 for other in self._workers if other.batch)
        run = self._run if busy == 1 and len(batch) == 1 else worker.run
        started = time.perf_counter()
        failure: Exception | None = None
        try:
            outputs = await worker.call(run, np.stack([item.pixels for item in batch]), self._max_run_s)
        except _HungError:
            raise
        except Exception as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                logger.exception("model %s failed on a batch of %d", self._name, len(batch))
            # The traceback holds the frames of the failed run, and with them its tensors on the device.
            failure = error.with_traceback(None)
        # Outside of the except block, which holds the error with its traceback until it is left.
        if failure is not None:
            if is_out_of_memory(failure) and len(batch) > 1:
                await self._run_halves(worker, batch)
            else:
                await self._retry_singly(worker, batch, failure)
            return
        run_s = time.perf_counter() - started
        self._latency.add(run_s / len(batch) / busy)
        self._on_batch(len(batch))
        for row, item in enumerate(batch):
            if not item.future.done():
                row_outputs = {name: values[row] for name, values in outputs.items()}
                item.future.set_result(BatchOutput(row_outputs, started - item.queued_at, run_s))

    async def _run_halves(self, worker: _Worker, batch: Sequence[_Item]) -> None:
        """Out of memory: halve the batch size, for good."""
        self._max_batch = min(self._max_batch, len(batch) // 2)
        logger.warning(
            "model %s ran out of memory with %d images; the batch size is %d now",
            self._name,
            len(batch),
            self._max_batch,
        )
        while batch:
            part, batch = batch[: self._max_batch], batch[self._max_batch :]
            await self._run_batch(worker, part)

    async def _retry_singly(self, worker: _Worker, batch: Sequence[_Item], error: Exception) -> None:
        """Run the images one by one, so that only the one that makes the model fail fails."""
        if len(batch) == 1:
            if is_out_of_memory(error):
                error = UnavailableError(
                    f"The device of the model {self._name} has no memory left. Try again shortly.",
                    retry_after_s=_NO_MEMORY_RETRY_S,
                )
            if not batch[0].future.done():
                batch[0].future.set_exception(error)
            # Is it the image, or does the model fail on everything?
            await worker.call(worker.run, self._probe, self._max_run_s)
            return
        for item in batch:
            if not item.future.done():
                await self._run_batch(worker, [item])

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The loop has ended: fail what is queued, and restart it."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("the batch loop of %s died", self._name, exc_info=error)
            # The ended tasks keep these frames until the restart, which needs the memory of the tensors in them.
            for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
                traceback.clear_frames(each.__traceback__)
        for item in [*(item for worker in self._workers for item in worker.batch), *self._queue]:
            if not item.future.done():
                item.future.set_exception(UnavailableError(f"The model {self._name} stopped. Try again shortly."))
        for worker in self._workers:
            worker.batch = ()
        self._queue.clear()
        if not self._draining:
            self._restarting = task.get_loop().create_task(self._restart(), name=f"restart-{self._name}")

    async def _restart(self) -> None:
        wait = self._restart_s
        while True:
            await asyncio.sleep(wait)
            try:
                await self._workers[0].call(self._run, self._probe, None)  # without limit: a new thread would hang too
            except Exception as error:
                if is_fatal(error):
                    logger.exception("the device of model %s failed for good", self._name)
                    self.fatal_error = str(error).partition("\n")[0]
                    return
                logger.exception("model %s cannot run yet", self._name)
                wait = min(2 * wait, _MAX_RESTART_S)
            else:
                logger.warning("the batch loop of %s was restarted", self._name)
                self.start()
                return
