"""Location from image and caption: the two models' log-probabilities, added with weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ml.dataset import labels
from ml.dataset.records import targets
from ml.models import caption
from ml.models.base import Floats, Outputs, ServedModel, adjust, has_caption, log, need_image, softmax
from ml.models.caption import CaptionModel
from ml.models.image_model import DeferredImageModel, ImageModel
from ml.models.model_specs import deferred_class
from ml.models.predict_records import captions_of, run_images
from ml.registry.model_card import ModelCard

if TYPE_CHECKING:
    from torch import nn

    from ml.evaluation.metrics import Targets
    from ml.training.context import Context

NAME: Final = "fused-location"
FAMILY: Final = "fusion"
# The image model that is joined where no other is named.
IMAGE_MODEL: Final = "compact"
# The family of a half whose description names none: the first fused models, when all image models were of this one.
_FAMILY_OF_FIRST_MODELS: Final = "compact"


@dataclass(frozen=True, slots=True)
class FusionWeights:
    """How the parts of one task add up.

    Attributes:
        image: factor on the image model's log-probabilities.
        caption: factor on the caption model's.
        tau: factor on the log prior, which is taken off.
    """

    image: float = 0.5
    caption: float = 0.75
    tau: float = 0.0


class FusedModel(ServedModel):
    """Location and location category from image and caption, or from the image alone.

    ``combine`` needs the image; an item without caption gets the image model's own calibrated
    answer. A caption alone is refused: ask the caption model.

    Args:
        card: what is known about the model; ``settings["fusion"]`` has the weights per task.
        image_model: the image half.
        caption_model: the caption half.
        prior: log frequency of the classes in training, per task.
    """

    combines_any_outputs = True

    def __init__(
        self,
        card: ModelCard,
        image_model: ImageModel | DeferredImageModel,
        caption_model: CaptionModel,
        prior: Mapping[str, NDArray[np.float64]],
    ) -> None:
        super().__init__(card)
        self.image_model, self.caption_model, self.prior = image_model, caption_model, prior

    @property
    def network(self) -> "nn.Module":  # type: ignore[override]  # computed here, an attribute of the base class
        """That of the image half."""
        return self.image_model.network

    @property
    def has_network(self) -> bool:
        """The image half always has one."""
        return True

    @property
    def is_deferred(self) -> bool:
        """Whether that of the image half is."""
        return self.image_model.is_deferred

    def class_weights(self, task: str, index: int) -> Floats | None:
        """Those of the image half."""
        return self.image_model.class_weights(task, index)

    @property
    def parts(self) -> tuple[ServedModel, ...]:
        """Both halves; their temperatures are those in the settings of this model's card."""
        return self.image_model, self.caption_model

    @property
    def cam_layer(self) -> "nn.Module | None":
        """The last feature map of the image half."""
        return self.image_model.cam_layer

    def encode_captions(self, captions: Sequence[str | None]) -> Floats:
        """Log-probabilities (N, 21 + 5) of the caption half, NaN where there is no usable caption."""
        return self.caption_model.encode_captions(captions)

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities from image and caption, per item from the image where it has none."""
        image_out = need_image(image_out, self.card.name)
        image_only = self.image_model.combine(image_out, None)
        has_text = has_caption(caption_out, len(image_only[labels.LOCATION_TASKS[0]]))
        if caption_out is None or not has_text.any():
            return {task: image_only[task] for task in self.card.tasks}
        from_caption = caption.split_tasks(caption_out[has_text])
        combined = {}
        for task in self.card.tasks:
            weights = FusionWeights(**self.card.settings["fusion"][task])
            total = fuse(image_only[task][has_text], from_caption[task], self.prior[task], weights)
            answer = image_only[task].copy()
            answer[has_text] = softmax(total, self.card.temperature[task])
            combined[task] = answer
        return combined

    def save(self, folder: Path) -> list[str]:
        """Write both halves, so that the model outlives a new training of either."""
        return [*self.image_model.save(folder), *self.caption_model.save(folder)]

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """The model that ``save`` wrote."""
        half = _half_card(card, "image")
        image_model = deferred_class(half.family).load(folder, half)
        assert isinstance(image_model, ImageModel | DeferredImageModel)
        caption_model = CaptionModel.load(folder, _half_card(card, "caption"))
        prior = {task: np.array(values) for task, values in card.settings["log_prior"].items()}
        return cls(card, image_model, caption_model, prior)

    def count_parameters(self) -> int:
        """The number of trained values of both halves."""
        return self.image_model.count_parameters() + self.caption_model.count_parameters()


def fuse(
    image: NDArray[np.floating],
    caption_log: NDArray[np.floating],
    prior: NDArray[np.float64],
    weights: FusionWeights,
) -> NDArray[np.float64]:
    """Logits from an image model's probabilities and a caption model's log-probabilities.

    Args:
        image: probabilities (N, classes).
        caption_log: log-probabilities (N, classes).
        prior: log frequency of the classes, (classes,).
        weights: of the parts.
    """
    total = weights.image * log(image) + weights.caption * caption_log.astype(np.float64)
    return adjust(total, prior, weights.tau)


def choose_weights(
    image: NDArray[np.floating],
    caption_log: NDArray[np.floating],
    prior: NDArray[np.float64],
    dev_targets: "Targets",
) -> FusionWeights:
    """The weights with the least negative log-likelihood on dev, out of a coarse grid.

    Args:
        image: probabilities of the image half, (N, classes).
        caption_log: log-probabilities of the caption half, (N, classes).
        prior: log frequency of the classes in training, (classes,).
        dev_targets: (N,).

    Likelihood rather than accuracy: 197 dev images of 67 cases make accuracy a staircase on which
    every choice is noise.
    """
    from ml.evaluation.metrics import negative_log_likelihood  # noqa: PLC0415 - a service needs no metrics

    keep = dev_targets != labels.IGNORED
    best, best_loss = FusionWeights(), np.inf
    if not keep.any():  # no dev image has both a caption and a label
        return best
    for image_weight in (0.3, 0.5, 0.7, 0.9):
        for caption_weight in (0.5, 0.75, 1.0, 1.25):
            for tau in (0.0, 0.15, 0.3):
                weights = FusionWeights(image_weight, caption_weight, tau)
                logits = fuse(image[keep], caption_log[keep], prior, weights)
                loss = negative_log_likelihood(softmax(logits), dev_targets[keep])
                if loss < best_loss:
                    best, best_loss = weights, loss
    return best


def _half_card(card: ModelCard, half: str) -> ModelCard:
    settings: dict[str, Any] = {"family": _FAMILY_OF_FIRST_MODELS} | card.settings["halves"][half] | {"inputs": [half]}
    return card.model_copy(update=settings)


def _describe_half(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "family": card.family,
        "version": card.version,
        "tasks": card.tasks,
        "temperature": card.temperature,
        "settings": card.settings,
    }


def _choose_on_dev(
    context: "Context",
    image_model: ImageModel,
    caption_model: CaptionModel,
    prior: Mapping[str, NDArray[np.float64]],
) -> dict[str, dict[str, float]]:
    assert image_model.preprocess is not None
    pixels = context.images(context.dev, image_model.preprocess)
    image = image_model.combine(run_images(image_model, pixels), None)
    encoded = caption_model.encode_captions(captions_of(context.dev))
    has_text = has_caption(encoded, len(context.dev))
    from_caption = caption.split_tasks(encoded[has_text])
    return {
        task: asdict(
            choose_weights(
                image[task][has_text],
                from_caption[task],
                prior[task],
                targets(context.dev, task)[has_text],
            )
        )
        for task in labels.LOCATION_TASKS
    }


def train(context: "Context", name: str = NAME, image: str = IMAGE_MODEL) -> FusedModel:
    """Join a registered image model and the caption model; only the weights are chosen here, on dev.

    Args:
        context: records and registry.
        name: of the new model.
        image: name of the image model.

    Raises:
        ml.registry.registry.UnknownModelError: one of the two is not registered.
    """
    from ml.training.context import log_prior  # noqa: PLC0415 - a service on OpenVINO needs no PyTorch

    image_model = context.load(image)
    caption_model = context.load(caption.NAME)
    assert isinstance(image_model, ImageModel)
    assert isinstance(caption_model, CaptionModel)
    prior = {task: log_prior(context.train, task) for task in labels.LOCATION_TASKS}
    fusion = _choose_on_dev(context, image_model, caption_model, prior)
    card = context.draft_card(
        name,
        FAMILY,
        tasks=labels.LOCATION_TASKS,
        inputs=("image", "caption"),
        preprocess=image_model.preprocess,
        settings={
            "fusion": fusion,
            "log_prior": {task: values.tolist() for task, values in prior.items()},
            "halves": {
                "image": _describe_half(image_model.card),
                "caption": _describe_half(caption_model.card),
            },
        },
        init=image_model.card.init,
        weights_source=image_model.card.weights_source,
        ood_distance="stages" if image_model.card.ood_distance == "stages" else "mahalanobis",
    )
    return FusedModel(card, image_model, caption_model, prior)
