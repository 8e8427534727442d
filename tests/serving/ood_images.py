"""Images that are no medical images."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

_SIDE = 256


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _photo() -> Image.Image:
    """A bright sky over a textured meadow, a house between them."""
    noise = np.random.default_rng(0).normal(0, 12, (_SIDE, _SIDE, 3))
    rows = np.linspace(0, 1, _SIDE)[:, None, None]
    sky = np.array([150.0, 190.0, 240.0]) + 30 * rows
    meadow = np.array([70.0, 140.0, 50.0]) + 3 * noise
    pixels = np.where(rows < 0.55, sky + noise / 4, meadow)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle((80, 90, 170, 170), fill=(180, 90, 60))
    draw.polygon([(70, 90), (125, 45), (180, 90)], fill=(110, 40, 30))
    return image


def _chart() -> Image.Image:
    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(image)
    draw.line((30, 20, 30, 226, 236, 226), fill="black", width=2)
    for number, height in enumerate((60, 120, 90, 170, 140)):
        left = 45 + 38 * number
        draw.rectangle((left, 226 - height, left + 24, 226), fill="steelblue", outline="black")
    for line in range(5):
        draw.text((4, 40 * line + 20), str(100 - 20 * line), fill="black")
    return image


def ood_images() -> Mapping[str, bytes]:
    """Files that the service reads, and that show nothing a model was trained on."""
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE), dtype=np.uint8)
    return {
        "photo": _png(_photo()),
        "chart": _png(_chart()),
        "white": _png(Image.new("L", (_SIDE, _SIDE), 255)),
        "black": _png(Image.new("L", (_SIDE, _SIDE), 0)),
        "noise": _png(Image.fromarray(noise)),
    }
