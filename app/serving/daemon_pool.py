"""Daemon pool whose hung workers can be abandoned: a decoder or driver that hangs cannot be stopped."""

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_JOIN_TIMEOUT_S: Final = 5.0


class DaemonThreadPool(Executor):
    """An executor of daemon threads.

    ``ThreadPoolExecutor`` makes the interpreter join its threads at exit, however long they take. These are
    joined for some seconds, and only if asked.

    Args:
        count: of threads.
        name: prefix of the thread names.

    Attributes:
        count: of threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closed = False
        self.count = count
        self._threads = [Thread(target=self._work, name=f"{name}_{index}", daemon=True) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in one of the threads, in the order of submission.

        Raises:
            RuntimeError: the pool was shut down.
        """
        if self._closed:
            raise RuntimeError("the thread pool was shut down")
        future: Future[T] = Future()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

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

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, run = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run())
                except BaseException as error:  # noqa: BLE001 - it belongs to the caller of the future
                    future.set_exception(error)
            del job, future, run  # or an image would be kept in memory until the next job
