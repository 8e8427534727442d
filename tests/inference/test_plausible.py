import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.inference.plausible import is_plausible
from ml.preprocess import Preprocess
from tests.inference.unlike import unlike


@pytest.mark.parametrize("name", ["chart", "white", "black"])
def test_paper_and_empty_frames_are_no_scans(name: str) -> None:
    picture = Image.open(io.BytesIO(unlike()[name]))
    assert not is_plausible(Preprocess(size=128).apply(picture))


@pytest.mark.medpix
def test_the_images_of_the_dataset_are_plausible(medpix_dir: Path) -> None:
    chosen = sorted((medpix_dir / "images").glob("*.png"))[::10]
    assert len(chosen) > 200
    for path in chosen:
        with Image.open(path) as image:
            assert is_plausible(Preprocess(size=128).apply(image)), path.name


def test_a_gradient_is_plausible() -> None:
    assert is_plausible(np.linspace(0, 255, 128 * 128).reshape(1, 128, 128).astype(np.uint8))
