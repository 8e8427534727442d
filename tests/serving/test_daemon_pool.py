import os
import subprocess
import sys
import threading
import time

import pytest

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


def test_what_hangs_does_not_keep_the_process_alive() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANG], env=os.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
