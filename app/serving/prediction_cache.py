"""Predictions that were given before, kept in memory."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class PredictionCache(Generic[V]):
    """The results used last, at most a number of them; safe to use from any thread.

    A key is a tuple of all that a result depends on: two different questions never share one.

    Args:
        entries: most results to keep; 0 keeps none.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._results: OrderedDict[tuple[Hashable, ...], V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many results are kept."""
        return len(self._results)

    def get(self, key: tuple[Hashable, ...]) -> V | None:
        """The result of a question, None where it is not kept."""
        with self._lock:
            if key not in self._results:
                return None
            self._results.move_to_end(key)
            return self._results[key]

    def put(self, key: tuple[Hashable, ...], result: V) -> None:
        """Keep a result; the one that was not used for longest makes room."""
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            while len(self._results) > self._entries:
                self._results.popitem(last=False)
