"""The rows of the leaderboard: evaluated models, the majority class, and models that are not trained."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ml.dataset import labels
from ml.dataset.records import Record
from ml.evaluation import corruptions, robustness, splits
from ml.evaluation.model_outputs import ImageCache, ModelOutputs, label_predictions
from ml.evaluation.published_baselines import ORIGINAL_WEIGHTS
from ml.evaluation.retrieval import retrieval
from ml.evaluation.scoring import LabelledPredictions, calibration, confident, describe, measure
from ml.models.base import EMBEDDING, has_caption
from ml.models.model_specs import MODEL_SPECS
from ml.models.predict_records import captions_of
from ml.registry.model_card import ModelCard
from ml.registry.reference_embeddings import Reference
from ml.training.context import log_prior

_FACTS = {"version", "init", "weights_source", "inputs", "parameters", "seconds", "seed", "preprocess_hash"}
_CARD = {
    "family",
    "tasks",
    "preprocess",
    "thresholds",
    "thresholds_image_only",
    "calibrated_on",
    "ood_threshold",
    "ood_distance",
    "settings",
    "files",
    "data",
    "environment",
    "intended_use",
    "limits",
}


def model_row(
    card: ModelCard,
    outputs: ModelOutputs,
    predictions: Mapping[str, LabelledPredictions],
    image_cache: ImageCache,
    suspects: Sequence[str],
    reference: Reference | None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything about one model, as JSON values.

    Args:
        card: of the model.
        outputs: of the model for the records.
        predictions: its answers per task.
        image_cache: the images decoded so far.
        suspects: cases to leave out for the figures without them.
        reference: the embeddings registered with the model, for the out-of-distribution rule of its card.
        on_progress: called with the finished share.
    """
    rule = ood_rule(card, reference)
    ood = []
    if rule is not None and outputs.image_out is not None:
        rows = zip(outputs.records, rule(outputs.image_out), strict=True)
        ood = [record.image for record, is_ood in rows if is_ood]
    has_text = has_caption(outputs.caption_out, len(outputs.records))
    without_caption = [record.image for record, is_given in zip(outputs.records, has_text, strict=True) if not is_given]
    before, ablated, mirrored = (
        outputs.uncalibrated(),
        robustness.ablations(outputs),
        robustness.mirror(outputs, image_cache),
    )
    changed = corruptions.corruptions(outputs, rule, on_progress)
    shortcut, modes = robustness.shortcuts(outputs, image_cache), robustness.file_modes(outputs, image_cache)
    measured = {task: measure(own) for task, own in predictions.items()}
    return card.model_dump(mode="json", include=_FACTS) | {
        "sha256": card.sha256,
        "start": start(card),
        "trained_at": card.created_at.isoformat(),
        "remarks": remarks(card),
        "card": card.model_dump(mode="json", include=_CARD),
        "retrieval": retrieval_figures(card, outputs),
        "tasks": {
            task: {
                "scores": measured[task],
                "dev": card.metrics.get("dev", {}).get(task),
                "temperature": card.temperature[task],
                "calibration": calibration(before[task], own, measured[task]),
                "confident": confident(
                    own,
                    card.thresholds[task],
                    np.isin(own.images, ood),
                    image_only=np.isin(own.images, without_caption),
                    threshold_image_only=card.thresholds_image_only.get(task),
                ),
                "out_of_fold": card.metrics.get("out_of_fold", {}).get(task),
                **describe(own, tuple(card.tasks[task])),
                "subgroups": robustness.subgroups(own, outputs.records),
                "ablations": ablated.get(task, {}),
                "mirror": mirrored.get(task, {}),
                "shortcuts": shortcut.get(task, {}),
                "file_modes": modes.get(task, {}),
                "corruptions": changed.get(task, []),
                "without_suspect_cases": splits.without(own, suspects),
            }
            for task, own in predictions.items()
        },
    }


def ood_rule(card: ModelCard, reference: Reference | None) -> corruptions.OodRule | None:
    """The out-of-distribution rule of a card: which images no answer is confident about; None without one.

    The service marks images as out of distribution by input heuristics too (``app.serving.input_heuristics``).
    """
    limit = card.ood_threshold
    if reference is None or limit is None:
        return None
    distance = reference.distance_by(card.ood_distance)
    return lambda outputs: np.asarray(distance(outputs) > limit, dtype=np.bool_)


def retrieval_figures(card: ModelCard, outputs: ModelOutputs) -> dict[str, Any] | None:
    """Caption-to-image retrieval among the records; None for a model without a space of both."""
    captions = outputs.model.embed_captions(captions_of(outputs.records)) if card.shared_embedding else None
    if captions is None or outputs.image_out is None:
        return None
    return retrieval(captions, outputs.image_out[EMBEDDING], outputs.records)


def start(card: ModelCard) -> str:
    """What a model began from, in a few words."""
    began = "pretrained" if card.init == "pretrained" else "from scratch"
    if _has_sentence_encoder(card):
        return f"EfficientNet-Lite0 ({began}) + MiniLM, trained on the dataset's pairs"
    return began


def _has_sentence_encoder(card: ModelCard) -> bool:
    """Whether a model reads captions with a pretrained encoder that stays as it is: so does the dual encoder alone."""
    return "sentence_encoder" in card.settings


def remarks(card: ModelCard) -> list[str]:
    """What to know before a model is compared with the original of the same name."""
    if (original := _original_weights(card.name)) is None:
        return []
    if _has_sentence_encoder(card):
        return [f"{start(card)}: not comparable with the original, which was fine-tuned from {original}"]
    if card.init == "scratch":
        return [f"trained from scratch: not comparable with the original, which was fine-tuned from {original}"]
    return []


def untrained(task: str, registered: Collection[str]) -> list[dict[str, Any]]:
    """The models of a task that are not registered: name, and the command that trains it."""
    return [
        {"name": name, "command": f"medpix train {name}"}
        for name, spec in MODEL_SPECS.items()
        if task in spec.tasks and name not in registered
    ]


def _original_weights(name: str) -> str | None:
    """What the original of a model was fine-tuned from; variants such as clip-location-image start from the same."""
    return next(
        (weights for row, weights in ORIGINAL_WEIGHTS.items() if name == row or name.startswith(f"{row}-")), None
    )


def majority(train: Sequence[Record], records: Sequence[Record]) -> dict[str, LabelledPredictions]:
    """What answers the frequencies of the classes in training, and so always the same class."""
    rows = {
        task: np.tile(np.exp(log_prior(train, task)).astype(np.float32), (len(records), 1)) for task in labels.TASKS
    }
    return label_predictions(rows, records)


def presence(records: Sequence[Record], task: str) -> tuple[list[str], list[str]]:
    """The classes of a task that occur among the labels of records, and those that do not."""
    occurring = {record.label(task) for record in records}
    classes = labels.TASKS[task]
    return [name for name in classes if name in occurring], [name for name in classes if name not in occurring]
