"""The models that can be trained, and the classes that load them.

Modules are imported when they are first needed, because transformers alone takes seconds.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ml.dataset import labels
from ml.models.base import ServedModel
from ml.models.image_model import DeferredImageModel

if TYPE_CHECKING:
    from ml.training.context import Context

# The family on a model card, and the module and the name of the class that loads it.
_FAMILIES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "compact": ("ml.models.compact", "CompactModel"),
        "efficientnet": ("ml.models.efficientnet", "EfficientNetModel"),
        "caption": ("ml.models.caption", "CaptionModel"),
        "fusion": ("ml.models.fusion", "FusedModel"),
        "texture-knn": ("ml.models.texture_knn", "TextureModel"),
        "texture-svm": ("ml.models.texture_svm", "CnnSvmFusion"),
        "resnet": ("ml.models.resnet", "ResNetModel"),
        "clip": ("ml.models.clip", "ClipModel"),
        "dual-encoder": ("ml.models.dual_encoder", "DualEncoderModel"),
    }
)


# Those whose class is an ``ml.models.image_model.ImageModel``: a service reads
# their network only when something runs it.
_IMAGE_FAMILIES: Final = frozenset({"compact", "efficientnet", "resnet"})


def family_class(family: str) -> type[ServedModel]:
    """The class whose ``load`` reads the models of a family.

    Raises:
        KeyError: there is no such family.
    """
    module, name = _FAMILIES[family]
    loaded: type[ServedModel] = getattr(import_module(module), name)
    return loaded


def deferred_class(family: str) -> type[ServedModel]:
    """The class whose ``load`` reads the models of a family, the network of an image model only when it is run.

    Raises:
        KeyError: there is no such family.
    """
    return DeferredImageModel if family in _IMAGE_FAMILIES else family_class(family)


class ModelSpec(NamedTuple):
    """How a model is trained.

    Attributes:
        module: the module of ``ml.models``, by its name there, whose ``function`` trains it.
        function: takes a ``Context``, returns a ``ServedModel``.
        tasks: what it predicts.
        needs: models that must be registered first.
        options: those of weights and epochs that its ``function`` reads from ``context.options``.
        arguments: of the function, beside the context.
    """

    module: str
    function: str
    tasks: tuple[str, ...]
    needs: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    arguments: Mapping[str, Any] = MappingProxyType({})

    def train(self, context: "Context") -> ServedModel:
        """Train the model; what it returns is not calibrated."""
        function: Callable[..., ServedModel] = getattr(import_module(f"ml.models.{self.module}"), self.function)
        return function(context, **self.arguments)


_TUNED: Final = frozenset({"weights", "epochs"})


def _fusion(name: str, image: str) -> ModelSpec:
    """An image model of all tasks joined with the caption model."""
    needs = (image, "caption-location")
    return ModelSpec("fusion", "train", labels.LOCATION_TASKS, needs, arguments={"name": name, "image": image})


MODEL_SPECS: Final[Mapping[str, ModelSpec]] = MappingProxyType(
    {
        "efficientnet": ModelSpec("efficientnet", "train", tuple(labels.TASKS), options=_TUNED),
        "caption-location": ModelSpec("caption", "train", labels.LOCATION_TASKS),
        "fused-efficientnet": _fusion("fused-efficientnet", "efficientnet"),
        "compact": ModelSpec("compact", "train", tuple(labels.TASKS), options=frozenset({"epochs"})),
        "fused-location": _fusion("fused-location", "compact"),
        "knn-texture": ModelSpec("texture_knn", "train_texture", (labels.MODALITY,)),
        "knn-colour": ModelSpec("texture_knn", "train_colour", (labels.MODALITY,)),
        "knn-texture-colour": ModelSpec("texture_knn", "train_both", (labels.MODALITY,)),
        "fused-modality": ModelSpec("texture_svm", "train", (labels.MODALITY,), ("compact",)),
        "resnet50-modality": ModelSpec("resnet", "train_modality", (labels.MODALITY,), options=_TUNED),
        "resnet50-location": ModelSpec("resnet", "train_location", (labels.LOCATION,), options=_TUNED),
        "clip-location": ModelSpec("clip_train", "train", labels.LOCATION_TASKS, options=_TUNED),
        "clip-location-image": ModelSpec("clip_train", "train_image", labels.LOCATION_TASKS, options=_TUNED),
        "clip-location-caption": ModelSpec("clip_train", "train_caption", labels.LOCATION_TASKS, options=_TUNED),
    }
)
# What `medpix train modality` and `medpix train location` train, in this order.
DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"modality": ("efficientnet",), "location": ("caption-location", "fused-efficientnet")}
)
