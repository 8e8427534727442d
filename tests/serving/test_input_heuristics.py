import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from app.serving.input_heuristics import is_colourful, is_plausible
from ml.dataset.preprocess import Preprocess
from tests.serving.hostile_files import accepted
from tests.serving.ood_images import ood_images

# Photographs that come with scikit-image.
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


def _images(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    for path in sorted((folder / "images").glob("*.png")):
        with Image.open(path) as image:
            yield path.name, image


@pytest.mark.parametrize("name", ["chart", "white", "black"])
def test_paper_and_empty_frames_are_no_scans(name: str) -> None:
    picture = Image.open(io.BytesIO(ood_images()[name]))
    assert not is_plausible(Preprocess(size=128).apply(picture))


@pytest.mark.medpix
def test_the_images_of_the_dataset_are_plausible(medpix_dir: Path) -> None:
    plausible = {
        name: is_plausible(Preprocess(size=128).apply(image))
        for number, (name, image) in enumerate(_images(medpix_dir))
        if number % 10 == 0
    }
    assert len(plausible) == 205
    assert all(plausible.values()), plausible


def test_a_gradient_is_plausible() -> None:
    assert is_plausible(np.linspace(0, 255, 128 * 128).reshape(1, 128, 128).astype(np.uint8))


@pytest.mark.medpix
def test_no_image_of_the_dataset_is_colourful(medpix_dir: Path) -> None:
    by_name = {name: is_colourful(image) for name, image in _images(medpix_dir)}
    assert len(by_name) == 2050
    assert [name for name, colourful in by_name.items() if colourful] == []


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P"])
def test_colour_photographs_are_colourful(name: str, mode: str) -> None:
    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        assert is_colourful(image.convert("RGB").convert(mode))
        assert not is_colourful(image.convert("L").convert(mode))


@pytest.mark.parametrize("name", accepted())
def test_grey_images_of_every_mode_are_not(name: str) -> None:
    image = Image.open(io.BytesIO(accepted()[name]))
    image.load()
    assert not is_colourful(image)
