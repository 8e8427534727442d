"""EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946) on all three tasks, fine-tuned from ImageNet weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import timm
from torch import Tensor, nn

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.models.image_model import ImageModel
from ml.models.network import MultiTaskNetwork
from ml.training.context import Context
from ml.training.loop import Recipe
from ml.training.phases import READING, Phase, examples_of, fine_tuning, recipes_to_json, train_members
from ml.training.pretrained import WeightsError, efficientnet_state

NAME: Final = "efficientnet"
FAMILY: Final = "efficientnet"
_ARCHITECTURE: Final = "tf_efficientnet_lite0"
_TASK_WEIGHTS: Final[Mapping[str, float]] = {**dict.fromkeys(labels.TASKS, 1.0), labels.PLANE: 0.5}


@dataclass(frozen=True, slots=True)
class EfficientNetSettings:
    """Both ways to train.

    From ImageNet weights the heads are trained first and all layers after them: LP-FT (Kumar et al.
    2022, arXiv 2202.10054) keeps what pretraining learned.

    Attributes:
        dropout: share of pooled features dropped in training.
        members: networks of the ensemble.
        preprocess: of the images; the grey image stands in all three channels.
        head: recipe of the heads alone, from pretrained weights.
        tune: recipe of all layers, from pretrained weights.
        backbone_rate: factor on the learning rate of the backbone while all layers are tuned.
        scratch: recipe from random weights.
    """

    dropout: float = 0.3
    members: int = 1
    preprocess: Preprocess = field(
        default_factory=lambda: Preprocess(
            size=192, channels=3, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
    )
    head: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=3, batch_size=32, learning_rate=3e-3, ema_decay=0.98, task_weights=_TASK_WEIGHTS
        )
    )
    tune: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=12, batch_size=32, learning_rate=1e-3, ema_decay=0.99, task_weights=_TASK_WEIGHTS
        )
    )
    backbone_rate: float = 0.3
    scratch: Recipe = field(default_factory=lambda: Recipe(epochs=60, task_weights=_TASK_WEIGHTS))

    def architecture(self) -> dict[str, Any]:
        """What is needed to build the network again."""
        return {"dropout": self.dropout, "members": self.members}


class EfficientNetBackbone(nn.Module):
    """EfficientNet-Lite0 of timm up to its last feature map."""

    def __init__(self) -> None:
        super().__init__()
        body: Any = timm.create_model(_ARCHITECTURE, pretrained=False, num_classes=0, global_pool="")
        self.body: Any = body
        self.features: int = body.num_features

    @property
    def stages(self) -> list[int]:
        """The number of blocks of each stage."""
        return [len(stage) for stage in self.body.blocks]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to a feature map (N, 1280, H / 32, W / 32)."""
        features: Tensor = self.body.forward_features(x)
        return features

    def forward_stages(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Normalised images to the last feature map, and the feature maps of the seven stages."""
        x = self.body.bn1(self.body.conv_stem(x))
        maps = []
        for stage in self.body.blocks:
            x = stage(x)
            maps.append(x)
        return self.body.bn2(self.body.conv_head(x)), maps

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a state dict, with the names of timm or of ``efficientnet_pytorch``.

        Raises:
            WeightsError: they are those of another network.
        """
        try:
            if any(name.startswith("_blocks.") for name in state):
                state = to_timm(state, self.stages)
            self.body.load_state_dict({name: t for name, t in state.items() if not name.startswith("classifier.")})
        except (KeyError, IndexError, RuntimeError) as error:
            raise WeightsError(f"the weights are not those of an EfficientNet-Lite0: {error}") from error


_BLOCK: Final = re.compile(r"_blocks\.(\d+)\.(_\w+)\.(\w+)")
_OUTSIDE: Final = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDING: Final = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE: Final = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def to_timm(state: Mapping[str, Tensor], stages: list[int]) -> dict[str, Tensor]:
    """The weights of ``efficientnet_pytorch``, which counts its blocks through, under the names of timm.

    Args:
        state: the state dict to rename.
        stages: number of blocks of each stage.

    Raises:
        KeyError: a name is not one of such a network.
        IndexError: there are more blocks than the stages hold.
    """
    prefixes = [f"blocks.{stage}.{index}" for stage, count in enumerate(stages) for index in range(count)]
    renamed = {}
    for name, value in state.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            part, _, parameter = name.rpartition(".")
            renamed[f"{_OUTSIDE[part]}.{parameter}"] = value
            continue
        block, part, parameter = match.groups()
        names = _EXPANDING if f"_blocks.{block}._expand_conv.weight" in state else _SEPARABLE
        renamed[f"{prefixes[int(block)]}.{names[part]}.{parameter}"] = value
    return renamed


class EfficientNetModel(ImageModel):
    """Modality, location and location category from the image alone."""

    @staticmethod
    def build(architecture: Mapping[str, Any]) -> MultiTaskNetwork:
        """An untrained network with heads for the tasks and the plane."""
        backbone = EfficientNetBackbone()
        classes = {task: len(names) for task, names in labels.TASKS.items()} | {labels.PLANE: len(labels.PLANES)}
        return MultiTaskNetwork(backbone, backbone.features, classes, architecture["dropout"])


def train(context: Context, settings: EfficientNetSettings | None = None) -> EfficientNetModel:
    """Train the ensemble, one member after the other.

    Raises:
        ml.dataset.records.RecordsError: images are missing or damaged.
        WeightsError: the pretrained weights asked for cannot be had.
    """
    settings = settings or EfficientNetSettings()
    settings = replace(settings, members=context.options.members_or(settings.members))
    state, source = efficientnet_state(context.options.weights)
    init: Literal["pretrained", "scratch"] = "scratch" if state is None else "pretrained"
    head, tune, scratch = (
        context.recipe(recipe, depthwise=True) for recipe in (settings.head, settings.tune, settings.scratch)
    )
    phases = [Phase("scratch", scratch, {})]
    if state is not None:
        phases = fine_tuning(head, tune, {"backbone": settings.backbone_rate, "heads": 1.0})
    with context.run.stage(0.0, READING):
        pixels = context.images(context.train, settings.preprocess)
        examples = examples_of(context.train, pixels, phases[0].recipe)

    def build() -> MultiTaskNetwork:
        network = EfficientNetModel.build(settings.architecture())
        if state is not None:
            assert isinstance(network.backbone, EfficientNetBackbone)
            network.backbone.load_pretrained(state)
        return network

    members = train_members(context, build, examples, phases, settings.preprocess, settings.members)
    card = context.draft_card(
        NAME,
        FAMILY,
        tasks=tuple(labels.TASKS),
        inputs=("image",),
        preprocess=settings.preprocess,
        settings={"architecture": settings.architecture(), "recipes": recipes_to_json(phases)},
        init=init,
        weights_source=source,
        ood_distance="stages",
    )
    return EfficientNetModel(card, members)
