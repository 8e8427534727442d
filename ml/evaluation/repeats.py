"""Figures from several trainings: folds and seeds, measured now or as they stand on the cards."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ml.dataset.records import Record, snapshot_hash
from ml.evaluation.folds import cross_validate
from ml.evaluation.retrain import Scratch, Surroundings, provenance, with_needs
from ml.evaluation.seeds import repeat
from ml.registry.model_card import ModelCard
from ml.training.context import Options
from ml.training.progress import Reporter

Figures = dict[str, dict[str, Any]]


class Repeats:
    """Trains models anew and scores them; what it gives is by model and task.

    Args:
        by_split: all records by split.
        registered: the cards of the registered models by name.
        device: where to train.
        scratch: keeps the checkpoints.
        reporter: told about progress.
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

    def folds(self, names: Sequence[str]) -> Figures:
        """Figures of cross-validation over all records, of the models and of those that they build on."""
        order = with_needs(names)
        around = self._around("cv", order)
        return self._described(cross_validate(order, self._records, around, seed=self._options.seed), around)

    def seeds(self, names: Sequence[str], split: str, count: int) -> Figures:
        """Mean and standard deviation over ``count`` seeds, of the models and of those that they build on."""
        order = with_needs(names)
        around = self._around("seeds", order)
        first = self._options.seed
        return self._described(repeat(order, self._splits, split, range(first, first + count), around), around)

    def on_cards(self, names: Sequence[str], kind: str) -> Figures:
        """Figures that were put on the cards before, as far as they are of the same data.

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

    def _around(self, kind: str, order: Sequence[str]) -> Surroundings:
        options = {name: self._options_of(name) for name in order}
        folder = self._scratch.folder(kind, self._records, options)
        return Surroundings(self._device, folder, self._reporter, options)

    def _options_of(self, name: str) -> Options:
        if name not in self._registered or self._options.weights != "auto":
            return self._options
        return replace(self._options, weights=self._registered[name].init)

    def _described(
        self, found: Mapping[str, tuple[ModelCard, dict[str, dict[str, Any]]]], around: Surroundings
    ) -> Figures:
        return {
            name: {
                task: figures
                | {"run": provenance(card, self._registered.get(name), self._records, around.options[name])}
                for task, figures in tasks.items()
            }
            for name, (card, tasks) in found.items()
        }
