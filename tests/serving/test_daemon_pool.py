import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest

from app.core.exceptions import UnavailableError
from app.serving import daemon_pool
from app.serving.daemon_pool import DaemonThreadPool

_HANG = """
import threading, time
from app.serving.daemon_pool import DaemonThreadPool
pool = DaemonThreadPool(2, "stuck")
for _ in range(2):
    pool.submit(threading.Event().wait)
waiting = pool.submit(print, "never")
pool.shutdown(wait=False, cancel_futures=True)
assert waiting.cancelled()
"""


def test_results_and_errors_come_back() -> None:
    pool = DaemonThreadPool(2, "test")
    assert [job.result() for job in [pool.submit(divmod, n, 3) for n in range(50)]] == [divmod(n, 3) for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
    assert pool.submit(lambda: threading.current_thread().name).result().startswith("test_")
    pool.shutdown()
    with pytest.raises(RuntimeError, match="was shut down"):
        pool.submit(print)


def test_shutting_down_waits_for_what_was_begun() -> None:
    pool, done = DaemonThreadPool(1, "test"), list[int]()

    def work(number: int) -> None:
        time.sleep(0.05)
        done.append(number)

    for number in range(3):
        pool.submit(work, number)
    pool.shutdown()
    assert done == [0, 1, 2]


def test_threads_that_hang_are_replaced_and_end_with_their_jobs() -> None:
    pool, free = DaemonThreadPool(2, "hung", max_job_s=0.1), threading.Event()
    first = list(pool._threads)
    for _ in range(2):
        pool.submit(free.wait)
    time.sleep(0.2)
    assert pool.submit(lambda: "answered").result(timeout=5) == "answered"
    free.set()
    for thread in first:
        thread.join(5)
        assert not thread.is_alive()
    assert (pool._hung, pool._job_began, len(pool._threads)) == (set(), {}, 2)
    assert pool.submit(lambda: "again").result(timeout=5) == "again"
    pool.shutdown()
    assert not any(thread.is_alive() for thread in pool._threads)


def test_when_too_many_threads_hang_the_pool_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_pool, "_MAX_HUNG", 2)
    pool, free = DaemonThreadPool(1, "hung", max_job_s=0.05), threading.Event()
    for _ in range(3):
        pool.submit(free.wait)
        time.sleep(0.1)
    assert pool.exhausted is True
    waiting = pool.submit(print)
    assert sum(thread.name.startswith("hung") for thread in threading.enumerate()) == 3, "the third is not replaced"
    assert not waiting.done()
    free.set()
    waiting.result(timeout=5)
    for thread in threading.enumerate():
        if thread.name.startswith("hung") and thread not in pool._threads:
            thread.join(5)
    assert not pool._hung
    pool.shutdown()


def test_a_closed_pool_is_unavailable_and_an_error_of_the_job_is_its_own() -> None:
    def fail() -> None:
        raise RuntimeError("of the job")

    async def scenario() -> None:
        pool = DaemonThreadPool(1, "test")
        assert await pool.run(divmod, 7, 3) == (2, 1)
        with pytest.raises(RuntimeError, match="of the job"):
            await pool.run(fail)
        pool.shutdown()
        with pytest.raises(UnavailableError):
            await pool.run(divmod, 7, 3)

    asyncio.run(scenario())


def test_what_hangs_does_not_keep_the_process_alive() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANG], env=os.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
