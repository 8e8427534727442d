"""Least-recently-used cache of predictions, in memory."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class PredictionCache(Generic[V]):
    """A thread-safe LRU cache.

    A key is a tuple of everything that a result depends on: two different requests never share one.

    Args:
        entries: largest number of results; 0 keeps none.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._results: OrderedDict[tuple[Hashable, ...], V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of cached results."""
        return len(self._results)

    def get(self, key: tuple[Hashable, ...]) -> V | None:
        """The cached result, or None."""
        with self._lock:
            if key not in self._results:
                return None
            self._results.move_to_end(key)
            return self._results[key]

    def put(self, key: tuple[Hashable, ...], result: V) -> None:
        """Cache a result; the least recently used one is evicted."""
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            while len(self._results) > self._entries:
                self._results.popitem(last=False)
