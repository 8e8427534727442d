"""The most confident disagreements with the labels: model errors, or errors of the dataset."""

import base64
import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record
from ml.evaluation.scoring import LabelledPredictions

LIMIT: Final = 24
_SIDE: Final = 224


def disagreements(
    predictions: LabelledPredictions, classes: Sequence[str], records: Sequence[Record], limit: int = LIMIT
) -> dict[str, Any]:
    """Wrong answers, the surest first, at most one of each case and answer.

    Args:
        predictions: of one model to one task.
        classes: of the task in output order.
        records: that were asked about.
        limit: how many.

    Returns:
        found: how many there are; items: the first ``limit`` of them, each with image, u_id, label,
        answer, probability of both, caption, and a thumbnail as data URI.
    """
    by_image = {record.image: record for record in records}
    predicted, sure = predictions.predicted, predictions.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != predictions.targets)
    rows: dict[tuple[str, int], int] = {}
    for row in wrong[np.argsort(-sure[wrong], kind="stable")].tolist():
        rows.setdefault((by_image[str(predictions.images[row])].u_id, int(predicted[row])), row)
    items = []
    for row in [*rows.values()][:limit]:
        record = by_image[str(predictions.images[row])]
        items.append(
            {
                "image": record.image,
                "u_id": record.u_id,
                "label": classes[predictions.targets[row]],
                "answer": classes[predicted[row]],
                "probability": float(sure[row]),
                "probability_of_label": float(predictions.probabilities[row, predictions.targets[row]]),
                "caption": record.caption,
                "thumbnail": thumbnail(record),
            }
        )
    return {"found": len(rows), "items": items}


def thumbnail(record: Record) -> str:
    """The image of a record as a small JPEG in a data URI."""
    with Image.open(record.path) as image:
        pixels = Preprocess(size=_SIDE).apply(image)
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
