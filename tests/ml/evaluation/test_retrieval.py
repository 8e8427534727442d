import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from ml.dataset.records import Record
from ml.evaluation.retrieval import CUTOFFS, retrieval
from ml.registry.reference_embeddings import normalise


def unit(rows: list[list[float]]) -> NDArray[np.float32]:
    return normalise(np.array(rows, dtype=np.float32))


def test_recall_counts_the_image_its_caption_and_its_case(train_records: list[Record]) -> None:
    records = train_records[:12]
    random = np.random.default_rng(0)
    images = unit(random.normal(size=(12, 4)).tolist())
    captions = images.copy()
    captions[3] = np.nan
    figures = retrieval(captions, images, records)
    assert figures is not None
    assert (figures["queries"], figures["images"]) == (11, 12)
    assert figures["image"]["recall_at"] == {"1": 1.0, "5": 1.0, "10": 1.0}
    assert figures["image"]["median_rank"] == 1.0
    turned = retrieval(-images, images, records)
    assert turned is not None
    assert turned["image"]["recall_at"]["10"] == 0.0, "the own image is the last of twelve"
    low, high = turned["case"]["recall_at_95"]["10"]
    assert 0.0 <= low <= turned["case"]["recall_at"]["10"] <= high <= 1.0


def test_a_tie_finds_nothing(train_records: list[Record]) -> None:
    same = unit([[1.0, 0.0]] * 12)
    figures = retrieval(same, same, train_records[:12])
    assert figures is not None
    assert figures["image"]["recall_at"] == {"1": 0.0, "5": 0.0, "10": 0.0}


def test_the_random_baseline_is_the_share_of_all_draws(train_records: list[Record]) -> None:
    records = train_records[:12]
    images = unit(np.eye(12).tolist())
    figures = retrieval(images, images, records)
    assert figures is not None
    for k in CUTOFFS:
        draws = list(itertools.combinations(range(12), k))
        for kind, same in (
            ("image", lambda a, b: a is b),
            ("caption", lambda a, b: a.caption == b.caption),
            ("case", lambda a, b: a.u_id == b.u_id),
        ):
            hits = [any(same(own, records[index]) for index in draw) for own in records for draw in draws]
            assert figures[kind]["random_at"][str(k)] == pytest.approx(np.mean(hits), abs=1e-9)


def test_without_captions_there_are_no_figures(train_records: list[Record]) -> None:
    images = unit([[1.0, 0.0]] * 3)
    assert retrieval(np.full_like(images, np.nan), images, train_records[:3]) is None
