"""Accuracy on images as they come from elsewhere: each kind of change, in growing severity."""

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from ml.dataset.image_loading import Edit, load_images
from ml.dataset.preprocess import to_eight_bits
from ml.evaluation.model_outputs import ModelOutputs
from ml.evaluation.scoring import compare, confident, short
from ml.models.base import Outputs
from ml.models.image_model import ImageModel
from ml.models.predict_records import run_images

OodRule = Callable[[Outputs], NDArray[np.bool_]]


def _grey(image: Image.Image) -> Image.Image:
    return to_eight_bits(image).convert("L")


def window(low: float, high: float) -> Edit:
    """Another display window: what is below and above it, as shares of the grey levels, becomes black and white."""

    def edit(image: Image.Image) -> Image.Image:
        levels = np.clip((np.arange(256) / 255 - low) / (high - low), 0.0, 1.0) * 255
        return _grey(image).point(levels.round().astype(int).tolist())

    return edit


def framed(share: float, grey: int) -> Edit:
    """The image, with a share of its width and height, in the middle of a frame of its own size."""

    def edit(image: Image.Image) -> Image.Image:
        levels = _grey(image)
        frame = Image.new("L", levels.size, grey)
        small = levels.resize((max(1, round(share * levels.width)), max(1, round(share * levels.height))))
        frame.paste(small, ((frame.width - small.width) // 2, (frame.height - small.height) // 2))
        return frame

    return edit


def without_background(share: float) -> Edit:
    """Black outside of an ellipse that spans a share of width and height, as after the removal of the skull."""

    def edit(image: Image.Image) -> Image.Image:
        levels = _grey(image)
        mask = Image.new("L", levels.size, 0)
        left, top = (1 - share) / 2 * levels.width, (1 - share) / 2 * levels.height
        ImageDraw.Draw(mask).ellipse((left, top, levels.width - left, levels.height - top), 255)
        return Image.composite(levels, Image.new("L", levels.size, 0), mask)

    return edit


def as_jpeg(quality: int) -> Edit:
    """Saved as JPEG and read again."""

    def edit(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        _grey(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as saved:
            saved.load()
            return saved

    return edit


def blurred(share: float) -> Edit:
    """A Gaussian blur whose standard deviation is a share of the longer side."""
    return lambda image: _grey(image).filter(ImageFilter.GaussianBlur(share * max(image.size)))


def resampled(side: int) -> Edit:
    """Scaled down until the longer side has so many pixels."""

    def edit(image: Image.Image) -> Image.Image:
        scale = side / max(image.size)
        return _grey(image).resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))

    return edit


# By kind, the severities in growing order. What removing the text bands does is in `robustness.shortcuts`.
CORRUPTIONS: Final[Mapping[str, Mapping[str, Edit]]] = MappingProxyType(
    {
        "other window": {"10-90 %": window(0.1, 0.9), "25-75 %": window(0.25, 0.75)},
        "black surround": {"to 75 %": framed(0.75, 0), "to 50 %": framed(0.5, 0)},
        "background removed": {"ellipse of 90 %": without_background(0.9), "of 65 %": without_background(0.65)},
        "grey padding": {"to 85 %": framed(0.85, 128), "to 65 %": framed(0.65, 128)},
        "JPEG": {"quality 20": as_jpeg(20), "quality 8": as_jpeg(8)},
        "blur": {"0.5 % of the side": blurred(0.005), "1.5 %": blurred(0.015)},
        "resampled": {"from 96 pixels": resampled(96), "from 64": resampled(64)},
        "inverted grey": {"whole": lambda image: ImageOps.invert(_grey(image))},
    }
)


def corruptions(
    outputs: ModelOutputs,
    is_ood: OodRule | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> dict[str, list[dict[str, Any]]]:
    """What a network answers about changed images.

    Args:
        outputs: of the model for the images as they are.
        is_ood: the out-of-distribution rule of the card; the input heuristics of the service are not applied.
        on_progress: called with the finished share, since the network runs on every image many times.

    Returns:
        Per task, for each kind and severity: n, cases, accuracy and interval, how much better the image as it is does
        (``whole_is_better_by``), and the ``confident`` answers. Empty for models but those of the image alone: a fused
        one has the network of one of these.
    """
    model = outputs.model
    if not isinstance(model, ImageModel):
        return {}
    preprocess = model.preprocess
    assert preprocess is not None
    unchanged = outputs.predictions()
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in unchanged}
    images = np.array([record.image for record in outputs.records])
    edits = [
        (kind, severity, edit) for kind, severities in CORRUPTIONS.items() for severity, edit in severities.items()
    ]
    for number, (kind, severity, edit) in enumerate(edits, start=1):
        changed = run_images(model, load_images(outputs.records, preprocess, edit=edit))
        assert changed is not None
        ood = images[is_ood(changed)] if is_ood is not None else images[:0]
        for task, own in ModelOutputs(model, outputs.records, changed, None).predictions().items():
            sure = confident(own, model.card.threshold(task, with_caption=False), np.isin(own.images, ood))
            rows[task].append(
                {"kind": kind, "severity": severity}
                | short(own)
                | {"whole_is_better_by": compare(unchanged[task], own), "confident": sure}
            )
        on_progress(number / len(edits))
    return rows
