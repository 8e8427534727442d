import io
import tracemalloc
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from ml.dataset.preprocess import Preprocess


def gradient(width: int, height: int) -> Image.Image:
    rows = np.linspace(0, 255, width, dtype=np.float64)[None].repeat(height, axis=0)
    return Image.fromarray(rows.astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "1", "I", "F", "I;16"])
def test_every_mode_becomes_grey_squares(mode: str) -> None:
    grey = gradient(60, 40)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 16)
    image = deep if mode == "I;16" else grey.convert(mode)
    pixels = Preprocess(size=32).apply(image)
    assert pixels.shape == (1, 32, 32)
    assert pixels.dtype == np.uint8
    left, right = pixels[0, 16, 2], pixels[0, 16, 29]
    assert left < 60
    assert right > 190


def test_padding_keeps_the_whole_image_centred() -> None:
    white = Image.new("L", (100, 50), 255)
    pixels = Preprocess(size=20, fill=7).apply(white)[0]
    assert (pixels[:5] == 7).all()
    assert (pixels[5:15] == 255).all()
    assert (pixels[15:] == 7).all()


def test_transparent_pixels_become_black() -> None:
    clear = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    assert Preprocess(size=16).apply(clear).max() == 0


def test_colour_keeps_three_channels() -> None:
    red = Image.new("RGB", (16, 16), (200, 10, 20))
    recipe = Preprocess(size=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert recipe.apply(red)[:, 8, 8].tolist() == [200, 10, 20]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 64), (64, 64), (900, 350)])
def test_grey_is_scaled_as_three_equal_channels_are(
    interpolation: Literal["bilinear", "bicubic"], size: tuple[int, int]
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    recipe = Preprocess(size=64, channels=3, interpolation=interpolation, fill=9, mean=(0.5,) * 3, std=(0.5,) * 3)
    for grey in (noise, noise.convert("1")):
        assert np.array_equal(recipe.apply(grey), recipe.apply(grey.convert("RGB")))


def test_a_constant_image_of_high_depth_is_no_division_by_zero() -> None:
    flat = Image.fromarray(np.full((16, 16), 3000, dtype=np.uint16))
    assert Preprocess(size=16).apply(flat).max() == 0


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_high_depth_is_stretched_from_darkest_to_brightest(
    kind: type[np.generic], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml.dataset.preprocess._STRIP", 100)  # rows in many strips
    values = np.random.default_rng(0).integers(500, 40_000, (64, 64)).astype(kind)
    expected = (
        (values.astype(np.float64) - values.min()) * (255 / (float(values.max()) - float(values.min())))
    ).round()
    assert np.array_equal(Preprocess(size=64).apply(Image.fromarray(values))[0], expected)


def test_what_is_no_number_is_black() -> None:
    values = np.ones((16, 16), dtype=np.float32)
    values[0, 0] = np.nan
    assert Preprocess(size=16).apply(Image.fromarray(values))[0, 0].tolist() == [0] + 15 * [255]


def test_a_large_image_of_16_bits_takes_little_memory() -> None:
    image = Image.fromarray(np.arange(4000 * 4000, dtype=np.uint32).astype(np.uint16).reshape(4000, 4000))
    tracemalloc.start()
    try:
        Preprocess().apply(image)
        assert tracemalloc.get_traced_memory()[1] < 8 * 4000 * 4000  # one copy in float64
    finally:
        tracemalloc.stop()


def test_orientation_of_a_photograph_is_applied() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    gradient(32, 32).save(file, "JPEG", quality=95, exif=exif)
    with Image.open(file) as image:
        pixels = Preprocess(size=32).apply(image)
    assert pixels[0, 16, 2] > 190


def test_json_and_hash_travel_together() -> None:
    recipe = Preprocess(size=64, mean=(0.3,), std=(0.2,))
    assert Preprocess.from_json(recipe.to_json()) == recipe
    assert Preprocess.from_json(recipe.to_json()).hash == recipe.hash
    assert replace(recipe, size=65).hash != recipe.hash


@pytest.mark.parametrize(
    "fields", [{"size": 4}, {"channels": 2}, {"std": (0.0,)}, {"interpolation": "sinc"}, {"version": 99}, {"fill": 256}]
)
def test_impossible_recipes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|range|not known"):
        Preprocess.from_json(Preprocess().to_json() | fields)
