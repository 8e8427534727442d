"""What is asked of a model, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.serving.decode.decoded_image import ImageInfo
from app.serving.explain import Explanation, Inputs
from ml.registry.model_card import ModelCard


@dataclass(frozen=True, slots=True)
class Upload:
    """What a caller sends: the bytes of an image file, and a caption or None."""

    data: bytes
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image file, decoded and resized.

    Attributes:
        info: what is known of the file.
        pixels: uint8 (C, S, S) as the network takes them; None for a model without image.
        plausible: whether these could be the pixels of a CT or MR image.
        timings_s: seconds per stage: wait (for a thread), decode.
    """

    info: ImageInfo
    pixels: NDArray[np.uint8] | None
    plausible: bool
    timings_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Observation:
    """What the image half of a model gave.

    Attributes:
        info: the file that was read.
        outputs: of the network, one row each; None for a model without image.
        timings_s: seconds per stage: wait, decode, queue, run.
        plausible: whether the pixels could be those of a CT or MR image.
    """

    info: ImageInfo
    outputs: dict[str, NDArray[Any]] | None
    timings_s: Mapping[str, float]
    plausible: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model to one upload.

    Attributes:
        card: of the model.
        task: that was asked.
        probabilities: per task of the model, class to probability.
        confident: whether the best answer passes the threshold that was set on dev, and the image
            resembles the training images.
        out_of_distribution: whether the image is unlike every training image, or can be no CT or MR image at all;
            None where that is not known.
        inputs_used: image, caption or both.
        info: the file that was judged.
        timings_s: seconds per stage: wait (for a thread), decode, queue (for the model), run, postprocess; or
            wait and cache.
        cached: whether the same question was answered before.
    """

    card: ModelCard
    task: str
    probabilities: Mapping[str, Mapping[str, float]]
    confident: bool
    out_of_distribution: bool | None
    inputs_used: tuple[str, ...]
    info: ImageInfo
    timings_s: Mapping[str, float]
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """A prediction with its reasons.

    Attributes:
        prediction: the answer.
        explanation: what in the image speaks for a class.
        inputs: what image and caption would each have said alone, class to probability.
    """

    prediction: Prediction
    explanation: Explanation
    inputs: Inputs
