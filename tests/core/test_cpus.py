import os

import pytest

from app.core.cpus import usable_cpus


def test_the_affinity_counts_and_never_less_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = usable_cpus()
    assert 1 <= here <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert usable_cpus() == 1
