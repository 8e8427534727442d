"""The state of one prediction: each stage of the pipeline fills its fields."""

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.serving.decode.decoded_image import ImageInfo
from ml.registry.model_card import ModelCard

if TYPE_CHECKING:  # imports PyTorch, which the service does without until models are loaded
    from app.serving.explain import Explanation, Inputs


@dataclass(slots=True)
class PredictionContext:
    """One image on its way from the upload to the answer.

    Reading an attribute before its stage has run raises AttributeError.

    Attributes:
        data: bytes of the image file (read).
        caption: caption that came with it; None without one (read).
        task: task of the model, modality or location (admit).
        deadline: on the clock of ``time.perf_counter`` (admit).
        timings_s: seconds per stage: wait (for a decode thread), decode, queue (for the model), run, postprocess,
            explain; wait and cache for an answer from the cache.
        info: the file's hash, size and mode (decode).
        pixels: uint8 (C, S, S), as the network takes them; None for a model without an image encoder (decode).
        plausible: whether the input heuristics accept the pixels as those of a CT or MR image (decode).
        outputs: of the network, one row each; None for a model without an image encoder (encode).
        card: of the model that answers (postprocess).
        probabilities: per task of the model, class to calibrated probability (postprocess).
        out_of_distribution: whether the image is too far from the training images or fails the input heuristics;
            None where that is not known (postprocess).
        confident: whether the best class passes its threshold and nothing contradicts it (postprocess).
        inputs_used: image, caption or both (postprocess).
        notes: what a reader of the answer should know, in sentences.
        cached: whether the answer came from the cache.
        explanation: relevance map of one class (explain).
        by_input: what image and caption would each have answered alone (explain).
        neighbours: (image, cosine similarity) pairs of the dataset, the most similar first (nearest).
    """

    data: bytes
    caption: str | None = None
    task: str = ""
    deadline: float = math.inf
    timings_s: dict[str, float] = field(default_factory=dict)
    cached: bool = False
    info: ImageInfo = field(init=False)
    pixels: NDArray[np.uint8] | None = field(init=False)
    plausible: bool = field(init=False)
    outputs: dict[str, NDArray[Any]] | None = field(init=False)
    card: ModelCard = field(init=False)
    probabilities: Mapping[str, Mapping[str, float]] = field(init=False)
    out_of_distribution: bool | None = field(init=False)
    confident: bool = field(init=False)
    inputs_used: tuple[str, ...] = field(init=False)
    notes: tuple[str, ...] = field(init=False)
    explanation: "Explanation" = field(init=False)
    by_input: "Inputs" = field(init=False)
    neighbours: list[tuple[str, float]] = field(init=False)

    @property
    def label(self) -> str:
        """The most probable class of the task."""
        return max(self.probabilities[self.task].items(), key=lambda pair: pair[1])[0]

    def without_inputs(self) -> "PredictionContext":
        """A copy without file, caption, pixels and network outputs: what the cache keeps, a few KB."""
        context = copy(self)
        context.data, context.caption, context.pixels, context.outputs = b"", None, None, None
        return context

    def answer_from(self, cached: "PredictionContext") -> None:
        """Take over the answer to an equal request."""
        self.info = cached.info
        self.card = cached.card
        self.probabilities = cached.probabilities
        self.out_of_distribution = cached.out_of_distribution
        self.confident = cached.confident
        self.inputs_used = cached.inputs_used
        self.notes = cached.notes
        self.cached = True
