"""Where answers come from: inputs taken away, burned-in text blanked, subgroups apart."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml.evaluation.asking import Asked, Pictures, as_answers
from ml.evaluation.scoring import Answers, compare, short
from ml.images import Edit
from ml.models.base import Floats, InputError, ServedModel, has_caption
from ml.models.fusion import FusedModel
from ml.records import Record

# MedPix burns its mark into the top and a banner with names and dates into the bottom of an image:
# shares of the height, from 10 and 14 of 128 rows.
TOP_BAND: Final = 10 / 128
BOTTOM_BAND: Final = 14 / 128
SHUFFLE_SEED: Final = 0


def blank_bands(image: Image.Image) -> Image.Image:
    """An 8-bit image whose bands with burned-in text are black."""
    whole, top, bottom = _bands(image)
    whole.paste((0, 0, 0, 255), (0, 0, whole.width, top))
    whole.paste((0, 0, 0, 255), (0, bottom, whole.width, whole.height))
    return whole


def only_bands(image: Image.Image) -> Image.Image:
    """An 8-bit image that is black but for the bands with burned-in text."""
    whole, top, bottom = _bands(image)
    whole.paste((0, 0, 0, 255), (0, top, whole.width, bottom))
    return whole


def _bands(image: Image.Image) -> tuple[Image.Image, int, int]:
    whole = image.convert("RGBA")
    return whole, round(TOP_BAND * whole.height), round((1 - BOTTOM_BAND) * whole.height)


EDITS: Final[Mapping[str, Edit]] = MappingProxyType({"text bands blanked": blank_bands, "text bands alone": only_bands})


def caption_of_another_case(groups: NDArray[np.str_], seed: int = SHUFFLE_SEED) -> NDArray[np.int64]:
    """For each row the index of a row of another case, drawn at random, (N,).

    Raises:
        ValueError: all rows are of one case.
    """
    if len(np.unique(groups)) < 2:
        raise ValueError("a caption of another case needs two cases")
    random = np.random.default_rng(seed)
    return np.array([random.choice(np.flatnonzero(groups != own)) for own in groups], dtype=np.int64)


def ablations(asked: Asked) -> dict[str, dict[str, Any]]:
    """Accuracy of a model with two inputs when it gets one of them, both, or a wrong caption.

    Returns:
        Per task and kind of input: n, cases, accuracy and interval over cases, and how much better
        "both" is, paired by case. Caption only is scored on the rows that have a caption. Empty for
        a model with one input.
    """
    image_out, caption_out, model = asked.image_out, asked.caption_out, asked.model
    if image_out is None or caption_out is None:
        return {}
    both = asked.answers()
    groups = np.array([record.u_id for record in asked.records], dtype=np.str_)
    wrong = model.combine(image_out, caption_out[caption_of_another_case(groups)])
    kinds = {
        "image and caption": both,
        "image only": as_answers(model.combine(image_out, None), asked.records),
        "caption only": _from_captions(model, caption_out, asked.records),
        "image, caption of another case": as_answers(wrong, asked.records),
    }
    return {
        task: {kind: short(answers[task]) | _gain(both[task], answers[task]) for kind, answers in kinds.items()}
        for task in both
    }


def _gain(both: Answers, other: Answers) -> dict[str, Any]:
    same = both.only(np.isin(both.images, other.images))
    return {"both_is_better_by": compare(same, other)} if len(same.targets) else {}


def _from_captions(model: ServedModel, caption_out: Floats, records: Sequence[Record]) -> dict[str, Answers]:
    known = has_caption(caption_out, len(records))
    with_caption = [record for record, given in zip(records, known, strict=True) if given]
    half = model.caption_model if isinstance(model, FusedModel) else model
    if not with_caption:
        raise InputError(f"no record of the split has a caption to ask {model.card.name} about")
    return as_answers(half.combine(None, caption_out[known]), with_caption)


def shortcuts(asked: Asked, pictures: Pictures) -> dict[str, dict[str, Any]]:
    """Accuracy per task with the bands of burned-in text blanked, and with nothing but them.

    Returns:
        Per task and edit: n, cases, accuracy and interval, and how much better the whole image is.
        Empty for a model without image.
    """
    if asked.image_out is None:
        return {}
    whole = asked.answers()
    found: dict[str, dict[str, Any]] = {task: {} for task in whole}
    for name, edit in EDITS.items():
        edited = Asked.ask(asked.model, asked.records, pictures, edit).answers()
        for task, answers in edited.items():
            found[task][name] = short(answers) | {"whole_is_better_by": compare(whole[task], answers)}
    return found


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


def subgroups(answers: Answers, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """n, cases, accuracy and interval of each subgroup, by attribute and value."""
    by_image = {record.image: record for record in records}
    found = {}
    for attribute, value_of in SUBGROUPS.items():
        values = np.array([value_of(by_image[image]) for image in answers.images.tolist()], dtype=np.str_)
        found[attribute] = {value: short(answers.only(values == value)) for value in np.unique(values).tolist()}
    return found
