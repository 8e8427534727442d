"""Figures that others measured, quoted beside ours and never run here."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from ml.labels import LOCATION, LOCATION_CATEGORY, MODALITY

_COURSEWORK: Final = "original coursework (ivpinheiro/SCC0270-redes-neurais), output of its notebooks"


@dataclass(frozen=True, slots=True)
class Quoted:
    """A figure of another work.

    Attributes:
        task: a key of ``ml.labels.TASKS``.
        name: of the model.
        accuracy: as published.
        macro_f1: as published, None where it was not.
        comparable: whether it was measured on the 200 test images and the same classes.
        source: where it stands.
        note: what to know before comparing.
    """

    task: str
    name: str
    accuracy: float
    source: str
    note: str
    macro_f1: float | None = None
    comparable: bool = True


QUOTED: Final = (
    Quoted(MODALITY, "knn-texture", 0.50, _COURSEWORK, "answers one class only: a fault of its pipeline"),
    Quoted(MODALITY, "knn-colour", 0.61, _COURSEWORK, "unscaled histogram"),
    Quoted(MODALITY, "knn-texture-colour", 0.50, _COURSEWORK, "answers one class only: a fault of its pipeline"),
    Quoted(MODALITY, "resnet50-modality", 0.98, _COURSEWORK, "ImageNet weights; random flips left on while testing"),
    Quoted(
        LOCATION,
        "resnet50-location",
        0.57,
        _COURSEWORK,
        "ImageNet weights; image only; random flips left on while testing",
        macro_f1=0.31,
    ),
    Quoted(
        LOCATION,
        "clip-location",
        0.78,
        _COURSEWORK,
        "measured on the 1,653 training images: not a test figure",
        macro_f1=0.37,
        comparable=False,
    ),
    Quoted(
        LOCATION_CATEGORY,
        "RN50x16 + BioBERT, prompts",
        0.525,
        "MedPix 2.0, arXiv 2407.02994, figure 7",
        "the published baseline; 5 classes, so not to be held against figures on 21",
    ),
)


def quoted_for(task: str) -> list[dict[str, Any]]:
    """The quoted rows of a task, as JSON values."""
    return [asdict(row) for row in QUOTED if row.task == task]
