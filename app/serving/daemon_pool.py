"""Daemon pool whose hung workers can be abandoned: a decoder or driver that hangs cannot be stopped."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread
from typing import Any, Final, ParamSpec, TypeVar

from app.core.exceptions import UnavailableError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_JOIN_TIMEOUT_S: Final = 5.0
# Each abandoned thread keeps its stack and its job's data, which only the end of the process frees.
_MAX_HUNG: Final = 64


class DaemonThreadPool(Executor):
    """An executor of daemon threads.

    ``ThreadPoolExecutor`` makes the interpreter join its threads at exit, however long they take. These are
    joined for some seconds, and only if asked.

    Args:
        count: of threads.
        name: prefix of the thread names.
        max_job_s: a thread whose job runs longer counts as hung, and is replaced when the next job is submitted; None:
            none is replaced.

    Attributes:
        count: of threads.
    """

    def __init__(self, count: int, name: str, *, max_job_s: float | None = None) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closed = False
        self._name = name
        self._max_job_s = max_job_s
        self._lock = Lock()  # of the three below
        self._threads: list[Thread] = []
        self._job_began: dict[Thread, float] = {}
        self._hung: set[Thread] = set()
        self.count = count
        with self._lock:
            for index in range(count):
                self._start_thread(index)

    @property
    def exhausted(self) -> bool:
        """Whether so many threads hang that no more are replaced: only a new process frees them."""
        return len(self._hung) >= _MAX_HUNG

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in one of the threads, in the order of submission.

        Raises:
            RuntimeError: the pool was shut down.
        """
        if self._closed:
            raise RuntimeError("the thread pool was shut down")
        if self._max_job_s is not None:
            self._replace_hung(self._max_job_s)
        future: Future[T] = Future()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """Run a function in one of the threads, and wait for its result on the event loop.

        Raises:
            UnavailableError: the pool was shut down.
        """
        try:
            result = asyncio.get_running_loop().run_in_executor(self, fn, *args)
        except RuntimeError as error:
            raise UnavailableError("The model was stopped or replaced. Try again shortly.") from error
        return await result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more; the threads end when their work is done.

        Args:
            wait: join for up to five seconds; a thread that still hangs is abandoned.
            cancel_futures: cancel what has not started.
        """
        self._closed = True
        with suppress(Empty):
            while cancel_futures:
                job = self._jobs.get_nowait()
                if job is not None:
                    job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + (_JOIN_TIMEOUT_S if wait else 0.0)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self, index: int) -> None:
        thread = Thread(target=self._work, name=f"{self._name}_{index}", daemon=True)
        self._threads[index : index + 1] = [thread]
        thread.start()

    def _replace_hung(self, max_job_s: float) -> None:
        """Start a thread for each one that hangs; that one ends with its job, if the job ever ends."""
        latest = time.monotonic() - max_job_s
        with self._lock:
            for index, thread in enumerate(self._threads):
                if self._job_began.get(thread, latest) < latest and not self.exhausted:
                    logger.error("a job of %s has not ended after %g s; its thread is replaced", thread.name, max_job_s)
                    self._hung.add(thread)
                    self._start_thread(index)

    def _ends_with_job(self) -> bool:
        """Note that the job of this thread ended; whether the thread was replaced meanwhile."""
        thread = current_thread()
        with self._lock:
            del self._job_began[thread]
            replaced = thread in self._hung
            self._hung.discard(thread)
        return replaced

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                self._job_began[current_thread()] = time.monotonic()
            future, run = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run())
                except BaseException as error:  # noqa: BLE001 - it belongs to the caller of the future
                    future.set_exception(error)
            del job, future, run  # or an image would be kept in memory until the next job
            if self._ends_with_job():
                return
