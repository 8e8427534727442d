from app.serving.prediction_cache import PredictionCache


def test_what_was_not_used_for_longest_makes_room() -> None:
    cache: PredictionCache[int] = PredictionCache(2)
    cache.put(("a",), 1)
    cache.put(("b",), 2)
    assert cache.get(("a",)) == 1
    cache.put(("c",), 3)
    assert [cache.get((key,)) for key in "abc"] == [1, None, 3]
    assert len(cache) == 2


def test_parts_of_a_key_do_not_run_together() -> None:
    cache: PredictionCache[int] = PredictionCache(10)
    cache.put(("ab", "c"), 1)
    assert cache.get(("a", "bc")) is None
    assert cache.get(("ab", "c", None)) is None


def test_a_cache_of_nothing_keeps_nothing() -> None:
    cache: PredictionCache[int] = PredictionCache(0)
    cache.put(("a",), 1)
    assert cache.get(("a",)) is None
