"""Input heuristics: pixels that cannot be those of a CT or MR image (photographs, scanned pages, empty images)."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Measured over the 2,050 images of the dataset at 128 pixels: 51 % of the pixels of the brightest
# are near white, and the grey values of the flattest have a standard deviation of 11.6.
_SIDE: Final = 112
_NEAR_WHITE: Final = 230
_MAX_WHITE: Final = 0.6
_MIN_CONTRAST: Final = 6.0
# Highest less lowest of red, green and blue, of 255; and the largest share of such pixels.
_COLOURED: Final = 60
_MAX_COLOURED: Final = 0.05
_SAMPLES: Final = (64, 64)
_WITHOUT_COLOUR: Final = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})


def is_plausible(pixels: NDArray[Any]) -> bool:
    """Whether an image could be a CT or MR image by its share of white and its contrast.

    Charts, scanned pages and empty images can be closer to the dataset's images in a network's embedding
    space than unusual but real images: it never learned to tell them apart.

    Args:
        pixels: (C, H, W), 0 to 255, as a network takes them.
    """
    step = max(1, pixels.shape[-1] // _SIDE)
    pixels = pixels[:, ::step, ::step]
    white = float((pixels >= _NEAR_WHITE).mean())
    return white <= _MAX_WHITE and float(np.std(pixels)) >= _MIN_CONTRAST


def is_colourful(image: Image.Image) -> bool:
    """Whether an image has more colour than a CT or MR image with coloured marks, or one photographed off a film.

    Over the 2,050 images of the dataset the share of strongly coloured pixels is 0.015 at most, over all of
    their pixels 0.018, and none is taken for colourful. A lower bar for "strongly" (30, say) would take one for
    it: MPX1427_synpic17014, a film photographed in a blue light. Colour photographs have 0.08 to 0.80.

    Args:
        image: decoded, of any mode and size; 4,096 of its pixels are looked at.
    """
    if image.mode in _WITHOUT_COLOUR:
        return False
    sample = image.resize(_SAMPLES, Image.Resampling.NEAREST).convert("RGB")
    return float((np.ptp(np.asarray(sample), axis=2) > _COLOURED).mean()) > _MAX_COLOURED
