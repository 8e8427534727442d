"""Robustness: ablated inputs, blanked text bands, other file modes, mirrored views, subgroups."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml.dataset.image_loading import Edit
from ml.dataset.records import Record, groups
from ml.evaluation.model_outputs import ImageCache, ModelOutputs, label_predictions
from ml.evaluation.scoring import LabelledPredictions, compare, short
from ml.models.base import Floats, ServedModel, has_caption
from ml.models.fusion import FusedModel
from ml.models.network import ServingNetwork
from ml.models.predict_records import run_images
from ml.models.texture_svm import CnnSvmFusion

# MedPix burns its mark into the top and a banner with names and dates into the bottom of an image:
# shares of the height, from 10 and 14 of 128 rows.
TOP_BAND: Final = 10 / 128
BOTTOM_BAND: Final = 14 / 128
SHUFFLE_SEED: Final = 0


def blank_bands(image: Image.Image) -> Image.Image:
    """An 8-bit image whose bands with burned-in text are black."""
    rgba, top, bottom = _bands(image)
    rgba.paste((0, 0, 0, 255), (0, 0, rgba.width, top))
    rgba.paste((0, 0, 0, 255), (0, bottom, rgba.width, rgba.height))
    return rgba


def only_bands(image: Image.Image) -> Image.Image:
    """An 8-bit image that is black but for the bands with burned-in text."""
    rgba, top, bottom = _bands(image)
    rgba.paste((0, 0, 0, 255), (0, top, rgba.width, bottom))
    return rgba


def _bands(image: Image.Image) -> tuple[Image.Image, int, int]:
    rgba = image.convert("RGBA")
    return rgba, round(TOP_BAND * rgba.height), round((1 - BOTTOM_BAND) * rgba.height)


EDITS: Final[Mapping[str, Edit]] = MappingProxyType({"text bands blanked": blank_bands, "text bands alone": only_bands})


def as_rgb(image: Image.Image) -> Image.Image:
    """The image without an alpha channel or a palette."""
    return image.convert("RGB")


def as_grey(image: Image.Image) -> Image.Image:
    """The image without an alpha channel, a palette or colours."""
    return image.convert("L")


def with_alpha(image: Image.Image) -> Image.Image:
    """The image with an alpha channel; opaque where it had none."""
    return image.convert("RGBA")


# Modes to save the same pixels in: CT and MR images of MedPix come in different ones, which is no anatomy.
FILE_MODES: Final[Mapping[str, Edit]] = MappingProxyType(
    {"all as RGB": as_rgb, "all as grey": as_grey, "all with an alpha channel": with_alpha}
)


def caption_of_another_case(cases: NDArray[np.str_], seed: int = SHUFFLE_SEED) -> NDArray[np.int64]:
    """For each row the index of a row of another case, drawn at random, (N,).

    Raises:
        ValueError: all rows are of one case.
    """
    if len(np.unique(cases)) < 2:
        raise ValueError("a caption of another case needs two cases")
    random = np.random.default_rng(seed)
    return np.array([random.choice(np.flatnonzero(cases != own)) for own in cases], dtype=np.int64)


def ablations(outputs: ModelOutputs) -> dict[str, dict[str, Any]]:
    """Accuracy of a model with two inputs when it gets one of them, both, or a wrong caption.

    Returns:
        Per task and kind of input: n, cases, accuracy and interval over cases, and how much better
        "both" is, paired by case. Caption only is scored on the rows that have a caption, and left
        out where none has one, as is the caption of another case where there is but one case. Empty
        for a model with one input.
    """
    image_out, caption_out, model = outputs.image_out, outputs.caption_out, outputs.model
    if image_out is None or caption_out is None:
        return {}
    both = outputs.predictions()
    kinds = {
        "image and caption": both,
        "image only": label_predictions(model.combine(image_out, None), outputs.records),
    }
    if has_caption(caption_out, len(outputs.records)).any():
        kinds["caption only"] = _from_captions(model, caption_out, outputs.records)
    cases = groups(outputs.records)
    if len(np.unique(cases)) > 1:
        wrong = model.combine(image_out, caption_out[caption_of_another_case(cases)])
        kinds["image, caption of another case"] = label_predictions(wrong, outputs.records)
    return {
        task: {
            kind: short(predictions[task]) | _gain(both[task], predictions[task]) for kind, predictions in kinds.items()
        }
        for task in both
    }


def _gain(both: LabelledPredictions, other: LabelledPredictions) -> dict[str, Any]:
    same = both.only(np.isin(both.images, other.images))
    return {"both_is_better_by": compare(same, other)} if len(same.targets) else {}


def _from_captions(
    model: ServedModel, caption_out: Floats, records: Sequence[Record]
) -> dict[str, LabelledPredictions]:
    has_text = has_caption(caption_out, len(records))
    with_caption = [record for record, is_given in zip(records, has_text, strict=True) if is_given]
    half = model.caption_model if isinstance(model, FusedModel) else model
    return label_predictions(half.combine(None, caption_out[has_text]), with_caption)


def shortcuts(outputs: ModelOutputs, image_cache: ImageCache) -> dict[str, dict[str, Any]]:
    """Accuracy per task with the bands of burned-in text blanked, and with nothing but them.

    Returns:
        Per task and edit: n, cases, accuracy and interval, and how much better the whole image is.
        Empty for a model without image.
    """
    if outputs.image_out is None:
        return {}
    unchanged = outputs.predictions()
    by_task: dict[str, dict[str, Any]] = {task: {} for task in unchanged}
    for name, edit in EDITS.items():
        edited = ModelOutputs.compute(outputs.model, outputs.records, image_cache, edit).predictions()
        for task, predictions in edited.items():
            by_task[task][name] = short(predictions) | {"whole_is_better_by": compare(unchanged[task], predictions)}
    return by_task


def file_modes(outputs: ModelOutputs, image_cache: ImageCache) -> dict[str, dict[str, Any]]:
    """What a model answers when the same images are saved in another mode: RGB, grey, with alpha.

    Returns:
        Per task and mode: n, cases, accuracy and interval, changed_inputs (images that reach the
        model with other pixels), changed_answers, and the largest_change of a probability. Empty
        for a model without image.
    """
    if outputs.image_out is None or outputs.model.preprocess is None:
        return {}
    plain = image_cache.of(outputs.records, outputs.model.preprocess)
    unchanged = outputs.predictions()
    by_task: dict[str, dict[str, Any]] = {task: {} for task in unchanged}
    for name, edit in FILE_MODES.items():
        pixels = image_cache.of(outputs.records, outputs.model.preprocess, edit)
        changed = np.flatnonzero((pixels != plain).any(axis=(1, 2, 3)))
        image_out = dict(outputs.image_out)
        if len(changed):  # equal pixels get equal answers
            rerun = run_images(outputs.model, pixels[changed])
            assert rerun is not None
            for key, values in rerun.items():
                image_out[key] = image_out[key].copy()
                image_out[key][changed] = values
        predictions = label_predictions(outputs.model.combine(image_out, outputs.caption_out), outputs.records)
        for task, now in predictions.items():
            before = unchanged[task]
            by_task[task][name] = short(now) | {
                "changed_inputs": len(changed),
                "changed_answers": int(np.sum(now.predicted != before.predicted)),
                "largest_change": float(np.abs(now.probabilities - before.probabilities).max()),
            }
    return by_task


def mirror(outputs: ModelOutputs, image_cache: ImageCache) -> dict[str, dict[str, Any]]:
    """What the mirrored view adds, of a model that averages over the image and its mirror image.

    Returns:
        Per task: n, cases, accuracy and interval with_mirror and without_mirror, and
        mirror_is_better_by, paired by case. Empty for a model that looks once.
    """
    network = _viewer(outputs.model)
    if network is None or not network.flip:
        return {}
    both = outputs.predictions()
    network.flip = False
    try:
        once = ModelOutputs.compute(outputs.model, outputs.records, image_cache).predictions()
    finally:
        network.flip = True
    return {
        task: {
            "with_mirror": short(both[task]),
            "without_mirror": short(once[task]),
            "mirror_is_better_by": compare(both[task], once[task]),
        }
        for task in both
    }


def _viewer(model: ServedModel) -> ServingNetwork | None:
    """The network of a model that averages over test-time views."""
    owner = model.image_model if isinstance(model, FusedModel | CnnSvmFusion) else model
    return owner.network if isinstance(owner.network, ServingNetwork) else None


def age_band(age: int | None) -> str:
    """The band of an age in years."""
    if age is None:
        return "unknown"
    return next(name for limit, name in ((18, "0-17"), (40, "18-39"), (65, "40-64"), (200, "65+")) if age < limit)


def _plane(record: Record) -> str:
    plane = "Axial" if record.plane == "Transverse" else record.plane
    return plane if plane in ("Axial", "Coronal", "Sagittal") else "other"


SUBGROUPS: Final[Mapping[str, Callable[[Record], str]]] = MappingProxyType(
    {
        "modality": lambda record: record.modality,
        "plane": _plane,
        "sex": lambda record: record.sex or "unknown",
        "age": lambda record: age_band(record.age),
        "caption": lambda record: "given" if record.caption else "placeholder",
        "pixel mode": lambda record: record.mode,
    }
)


def subgroups(predictions: LabelledPredictions, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """n, cases, accuracy and interval of each subgroup, by attribute and value; placeholders even if there are none."""
    by_image = {record.image: record for record in records}
    by_attribute = {}
    for attribute, value_of in SUBGROUPS.items():
        values = np.array([value_of(by_image[image]) for image in predictions.images.tolist()], dtype=np.str_)
        by_attribute[attribute] = {
            value: short(predictions.only(values == value)) for value in np.unique(values).tolist()
        }
    by_attribute["caption"].setdefault(
        "placeholder", short(predictions.only(np.zeros(len(predictions.images), dtype=np.bool_)))
    )
    return by_attribute
