import numpy as np
import pytest

from ml.dataset.image_loading import load_images
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record
from ml.evaluation import model_outputs as asking
from ml.evaluation.model_outputs import ImageCache
from ml.evaluation.robustness import blank_bands


def test_images_are_those_of_the_recipe_the_records_and_the_edit(
    test_records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    image_cache, small, large = ImageCache(), Preprocess(size=32), Preprocess(size=64)
    some, other_records = test_records[:3], test_records[3:6]
    for recipe in (small, large, small):
        for records in (some, other_records):
            for edit in (None, blank_bands):
                expected = load_images(records, recipe, edit=edit)
                assert np.array_equal(image_cache.of(records, recipe, edit), expected)
    images = image_cache.of(some, small, blank_bands)
    monkeypatch.setattr(asking, "load_images", None)
    assert image_cache.of(some, small, blank_bands) is images, "decoded once"
