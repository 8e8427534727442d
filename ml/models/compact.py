"""A small residual network trained from scratch on all three tasks at once; an ensemble of seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.models.image_model import ImageModel
from ml.models.network import CompactBackbone, MultiTaskNetwork
from ml.training.context import Context
from ml.training.loop import Recipe
from ml.training.phases import READING, Phase, examples_of, train_members

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
    settings = settings or CompactSettings()
    members, recipe = context.options.members_or(settings.members), context.recipe(settings.recipe)
    settings = replace(settings, members=members, recipe=recipe)
    with context.run.stage(0.0, READING):
        examples = examples_of(context.train, context.images(context.train, settings.preprocess), recipe)
    networks = train_members(
        context,
        lambda: CompactModel.build(settings.architecture()),
        examples,
        [Phase("scratch", recipe, {})],
        settings.preprocess,
        members,
    )
    card = context.draft_card(
        NAME,
        FAMILY,
        tasks=tuple(labels.TASKS),
        inputs=("image",),
        preprocess=settings.preprocess,
        settings={"architecture": settings.architecture(), "recipe": recipe.to_json()},
    )
    return CompactModel(card, networks)
