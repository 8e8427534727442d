"""Retrains models for cross-validation and multi-seed runs; they are never registered."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ml.dataset.records import Record, snapshot_hash
from ml.evaluation.folds import FOLDS, make_folds
from ml.evaluation.metrics import brier, scores
from ml.evaluation.model_outputs import ImageCache, ModelOutputs
from ml.evaluation.scoring import SCORES, LabelledPredictions, measure
from ml.models.base import ServedModel
from ml.models.model_specs import MODEL_SPECS
from ml.registry.model_card import ModelCard, now
from ml.registry.registry import UnknownModelError
from ml.training.context import Context, Options
from ml.training.device import Team
from ml.training.progress import Reporter, Run
from ml.training.train import calibrate

# By model and task.
Figures = dict[str, dict[str, Any]]
# Where the families keep what was chosen before training; the rest of a card's settings is learned.
_RECIPE: Final = ("architecture", "recipe", "recipes", "head", "fit", "descriptors", "sentence_encoder")
_FORGET_AFTER_S: Final = 30 * 24 * 3600.0


class Scratch:
    """Folders for the checkpoints of such trainings, so that hours are not lost to a full disk.

    Args:
        root: the folder that holds them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._used: list[Path] = []

    def folder(self, kind: str, records: Sequence[Record], options: Mapping[str, Options]) -> Path:
        """The folder for trainings on these records with these options; checkpoints of others are not taken up.

        Args:
            kind: what the trainings are for, as a part of a file name.
            records: that are trained on and scored.
            options: of each model.
        """
        chosen = {name: asdict(option) for name, option in options.items()}
        text = snapshot_hash(records) + json.dumps(chosen, sort_keys=True)
        path = self._root / f"retrain-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._used.append(path)
        return path

    def clear(self) -> None:
        """Remove the folders that were asked for, once what they led to is written, and those of a month ago."""
        for path in self._root.glob("retrain-*"):
            if path in self._used or time.time() - path.stat().st_mtime > _FORGET_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)


@dataclass(slots=True)
class TrainedModels:
    """The models that were trained together, kept in memory for those that build on them."""

    models: dict[str, ServedModel] = field(default_factory=dict)

    def load(self, name: str) -> ServedModel:
        """A model that was kept.

        Raises:
            UnknownModelError: it was not.
        """
        if name not in self.models:
            raise UnknownModelError(f"no model {name!r} was trained beside this one")
        return self.models[name]


@dataclass(slots=True)
class RetrainSettings:
    """What all trainings of one evaluation share.

    Attributes:
        device: where to train.
        scratch: folder for checkpoints.
        reporter: called with the progress.
        options: of each model.
        images: decoded so far, see ``ml.training.context.Context``.
    """

    device: torch.device
    scratch: Path
    reporter: Reporter
    options: Mapping[str, Options]
    images: dict[str, dict[str, NDArray[np.uint8]]] = field(default_factory=dict)


def with_needs(names: Sequence[str]) -> list[str]:
    """The models, each after those that it builds on.

    Raises:
        UnknownModelError: a model has no recipe.
    """
    unknown = [name for name in names if name not in MODEL_SPECS]
    if unknown:
        raise UnknownModelError(f"{', '.join(unknown)} cannot be retrained; known are: {', '.join(MODEL_SPECS)}")
    return list(dict.fromkeys(step for name in names for step in (*MODEL_SPECS[name].needs, name)))


@dataclass(frozen=True, slots=True)
class Part:
    """One training of several, and the records that its models are scored on.

    Attributes:
        name: for the progress, as "fold 1 of 5".
        train: records to learn from.
        dev: records to choose and calibrate on.
        scored: records to predict.
        seed: random seed instead of that of the options, None to keep it.
    """

    name: str
    train: list[Record]
    dev: list[Record]
    scored: list[Record]
    seed: int | None = None


def retrain(
    names: Sequence[str], parts: Sequence[Part], settings: RetrainSettings
) -> dict[str, tuple[ModelCard, dict[str, list[LabelledPredictions]]]]:
    """Retrain models for every part with their own recipes, calibrate them on its dev records, and score them.

    A run that was stopped resumes from the checkpoints in the scratch folder, which is left there.

    Args:
        names: keys of ``ml.models.model_specs.MODEL_SPECS``, each after those that it builds on.
        parts: what to train and score on.
        settings: device, folder, options.

    Returns:
        By name the card of the first part, and per task the predictions of each part.
    """
    predictions: dict[str, dict[str, list[LabelledPredictions]]] = {name: {} for name in names}
    cards: dict[str, ModelCard] = {}
    for part in parts:
        trained, image_cache = TrainedModels(), ImageCache()
        for name in names:
            model = _train(name, part, trained, settings)
            trained.models[name] = model
            cards.setdefault(name, model.card)
            for task, own in ModelOutputs.compute(model, part.scored, image_cache).predictions().items():
                predictions[name].setdefault(task, []).append(own)
    return {name: (cards[name], predictions[name]) for name in names}


def _train(name: str, part: Part, trained: TrainedModels, settings: RetrainSettings) -> ServedModel:
    options = settings.options[name]
    with Run(f"{name}, {part.name}", MODEL_SPECS[name].tasks, settings.reporter) as run:
        context = Context(
            train=part.train,
            dev=part.dev,
            registry=trained,
            device=settings.device,
            team=Team(),
            run=run,
            options=options if part.seed is None else replace(options, seed=part.seed),
            checkpoint_dir=settings.scratch / part.name.replace(" ", "-") / name,
            image_cache=settings.images,
        )
        model = MODEL_SPECS[name].train(context)
        calibrate(model, context)
    return model


