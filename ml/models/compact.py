"""A small residual network trained from scratch on all three tasks at once; an ensemble of seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.models.image_model import ImageModel
from ml.models.network import CompactBackbone, MultiTaskNetwork
from ml.training.context import Context
from ml.training.loop import Examples, Recipe, fit
from ml.training.phases import READING, examples_of, member_span

NAME: Final = "compact"
FAMILY: Final = "compact"


@dataclass(frozen=True, slots=True)
class CompactSettings:
    """Architecture and recipe.

    Attributes:
        width: channels after the stem; 64 is ResNet18's.
        blocks: residual blocks per stage.
        dropout: share of pooled features dropped in training.
        members: networks of the ensemble.
        preprocess: of every member.
        recipe: of every member; their seeds differ.
    """

    width: int = 32
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    dropout: float = 0.2
    members: int = 2
    preprocess: Preprocess = field(default_factory=Preprocess)
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            task_weights={**dict.fromkeys(labels.TASKS, 1.0), labels.PLANE: 0.5},
        )
    )

    def architecture(self) -> dict[str, Any]:
        """What is needed to build the network again."""
        return {
            "channels": self.preprocess.channels,
            "width": self.width,
            "blocks": list(self.blocks),
            "dropout": self.dropout,
            "members": self.members,
        }


class CompactModel(ImageModel):
    """The image model of the service: modality, location and location category from the image alone."""

    @staticmethod
    def build(architecture: Mapping[str, Any]) -> MultiTaskNetwork:
        """An untrained network with heads for the tasks and the plane."""
        backbone = CompactBackbone(architecture["channels"], architecture["width"], architecture["blocks"])
        classes = {task: len(names) for task, names in labels.TASKS.items()} | {labels.PLANE: len(labels.PLANES)}
        return MultiTaskNetwork(backbone, backbone.features, classes, architecture["dropout"])


def train(context: Context, settings: CompactSettings | None = None) -> CompactModel:
    """Train the ensemble, one member after the other.

    Args:
        context: records, device and reporter.
        settings: architecture and recipe; the chosen ones by default.

    Raises:
        ml.dataset.records.RecordsError: images are missing or damaged.
    """
    settings = _with_options(settings or CompactSettings(), context)
    with context.run.stage(0.0, READING):
        examples = examples_of(context.train, context.images(context.train, settings.preprocess), settings.recipe)
    members = []
    for index in range(settings.members):
        with context.run.stage(*member_span(index, settings.members)):
            members.append(train_member(context, settings, examples, index))
    card = context.draft_card(
        NAME,
        FAMILY,
        tasks=tuple(labels.TASKS),
        inputs=("image",),
        preprocess=settings.preprocess,
        settings={"architecture": settings.architecture(), "recipe": settings.recipe.to_json()},
    )
    return CompactModel(card, members)


def train_member(context: Context, settings: CompactSettings, examples: Examples, index: int) -> MultiTaskNetwork:
    """Train one network of the ensemble."""
    recipe, run = settings.recipe, context.run
    seed = context.options.seed * 100 + index
    label = f"network {index + 1} of {settings.members}"

    def on_epoch(epoch: int, loss: float) -> None:
        run.epoch(label, epoch, recipe.epochs, loss)

    torch.manual_seed(seed)
    network = CompactModel.build(settings.architecture())
    fit(
        network,
        examples,
        recipe,
        mean=settings.preprocess.mean,
        std=settings.preprocess.std,
        seed=seed,
        device=context.device,
        team=context.team,
        checkpoint=context.checkpoint(f"member-{index}"),
        on_epoch=on_epoch,
    )
    return network


def _with_options(settings: CompactSettings, context: Context) -> CompactSettings:
    options = context.options
    if options.epochs is not None:
        settings = replace(settings, recipe=replace(settings.recipe, epochs=options.epochs))
    if options.members is not None:
        settings = replace(settings, members=options.members)
    return settings
