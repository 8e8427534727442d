"""Published baselines: figures that others measured, shown beside ours and never run here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

from ml.dataset.labels import LOCATION, LOCATION_CATEGORY, MODALITY

_COURSEWORK: Final = "original coursework (ivpinheiro/SCC0270-redes-neurais), output of its notebooks"


@dataclass(frozen=True, slots=True)
class PublishedBaseline:
    """A figure of another work.

    Attributes:
        task: a key of ``ml.dataset.labels.TASKS``.
        name: of the model.
        accuracy: as published.
        macro_f1: as published, None where it was not.
        comparable: whether it was measured on the 200 test images and the same classes.
        source: where it stands.
        note: what to know before comparing.
        weights: the pretrained weights that it began from, None where it was trained from scratch.
    """

    task: str
    name: str
    accuracy: float
    source: str
    note: str
    macro_f1: float | None = None
    comparable: bool = True
    weights: str | None = None


_IMAGENET: Final = "ImageNet weights"
PUBLISHED_BASELINES: Final = (
    PublishedBaseline(MODALITY, "knn-texture", 0.50, _COURSEWORK, "answers one class only: a fault of its pipeline"),
    PublishedBaseline(MODALITY, "knn-colour", 0.61, _COURSEWORK, "unscaled histogram"),
    PublishedBaseline(
        MODALITY, "knn-texture-colour", 0.50, _COURSEWORK, "answers one class only: a fault of its pipeline"
    ),
    PublishedBaseline(
        MODALITY,
        "resnet50-modality",
        0.98,
        _COURSEWORK,
        "fine-tuned from ImageNet weights; random flips left on while testing",
        weights=_IMAGENET,
    ),
    PublishedBaseline(
        LOCATION,
        "resnet50-location",
        0.57,
        _COURSEWORK,
        "fine-tuned from ImageNet weights; image only; random flips left on while testing",
        macro_f1=0.31,
        weights=_IMAGENET,
    ),
    PublishedBaseline(
        LOCATION,
        "clip-location",
        0.78,
        _COURSEWORK,
        "measured on the 1,653 training images: not a test figure",
        macro_f1=0.37,
        comparable=False,
        weights="CLIP ViT-B/32 weights",
    ),
    PublishedBaseline(
        LOCATION_CATEGORY,
        "RN50x16 + BioBERT, prompts",
        0.525,
        "MedPix 2.0, arXiv 2407.02994, figure 7",
        "the published baseline; 5 classes, so not to be held against figures on 21",
        weights="CLIP and BioBERT weights",
    ),
)
# What the original of each model of the same name was fine-tuned from.
ORIGINAL_WEIGHTS: Final[Mapping[str, str]] = MappingProxyType(
    {row.name: row.weights for row in PUBLISHED_BASELINES if row.weights}
)


def baselines_for(task: str) -> list[dict[str, Any]]:
    """The published baselines of a task, as JSON values."""
    return [asdict(row) for row in PUBLISHED_BASELINES if row.task == task]
