"""ResNet50 of torchvision: fine-tuned from ImageNet where its weights can be had, else trained from scratch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from torch import Tensor, nn
from torchvision.models import resnet50

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.models.image_model import ImageModel
from ml.models.network import MultiTaskNetwork
from ml.training.augment import Augment
from ml.training.context import Context, logit_adjustment
from ml.training.loop import Recipe
from ml.training.phases import READING, Phase, examples_of, fine_tuning, recipes_to_json, train_members
from ml.training.pretrained import WeightsError, resnet50_state

FAMILY: Final = "resnet"
_FEATURES: Final = 2048
_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)
_AUGMENT: Final = Augment(shift=0.15)


@dataclass(frozen=True, slots=True)
class ResNetSettings:
    """Both ways to train.

    From ImageNet weights the head is trained first and all layers after it, the early ones slowly:
    LP-FT (Kumar et al. 2022, arXiv 2202.10054) keeps what pretraining learned.

    Attributes:
        preprocess: of the images, from pretrained weights; mean and standard deviation are ImageNet's.
        scratch_preprocess: of the images, from random weights: a third of the pixels, so that two CPU cores
            train it in twenty minutes.
        head: recipe of the head alone, from pretrained weights.
        tune: recipe of all layers, from pretrained weights.
        tune_rates: factor on the learning rate by prefix of the parameter's name.
        scratch: recipe from random weights.
    """

    preprocess: Preprocess = field(default_factory=lambda: Preprocess(size=224, channels=3, mean=_MEAN, std=_STD))
    scratch_preprocess: Preprocess = field(
        default_factory=lambda: Preprocess(size=128, channels=3, mean=_MEAN, std=_STD)
    )
    head: Recipe = field(
        default_factory=lambda: Recipe(epochs=5, batch_size=32, learning_rate=1e-3, ema_decay=0.99, augment=_AUGMENT)
    )
    tune: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=20, batch_size=32, learning_rate=5e-4, warmup=0.05, ema_decay=0.99, augment=_AUGMENT
        )
    )
    tune_rates: Mapping[str, float] = field(
        default_factory=lambda: {
            "heads": 1.0,
            "backbone": 0.02,
            "backbone.layer3": 0.1,
            "backbone.layer4": 0.2,
        }
    )
    scratch: Recipe = field(
        default_factory=lambda: Recipe(epochs=18, batch_size=32, learning_rate=1e-3, augment=_AUGMENT)
    )


class ResNetBackbone(nn.Module):
    """ResNet50 up to its last feature map; parameter names are torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        resnet = resnet50(weights=None)
        for name, child in resnet.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to a feature map (N, 2048, H / 32, W / 32)."""
        for child in self.children():
            x = child(x)
        return x


class ResNetModel(ImageModel):
    """One task from the image alone."""

    @staticmethod
    def build(architecture: Mapping[str, Any]) -> MultiTaskNetwork:
        """An untrained network with a head per task of the architecture."""
        classes = {task: len(labels.TASKS[task]) for task in architecture["tasks"]}
        return MultiTaskNetwork(ResNetBackbone(), _FEATURES, classes, architecture["dropout"])


def train(context: Context, task: str, settings: ResNetSettings | None = None) -> ResNetModel:
    """Train ResNet50 for one task.

    Args:
        context: records, device and reporter.
        task: a key of ``labels.TASKS``.
        settings: both recipes; the chosen ones by default.

    Raises:
        ml.dataset.records.RecordsError: images are missing or damaged.
        WeightsError: the pretrained weights asked for cannot be had.
    """
    settings = settings or ResNetSettings()
    state, source = resnet50_state(context.options.weights, context.team)
    architecture = {"tasks": [task], "dropout": 0.2, "members": 1}
    init: Literal["pretrained", "scratch"] = "scratch"
    preprocess = settings.scratch_preprocess
    phases = [Phase("scratch", settings.scratch, {})]
    if state is not None:
        init, preprocess = "pretrained", settings.preprocess
        phases = fine_tuning(settings.head, settings.tune, settings.tune_rates)
    phases = [
        phase._replace(recipe=replace(context.recipe(phase.recipe), task_weights={task: 1.0})) for phase in phases
    ]
    with context.run.stage(0.0, READING):
        examples = examples_of(context.train, context.images(context.train, preprocess), phases[0].recipe)

    def build() -> MultiTaskNetwork:
        network = ResNetModel.build(architecture)
        if state is not None:
            _load_backbone(network, state)
        return network

    members = train_members(context, build, examples, phases, preprocess)
    card = context.draft_card(
        f"resnet50-{task}",
        FAMILY,
        tasks=(task,),
        inputs=("image",),
        preprocess=preprocess,
        settings={
            "architecture": architecture,
            "recipes": recipes_to_json(phases),
            "adjust": logit_adjustment(context.train, (task,) if task == labels.LOCATION else ()),
        },
        init=init,
        weights_source=source,
    )
    return ResNetModel(card, members)


def _load_backbone(network: MultiTaskNetwork, state: Mapping[str, Tensor]) -> None:
    backbone = {name: value for name, value in state.items() if not name.startswith("fc.")}
    try:
        network.backbone.load_state_dict(dict(backbone))
    except RuntimeError as error:
        raise WeightsError(f"the weights are not those of a torchvision ResNet50: {error}") from error
