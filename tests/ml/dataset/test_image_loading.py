from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml.dataset.image_loading import load_image, load_images
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record, RecordsError
from ml.registry.artifacts import sha256_of

RECIPE = Preprocess(size=32)


def test_images_are_those_of_single_reads(train_records: list[Record]) -> None:
    shares: list[float] = []
    pixels = load_images(train_records, RECIPE, on_progress=shares.append)
    assert pixels.shape == (len(train_records), 1, 32, 32)
    with Image.open(train_records[3].path) as image:
        assert np.array_equal(pixels[3], RECIPE.apply(image))
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1


def test_faulty_files_are_named(train_records: list[Record], tmp_path: Path) -> None:
    record = train_records[0]
    with pytest.raises(RecordsError, match="is missing"):
        load_image(replace(record, path=tmp_path / "none.png"), RECIPE)
    with pytest.raises(RecordsError, match="not the file that was seeded"):
        load_image(replace(record, path=train_records[1].path), RECIPE)


def test_a_file_that_is_no_image_is_named(train_records: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(RecordsError, match="cannot be decoded"):
        load_image(replace(train_records[0], path=path, sha256=sha256_of(path)), RECIPE)
