"""Runs models over records the way the service runs them over requests."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ml.dataset.records import Record
from ml.models.base import Floats, Outputs, ServedModel

# Larger ones make feature maps so large that their memory goes back to the kernel after each layer.
_BATCH = 16


def run_images(model: ServedModel, pixels: NDArray[np.uint8]) -> Outputs | None:
    """The image half of a model over many images, in batches.

    Args:
        model: any model.
        pixels: uint8 array (N, C, size, size).

    Returns:
        Arrays per output, None for a model without image.
    """
    parts = [model.encode_images(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    outputs = [part for part in parts if part is not None]
    if not outputs:
        return None
    return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}


def run_captions(model: ServedModel, captions: Sequence[str | None]) -> Floats | None:
    """The caption half of a model, None for a model without captions."""
    return model.encode_captions(captions) if "caption" in model.inputs else None


def captions_of(records: Sequence[Record]) -> list[str | None]:
    """The caption of each record, None for a placeholder."""
    return [record.caption or None for record in records]
