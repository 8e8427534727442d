"""Calibrates registered models on predictions out of fold: of all train and dev images, none of a patient seen before.

Dev has 67 cases, too few to say from which confidence on 97 % of the answers are right. Here models of the same recipe
are trained on two thirds of the cases of train and dev, whole patients, and predict the rest, three times. Refitting
the heads alone on features of the registered network would be cheaper, and wrong: that network has seen these images,
and its features separate them better than those of new patients.

The models of the folds learn from 401 cases where the registered ones learn from 535, so that their answers, and the
thresholds, are if anything on the cautious side.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pymongo.database import Database

from ml.dataset.image_loading import load_images
from ml.dataset.records import Record, load_records
from ml.evaluation.folds import Fold, make_folds
from ml.evaluation.metrics import scores
from ml.evaluation.model_outputs import label_predictions
from ml.evaluation.retrain import Scratch, TrainedModels, with_needs
from ml.evaluation.scoring import LabelledPredictions, short
from ml.models.base import EMBEDDING, STAGES, Floats, Outputs, ServedModel, has_caption
from ml.models.model_specs import MODEL_SPECS, family_class
from ml.models.predict_records import captions_of, run_captions, run_images
from ml.registry.artifacts import exclusive_lock
from ml.registry.model_card import NEVER_CONFIDENT, ModelCard, new_version, now
from ml.registry.reference_embeddings import Reference
from ml.registry.registry import Registry, load_model, load_reference
from ml.training.calibration import TARGET_ACCURACY
from ml.training.context import Context, Options
from ml.training.device import DeviceName, Team, pick_device
from ml.training.progress import Reporter, Run, silent
from ml.training.train import OOD_QUANTILE, score_on_dev, set_calibration

_LOG = logging.getLogger(__name__)
FOLDS: Final = 3
METRICS: Final = "out_of_fold"


@dataclass(slots=True)
class Pooled:
    """What the models of all folds gave for the images that they did not learn from.

    Attributes:
        records: N records.
        fold: of each record, (N,).
        ood: which are out of distribution for the model of their fold, (N,).
        outputs: of the image half; None for a model without image.
        encoded: of the caption half; None for a model without captions.
    """

    records: list[Record] = field(default_factory=list)
    fold: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ood: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    outputs: Outputs | None = None
    encoded: Floats | None = None

    def add(
        self,
        number: int,
        records: list[Record],
        outputs: Outputs | None,
        encoded: Floats | None,
        ood: NDArray[np.bool_],
    ) -> None:
        """Append the images of one fold."""
        first = not self.records
        self.records += records
        self.fold = np.append(self.fold, np.full(len(records), number))
        self.ood = np.append(self.ood, ood)
        if outputs is not None:
            before = {} if first or self.outputs is None else self.outputs
            self.outputs = {
                name: np.concatenate([before[name], rows]) if name in before else rows for name, rows in outputs.items()
            }
        if encoded is not None:
            self.encoded = encoded if first or self.encoded is None else np.concatenate([self.encoded, encoded])

    def only(self, rows: NDArray[np.bool_]) -> "Pooled":
        """Some of the images, chosen by a mask (N,)."""
        return Pooled(
            [record for record, chosen in zip(self.records, rows, strict=True) if chosen],
            self.fold[rows],
            self.ood[rows],
            None if self.outputs is None else {name: values[rows] for name, values in self.outputs.items()},
            None if self.encoded is None else self.encoded[rows],
        )


def needs_calibration(cards: Sequence[ModelCard]) -> list[str]:
    """The names of the models among these that can be calibrated out of fold and are not.

    One that began with weights from a file is left out: models retrained on folds would begin with others.
    """
    return [
        card.name
        for card in cards
        if card.calibrated_on == "dev"
        and card.name in MODEL_SPECS
        and family_class(card.family).combines_any_outputs
        and not card.weights_source.startswith("local ")
    ]


def calibrate_out_of_fold(
    names: Sequence[str],
    database: Database[dict[str, Any]],
    images_dir: Path,
    models_dir: Path,
    *,
    device: DeviceName = "auto",
    seed: int = 0,
    epochs: int | None = None,
    reporter: Reporter = silent,
) -> list[ModelCard]:
    """Set temperatures and thresholds of registered models on predictions out of fold, and register them again.

    Weights stay as they are. Each model is replaced at once, as by a training, and served from then on. A run that
    was stopped resumes from its checkpoints.

    Args:
        names: of registered models whose ``combines_any_outputs`` is true.
        database: the seeded database.
        images_dir: folder of the PNG files.
        models_dir: folder of the model files.
        device: auto, cpu, cuda or mps.
        seed: of the division into folds.
        epochs: instead of the recipe's, for quick tries.
        reporter: called with the progress.

    Returns:
        The cards as registered; a model that was retrained meanwhile is left out.

    Raises:
        ml.dataset.records.RecordsError: database or images are missing or damaged.
        ml.evaluation.folds.FoldError: there are too few cases.
        ml.registry.artifacts.BusyError: another process does the same.
        ml.registry.registry.RegistryError: a model is not registered, or its files cannot be read or written.
    """
    registry = Registry(database, models_dir)
    cards = {name: registry.get(name) for name in names}
    records = [record for split in ("train", "dev") for record in load_records(database, images_dir, (split,))]
    order = with_needs(names)
    init = {card.name: card.init for card in registry.cards()}
    options = {name: Options(weights=init.get(name, "auto"), seed=seed, epochs=epochs) for name in order}
    scratch = Scratch(models_dir / ".training")
    folder = scratch.folder("oof", records, options)
    with exclusive_lock("the models are being calibrated out of fold", folder):
        folds = list(make_folds(records, FOLDS, seed))
        pooled = predict_folds(order, folds, options, pick_device(device), folder, reporter)
        done = []
        for name, card in cards.items():
            model = load_model(card, models_dir)
            recalibrate(model, pooled[name])
            dev = [record for record in records if record.split == "dev"]
            outputs = None if model.preprocess is None else run_images(model, load_images(dev, model.preprocess))
            score_on_dev(model, outputs, run_captions(model, captions_of(dev)), dev)
            if registry.get(name).version != card.version:
                _LOG.warning("%s was retrained meanwhile; it is calibrated by the next run", name)
                continue
            # Test figures are those of the temperatures and thresholds before.
            model.card.metrics.pop("test", None)
            reference = load_reference(card, models_dir)
            model.card.version = new_version(now())
            done.append(registry.register(model, reference))
    scratch.clear()
    return done


def predict_folds(
    order: Sequence[str],
    folds: Sequence[Fold],
    options: dict[str, Options],
    device: torch.device,
    folder: Path,
    reporter: Reporter,
) -> dict[str, Pooled]:
    """Train models on the rest of each fold, and predict the images held out.

    Args:
        order: names of models, each after those that it builds on.
        folds: of the records; each model learns from ``train`` and ``dev``: nothing is chosen in a fold.
        options: of each model.
        device: to compute on.
        folder: for checkpoints.
        reporter: called with the progress.
    """
    pooled: dict[str, Pooled] = {name: Pooled() for name in order}
    images: dict[str, dict[str, NDArray[np.uint8]]] = {}
    for number, fold in enumerate(folds, start=1):
        trained, learned = TrainedModels(), [*fold.train, *fold.dev]
        computed: dict[int, tuple[Outputs, NDArray[np.bool_]]] = {}
        for name in order:
            with Run(f"{name}, calibration {number} of {len(folds)}", MODEL_SPECS[name].tasks, reporter) as run:
                checkpoints = folder / f"fold-{number}" / name
                context = Context(learned, fold.dev, trained, device, Team(), run, options[name], checkpoints, images)
                trained.models[name] = model = MODEL_SPECS[name].train(context)
                outputs, ood = None, np.zeros(len(fold.held_out), dtype=np.bool_)
                if model.preprocess is not None:
                    # Models that share a network, as a fused one and its half, share its outputs.
                    if id(model.network) not in computed:
                        computed[id(model.network)] = _outputs(model, context, fold)
                    outputs, ood = computed[id(model.network)]
                encoded = run_captions(model, captions_of(fold.held_out))
                pooled[name].add(number, fold.held_out, outputs, encoded, ood)
    return pooled


def _outputs(model: ServedModel, context: Context, fold: Fold) -> tuple[Outputs, NDArray[np.bool_]]:
    """What the image half gives for the images held out, and which are out of distribution.

    The rule is that of the service: as many of the images held out are beyond it as of dev are beyond the threshold of
    a registered model.
    """
    assert model.preprocess is not None
    outputs = run_images(model, context.images(fold.held_out, model.preprocess))
    assert outputs is not None
    if EMBEDDING not in outputs:
        return outputs, np.zeros(len(fold.held_out), dtype=np.bool_)
    learned = run_images(model, context.images(context.train, model.preprocess))
    assert learned is not None
    reference = Reference.build(
        [record.image for record in context.train],
        np.ones(len(context.train), dtype=np.bool_),
        learned[EMBEDDING],
        learned.get(STAGES),
    )
    distances = reference.distance_by(model.card.ood_distance)(outputs)
    return outputs, distances > np.quantile(distances, OOD_QUANTILE)


def recalibrate(model: ServedModel, pooled: Pooled) -> None:
    """Set temperatures, thresholds and the figures out of fold on the card of a model and of its parts.

    The figures come from thresholds that were chosen without the fold that they are measured on. Where fewer of these
    confident answers are right than ``TARGET_ACCURACY``, no answer of the task is confident any more.
    """
    card = model.card
    figures: dict[str, list[LabelledPredictions]] = {task: [] for task in card.tasks}
    sure: dict[str, list[NDArray[np.bool_]]] = {task: [] for task in card.tasks}
    numbers = np.unique(pooled.fold).tolist()
    for number in numbers if len(numbers) > 1 else ():
        # A threshold is not measured on the images that it was chosen on.
        _set(model, pooled.only(pooled.fold != number))
        held_out = pooled.only(pooled.fold == number)
        has_text = has_caption(held_out.encoded, len(held_out.records))
        for task, own in label_predictions(model.combine(held_out.outputs, held_out.encoded), held_out.records).items():
            figures[task].append(own)
            labelled = np.array([record.label(task) is not None for record in held_out.records])
            limits = np.array([card.threshold(task, with_caption=bool(row)) for row in has_text])
            answered = own.probabilities.max(axis=1) >= limits[labelled]
            sure[task].append(answered & ~held_out.ood[labelled])
    _set(model, pooled)
    card.calibrated_on = "out-of-fold"
    card.metrics[METRICS] = {
        task: _figures(LabelledPredictions.concatenate(parts), np.concatenate(sure[task]))
        for task, parts in figures.items()
        if parts
    }
    for task, measured in card.metrics[METRICS].items():
        confident = measured["confident"]
        if confident["n"] and confident["accuracy"] >= TARGET_ACCURACY[task]:
            continue
        # A threshold that keeps what it promises on some patients and not on others is none: no answer is confident.
        for thresholds in (card.thresholds, card.thresholds_image_only):
            thresholds.update({key: NEVER_CONFIDENT for key in thresholds if key == task})
        nobody = {"coverage": 0.0, "n": 0, "cases": 0, "accuracy": None, "accuracy_95": None}
        measured["confident"] = nobody | ({"withdrawn": confident} if confident["n"] else {})


def _set(model: ServedModel, pooled: Pooled) -> None:
    for part in model.parts:
        outputs = pooled.outputs if "image" in part.inputs else None
        encoded = pooled.encoded if "caption" in part.inputs else None
        set_calibration(part, outputs, encoded, pooled.records, pooled.ood)
    outputs = pooled.outputs if "image" in model.inputs else None
    set_calibration(model, outputs, pooled.encoded, pooled.records, pooled.ood)


def _figures(predictions: LabelledPredictions, sure: NDArray[np.bool_]) -> dict[str, Any]:
    """Scores, and coverage and accuracy of the confident answers."""
    confident = {"coverage": float(sure.mean())} | short(predictions.only(sure))
    measured = scores(predictions.probabilities, predictions.targets, predictions.groups)
    return measured | {"folds": FOLDS, "confident": confident}
