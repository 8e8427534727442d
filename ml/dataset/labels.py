"""The tasks, their classes and the one order in which every model, file and answer lists them."""

from types import MappingProxyType
from typing import Final

MODALITY: Final = "modality"
LOCATION: Final = "location"
LOCATION_CATEGORY: Final = "location_category"

MODALITIES: Final = ("CT", "MR")
# Sorted values of `Location` in the training split. "Left Blank", one dev image, is no class.
LOCATIONS: Final = (
    "Abdomen",
    "Bethesda, MD",
    "Brain and Neuro",
    "Breast and Mammography",
    "Cardiovascular",
    "Chest, Pulmonary",
    "Dental, Oral, or Tooth",
    "Endocrine",
    "Eye and Orbit",
    "Gastrointestinal",
    "Generalized",
    "Genitourinary",
    "Head and Neck",
    "Hematopoietic",
    "Musculoskeletal",
    "Nerve, central",
    "Nerve, peripheral",
    "Ophthalmology",
    "Pathology",
    "Spine",
    "Vascular",
)
LOCATION_CATEGORIES: Final = (
    "Abdomen",
    "Head",
    "Reproductive and Urinary System",
    "Spine and Muscles",
    "Thorax",
)
# What a caption tells: the tasks of every model that takes captions.
LOCATION_TASKS: Final = (LOCATION, LOCATION_CATEGORY)
TASKS: Final = MappingProxyType({MODALITY: MODALITIES, LOCATION: LOCATIONS, LOCATION_CATEGORY: LOCATION_CATEGORIES})
# An auxiliary task: it improves the features of an image network, and is never answered.
PLANE: Final = "plane"
PLANES: Final = ("Axial", "Coronal", "Sagittal")
# The target of an image without a label: it adds nothing to a loss and is left out of every score.
IGNORED: Final = -1


class UnknownLabelError(ValueError):
    """A label that is not a class of its task."""


def encode(task: str, label: str | None) -> int:
    """The index of a label among the classes of its task.

    Args:
        task: a key of ``TASKS``.
        label: a class name, or None where the dataset says "Left Blank".

    Returns:
        The index, or ``IGNORED`` for None.

    Raises:
        UnknownLabelError: the label is not a class of the task.
    """
    if label is None:
        return IGNORED
    try:
        return TASKS[task].index(label)
    except ValueError:
        classes = "; ".join(TASKS[task])
        raise UnknownLabelError(f"{label!r} is not a class of {task}; known are: {classes}") from None
