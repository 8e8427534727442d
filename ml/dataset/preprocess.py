"""From any image file to the uint8 array that a network takes: one recipe, stored with its model."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]
_VERSION: Final = 1
_RESAMPLING: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_GREY: Final = frozenset({"1", "L"})
_STRIP: Final = 2**20
_HIGH_DEPTH: Final = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes the input of a network, the same in training, evaluation and serving.

    The image is scaled until its longer side is ``size`` and padded to a square: the dataset has
    aspect ratios from 0.42 to 2.84, and a centre crop would cut anatomy off.

    Attributes:
        size: side of the square in pixels.
        channels: 1 (grey) or 3 (the grey or colour image as RGB).
        interpolation: bilinear or bicubic, antialiased.
        fill: grey value of the padding, 0 to 255.
        mean: per channel, in units of 0 to 1; subtracted inside the network, not by ``apply``.
        std: per channel, in units of 0 to 1; divided by inside the network.
        version: version of this recipe's meaning.
    """

    size: int = 128
    channels: Literal[1, 3] = 1
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fill: int = 0
    mean: tuple[float, ...] = (0.21,)
    std: tuple[float, ...] = (0.25,)
    version: int = _VERSION

    def __post_init__(self) -> None:
        if self.version != _VERSION:
            raise ValueError(f"preprocess version {self.version} is not known; this code knows {_VERSION}")
        if not 8 <= self.size <= 1024:
            raise ValueError(f"size must be 8 to 1024 pixels, not {self.size}")
        if self.channels not in (1, 3) or {len(self.mean), len(self.std)} != {self.channels}:
            raise ValueError(f"channels must be 1 or 3 with one mean and one std each, not {self}")
        if self.interpolation not in _RESAMPLING or not 0 <= self.fill <= 255 or min(self.std) <= 0:
            raise ValueError(f"interpolation, fill or std out of range: {self}")

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON: equal hashes give equal arrays."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Preprocess":
        """The recipe that ``to_json`` described.

        Raises:
            ValueError: an unknown version or a value out of range.
            TypeError: an unknown field.
        """
        return cls(**(fields | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])}))

    def apply(self, image: Image.Image) -> Pixels:
        """The network's input for one image.

        Args:
            image: any Pillow image; only its first frame is read. Transparent pixels become black,
                16-bit and float images are stretched from their darkest to their brightest value.

        Returns:
            uint8 array of shape (channels, size, size), 0 to 255.
        """
        image = to_eight_bits(ImageOps.exif_transpose(image))
        # Grey stays one channel until the end: three equal ones would be scaled to three equal ones.
        image = image.convert("L" if self.channels == 1 or image.mode in _GREY else "RGB")
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        # reducing_gap shrinks large images by an integer factor first: faster, with the same result.
        image = image.resize((width, height), _RESAMPLING[self.interpolation], reducing_gap=3.0)
        square = Image.new(image.mode, (self.size, self.size), self.fill if image.mode == "L" else (self.fill,) * 3)
        square.paste(image, ((self.size - width) // 2, (self.size - height) // 2))
        pixels: Pixels = np.asarray(square, dtype=np.uint8)
        if image.mode == "L":
            return np.repeat(pixels[None], self.channels, axis=0)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def strips(values: NDArray[Any]) -> Iterator[slice]:
    """Rows of an image, about a million pixels at a time: its copies in float64 would take ten times its memory."""
    count = max(1, _STRIP // max(1, values.shape[1]))
    for start in range(0, len(values), count):
        yield slice(start, start + count)


def _stretched(values: NDArray[Any]) -> Pixels:
    """An image (H, W) of any depth, from its darkest to its brightest value, as 8 bits."""

    def part(rows: slice) -> NDArray[np.float64]:
        return np.nan_to_num(values[rows].astype(np.float64))

    extents = [(float(strip.min()), float(strip.max())) for strip in map(part, strips(values))]
    low, high = min(low for low, _ in extents), max(high for _, high in extents)
    stretched: Pixels = np.zeros(values.shape, dtype=np.uint8)
    for rows in strips(values) if high > low else ():
        stretched[rows] = ((part(rows) - low) * (255.0 / (high - low))).round()
    return stretched


def to_eight_bits(image: Image.Image) -> Image.Image:
    """An image of 8 bits per sample without transparency: transparent pixels become black."""
    if image.mode in _HIGH_DEPTH:
        return Image.fromarray(_stretched(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image)
    return image