class Retrainer:
    """Retrains models in folds or with other seeds and scores them; never registers them.

    Args:
        by_split: all records by split.
        registered: the cards of the registered models by name.
        device: where to train.
        scratch: keeps the checkpoints.
        reporter: called with the progress.
        options: of the trainings; ``weights`` "auto" is what the registered model began from.
    """

    def __init__(
        self,
        by_split: Mapping[str, list[Record]],
        registered: Mapping[str, ModelCard],
        device: torch.device,
        scratch: Scratch,
        reporter: Reporter,
        options: Options,
    ) -> None:
        self._splits, self._registered = by_split, registered
        self._records = [record for members in by_split.values() for record in members]
        self._device, self._scratch, self._reporter, self._options = device, scratch, reporter, options

    def folds(self, names: Sequence[str], count: int = FOLDS) -> Figures:
        """Scores of cross-validation over all records, of the models and of those that they build on.

        Raises:
            ml.evaluation.folds.FoldError: there are too few cases.
        """
        folds = make_folds(self._records, count, self._options.seed)
        parts = [
            Part(f"fold {number} of {count}", fold.train, fold.dev, fold.held_out)
            for number, fold in enumerate(folds, start=1)
        ]
        return self._scored("cv", names, parts, pool)

    def seeds(self, names: Sequence[str], split: str, count: int) -> Figures:
        """Mean and standard deviation over ``count`` seeds, of the models and of those that they build on."""
        splits, first = self._splits, self._options.seed
        parts = [
            Part(f"seed {seed}", splits["train"], splits["dev"], splits[split], seed)
            for seed in range(first, first + count)
        ]
        return self._scored("seeds", names, parts, lambda scored: spread(scored, [part.seed for part in parts]))

    def on_cards(self, names: Sequence[str], kind: str) -> Figures:
        """Scores that were put on the cards before, as far as they are of the same data.

        Args:
            names: of registered models.
            kind: cv or seeds.
        """
        snapshot = snapshot_hash(self._records)
        rows = {
            name: {
                task: figures
                for task, figures in self._registered[name].metrics.get(kind, {}).items()
                if figures.get("run", {}).get("snapshot") == snapshot
            }
            for name in names
        }
        return {name: tasks for name, tasks in rows.items() if tasks}

    def _scored(
        self,
        kind: str,
        names: Sequence[str],
        parts: Sequence[Part],
        score: Callable[[Sequence[LabelledPredictions]], dict[str, Any]],
    ) -> Figures:
        order = with_needs(names)
        options = {name: self._options_of(name) for name in order}
        folder = self._scratch.folder(kind, self._records, options)
        settings = RetrainSettings(self._device, folder, self._reporter, options)
        return {
            name: {
                task: score(predictions)
                | {"run": provenance(card, self._registered.get(name), self._records, options[name])}
                for task, predictions in tasks.items()
            }
            for name, (card, tasks) in retrain(order, parts, settings).items()
        }

    def _options_of(self, name: str) -> Options:
        if name not in self._registered or self._options.weights != "auto":
            return self._options
        card = self._registered[name]
        return replace(self._options, weights=card.settings.get("weights", card.init))


def pool(folds: Sequence[LabelledPredictions]) -> dict[str, Any]:
    """The scores of all folds together, and the accuracy of each with mean and standard deviation."""
    accuracies = [float(fold.correct.mean()) if len(fold.targets) else None for fold in folds]
    measured = [value for value in accuracies if value is not None]
    return measure(LabelledPredictions.concatenate(folds)) | {
        "folds": accuracies,
        "folds_mean": float(np.mean(measured)),
        "folds_sd": float(np.std(measured, ddof=1)) if len(measured) > 1 else None,
    }


def spread(predictions: Sequence[LabelledPredictions], seeds: Sequence[int | None]) -> dict[str, Any]:
    """The seeds and the scores, each with its value for every seed, their mean and their standard deviation."""
    rows = [
        scores(part.probabilities, part.targets, part.groups) | {"brier": brier(part.probabilities, part.targets)}
        for part in predictions
    ]
    figures = {}
    for name in SCORES:
        values = [float(row[name]) for row in rows]
        figures[name] = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)), "values": values}
    return {"n": len(predictions[0].targets), "seeds": list(seeds), "figures": figures}


def provenance(
    card: ModelCard, registered: ModelCard | None, records: Sequence[Record], options: Options
) -> dict[str, Any]:
    """How the figures of such trainings came about, as JSON values.

    Args:
        card: of one of the trained models.
        registered: of the registered model of that name, if there is one.
        records: that were trained on and scored.
        options: of the trainings.

    Returns:
        images, snapshot, options, init, measured_at, and official: whether the figures may stand for
        the registered model, which they may not after a quick try or with another recipe.
    """
    quick = options.epochs is not None or options.members is not None
    same = (
        registered is not None
        and (card.init, card.weights_source) == (registered.init, registered.weights_source)
        and _recipe(card) == _recipe(registered)
    )
    return {
        "images": len(records),
        "snapshot": snapshot_hash(records),
        "options": {key: value for key, value in asdict(options).items() if key != "resume"},
        "init": card.init,
        "official": same and not quick,
        "measured_at": now().isoformat(),
    }


def _recipe(card: ModelCard) -> str:
    return json.dumps({"preprocess": card.preprocess_hash, "settings": _chosen(card.settings)}, sort_keys=True)


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen before training, of a model and of those that it is made of."""
    # A fusion has its halves under "halves", that of the texture its network under "image".
    halves = dict(settings.get("halves", {})) | {key: settings[key] for key in ("image",) if key in settings}
    own = {key: settings[key] for key in _RECIPE if key in settings}
    return own | {"halves": {key: [half["name"], _chosen(half["settings"])] for key, half in sorted(halves.items())}}
