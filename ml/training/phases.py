"""Trains one network in phases, each with a recipe of its own, as LP-FT does: first the heads, then all layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record, groups, plane_targets, targets
from ml.training.context import Context
from ml.training.loop import Examples, Recipe, fit, make_examples

_Network = TypeVar("_Network", bound=nn.Module)
# Share of a run's time that goes into reading the images.
READING: Final = 0.02
# An epoch that trains the heads alone needs no backward pass through the backbone.
_FROZEN_EPOCH: Final = 0.4


class Phase(NamedTuple):
    """A part of a training.

    Attributes:
        name: for the checkpoint, the history and the settings on the card.
        recipe: of the phase.
        rates: factor on the learning rate by prefix of the parameter's name, see ``ml.training.loop.fit``.
    """

    name: str
    recipe: Recipe
    rates: Mapping[str, float]

    @property
    def cost(self) -> float:
        """Expected time of the phase, in epochs that train all layers."""
        return self.recipe.epochs * (_FROZEN_EPOCH if 0.0 in self.rates.values() else 1.0)


def fine_tuning(head: Recipe, tune: Recipe, tune_rates: Mapping[str, float]) -> list[Phase]:
    """The phases from pretrained weights (LP-FT, Kumar et al. 2022, arXiv 2202.10054).

    Args:
        head: recipe of the heads alone, on frozen features.
        tune: recipe of all layers.
        tune_rates: factor on the learning rate by prefix of the parameter's name, while all layers are tuned.
    """
    return [Phase("head", head, {"backbone": 0.0, "heads": 1.0}), Phase("tune", tune, tune_rates)]


def examples_of(records: Sequence[Record], pixels: NDArray[np.uint8], recipe: Recipe) -> Examples:
    """Images, uint8 (N, channels, size, size), with the targets (N,) of the recipe's tasks."""
    task_targets = {task: targets(records, task) for task in labels.TASKS} | {labels.PLANE: plane_targets(records)}
    chosen = {task: task_targets[task] for task in recipe.task_weights}
    return make_examples(pixels, chosen, groups(records))


def train_members(
    context: Context,
    build: Callable[[], _Network],
    examples: Examples,
    phases: Sequence[Phase],
    preprocess: Preprocess,
    members: int = 1,
) -> list[_Network]:
    """Train the networks of an ensemble one after the other, once the images are read; their seeds differ.

    Args:
        context: device, processes and the run to report to.
        build: makes a network with its starting weights.
        examples: to learn from.
        phases: of each network, in order.
        preprocess: of the images.
        members: number of networks.
    """
    networks = []
    for index in range(members):
        seed = context.options.seed * 100 + index
        torch.manual_seed(seed)
        networks.append(build())
        start, end = (READING + (1.0 - READING) * done / members for done in (index, index + 1))
        with context.run.stage(start, end):
            train_phases(
                context,
                networks[-1],
                examples,
                phases,
                preprocess,
                seed=seed,
                prefix=f"member-{index}-",
                label=f"network {index + 1} of {members}, " if members > 1 else "",
            )
    return networks


def train_phases(
    context: Context,
    network: nn.Module,
    examples: Examples,
    phases: Sequence[Phase],
    preprocess: Preprocess,
    *,
    seed: int,
    prefix: str = "",
    label: str = "",
) -> None:
    """Train a network in place, one phase after the other; each resumes from its own checkpoint.

    Args:
        context: device, processes and the run to report to.
        network: normalised images to logits per task.
        examples: to learn from.
        phases: in order.
        preprocess: of the images; its mean and standard deviation normalise them.
        seed: random seed of every phase.
        prefix: of the checkpoints' names, where several networks are trained.
        label: of the network in the progress, as "network 1 of 2, ".
    """
    total, done = sum(phase.cost for phase in phases), 0.0
    for phase in phases:
        name, epochs = f"{label}{phase.name}", phase.recipe.epochs

        def on_epoch(epoch: int, loss: float, name: str = name, epochs: int = epochs) -> None:
            context.run.epoch(name, epoch, epochs, loss)

        with context.run.stage(done / total, (done + phase.cost) / total):
            fit(
                network,
                examples,
                phase.recipe,
                mean=preprocess.mean,
                std=preprocess.std,
                seed=seed,
                device=context.device,
                team=context.team,
                rates=phase.rates,
                checkpoint=context.checkpoint(f"{prefix}{phase.name}"),
                on_epoch=on_epoch,
            )
        done += phase.cost


def recipes_to_json(phases: Sequence[Phase]) -> dict[str, Any]:
    """The recipes by phase, with the factors on their learning rates, for the settings of a card."""
    return {phase.name: phase.recipe.to_json() | {"rates": dict(phase.rates)} for phase in phases}
