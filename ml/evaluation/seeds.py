"""How much of a figure is luck: the same model trained with several seeds on the dataset's own splits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ml.dataset.records import Record
from ml.evaluation.metrics import brier, scores
from ml.evaluation.retrain import Surroundings, train_and_ask
from ml.evaluation.scoring import Answers
from ml.registry.model_card import ModelCard

FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "ece", "nll", "brier")


def repeat(
    names: Sequence[str],
    splits: Mapping[str, list[Record]],
    split: str,
    seeds: Sequence[int],
    around: Surroundings,
) -> dict[str, tuple[ModelCard, dict[str, dict[str, Any]]]]:
    """Train models with every seed on the train split, calibrate them on dev, and score them on a split.

    A run that was stopped goes on from the checkpoints in the scratch folder, which is left there.

    Args:
        names: keys of ``ml.training.train.PLANS``, each after those that it builds on.
        splits: records of every split.
        split: to score.
        seeds: at least two.
        around: device, folder, options; their seeds are replaced.

    Returns:
        By name the card of the first seed, and per task the seeds and the figures, each with its
        values in the order of the seeds, their mean and their standard deviation.
    """
    parts: dict[str, dict[str, list[Answers]]] = {name: {} for name in names}
    cards: dict[str, ModelCard] = {}
    for seed in seeds:
        with_seed = {name: replace(options, seed=seed) for name, options in around.options.items()}
        found = train_and_ask(
            names,
            train=splits["train"],
            dev=splits["dev"],
            asked=splits[split],
            around=replace(around, options=with_seed),
            part=f"seed {seed}",
        )
        for name, (card, answers) in found.items():
            cards.setdefault(name, card)
            for task, own in answers.items():
                parts[name].setdefault(task, []).append(own)
    return {
        name: (cards[name], {task: _spread(own, seeds) for task, own in tasks.items()}) for name, tasks in parts.items()
    }


def _spread(parts: Sequence[Answers], seeds: Sequence[int]) -> dict[str, Any]:
    scored = [
        scores(part.probabilities, part.targets, part.groups) | {"brier": brier(part.probabilities, part.targets)}
        for part in parts
    ]
    figures = {}
    for name in FIGURES:
        values = [float(row[name]) for row in scored]
        figures[name] = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)), "values": values}
    return {"n": len(parts[0].targets), "seeds": list(seeds), "figures": figures}
