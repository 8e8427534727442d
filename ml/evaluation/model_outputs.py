"""Runs models on records: decoded images are shared between models, outputs between analyses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ml.dataset.image_loading import Edit, load_images
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record, groups, targets
from ml.evaluation.scoring import LabelledPredictions
from ml.models.base import Floats, Outputs, ServedModel
from ml.models.predict_records import captions_of, run_captions, run_images


@dataclass(slots=True)
class ImageCache:
    """The prepared images of records, decoded once for all models of one recipe that follow each other."""

    _recipe: str = ""
    _known: dict[tuple[Edit | None, str], NDArray[np.uint8]] = field(default_factory=dict)

    def of(self, records: Sequence[Record], preprocess: Preprocess, edit: Edit | None = None) -> NDArray[np.uint8]:
        """uint8 array (N, channels, size, size), of images that were edited first.

        Raises:
            ml.dataset.records.RecordsError: a file is missing, changed or not an image.
        """
        if preprocess.hash != self._recipe:
            self._recipe = preprocess.hash
            self._known.clear()
        key = (edit, "".join(record.image for record in records))
        if key not in self._known:
            self._known[key] = load_images(records, preprocess, edit=edit)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """A model and what its halves made of some records.

    Attributes:
        model: that was run.
        records: N records.
        image_out: of the image half, None where the model has none.
        caption_out: of the caption half, None where the model has none.
    """

    model: ServedModel
    records: Sequence[Record]
    image_out: Outputs | None
    caption_out: Floats | None

    @classmethod
    def compute(
        cls, model: ServedModel, records: Sequence[Record], image_cache: ImageCache, edit: Edit | None = None
    ) -> Self:
        """Run both halves of a model.

        Args:
            model: any registered model.
            records: N records.
            image_cache: the images decoded so far.
            edit: changes each image first.
        """
        image_out = None
        if model.preprocess is not None:
            image_out = run_images(model, image_cache.of(records, model.preprocess, edit))
        return cls(model, records, image_out, run_captions(model, captions_of(records)))

    def predictions(self) -> dict[str, LabelledPredictions]:
        """The calibrated answers per task from all that the model takes."""
        return label_predictions(self.model.combine(self.image_out, self.caption_out), self.records)

    def uncalibrated(self) -> dict[str, LabelledPredictions]:
        """The answers per task as they were before the temperatures of the card."""
        card = self.model.card
        try:
            self.model.card = card.model_copy(update={"temperature": dict.fromkeys(card.tasks, 1.0)})
            return self.predictions()
        finally:
            self.model.card = card


def label_predictions(probabilities: dict[str, Floats], records: Sequence[Record]) -> dict[str, LabelledPredictions]:
    """Per task, the probabilities (N, classes) about N records with the truth beside them."""
    images = np.array([record.image for record in records], dtype=np.str_)
    return {
        task: LabelledPredictions.of(rows, targets(records, task), groups(records), images)
        for task, rows in probabilities.items()
    }
