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
        module: the module of ``ml.models``, by its name there, whose ``train`` trains it.
        tasks: what it predicts.
        needs: models that must be registered first.
        options: those of weights and epochs that ``train`` reads from ``context.options``.
        arguments: of ``train``, beside the context: what tells the models of one module apart.
    """

    module: str
    tasks: tuple[str, ...]
    needs: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    arguments: Mapping[str, Any] = MappingProxyType({})

    def train(self, context: "Context") -> ServedModel:
        """Train the model; what it returns is not calibrated."""
        train: Callable[..., ServedModel] = import_module(f"ml.models.{self.module}").train
        return train(context, **self.arguments)


_MODALITY: Final = (labels.MODALITY,)
_TUNED: Final = frozenset({"weights", "epochs"})


def _fusion(name: str, image: str) -> ModelSpec:
    """An image model of all tasks joined with the caption model."""
    needs = (image, "caption-location")
    return ModelSpec("fusion", labels.LOCATION_TASKS, needs, arguments={"name": name, "image": image})


def _knn(name: str, *descriptors: str) -> ModelSpec:
    """Nearest neighbours by one or both descriptors."""
    return ModelSpec("texture_knn", _MODALITY, arguments={"name": name, "descriptors": descriptors})


def _resnet(task: str) -> ModelSpec:
    """ResNet50 for one task."""
    return ModelSpec("resnet", (task,), options=_TUNED, arguments={"task": task})


def _clip(name: str, *inputs: str) -> ModelSpec:
    """CLIP with a head for the inputs named: those of one input show what the other adds."""
    return ModelSpec("clip_train", labels.LOCATION_TASKS, options=_TUNED, arguments={"name": name, "inputs": inputs})


MODEL_SPECS: Final[Mapping[str, ModelSpec]] = MappingProxyType(
    {
        "efficientnet": ModelSpec("efficientnet", tuple(labels.TASKS), options=_TUNED),
        "caption-location": ModelSpec("caption", labels.LOCATION_TASKS),
        "fused-efficientnet": _fusion("fused-efficientnet", "efficientnet"),
        "compact": ModelSpec("compact", tuple(labels.TASKS), options=frozenset({"epochs"})),
        "fused-location": _fusion("fused-location", "compact"),
        "knn-texture": _knn("knn-texture", "texture"),
        "knn-colour": _knn("knn-colour", "colour"),
        "knn-texture-colour": _knn("knn-texture-colour", "texture", "colour"),
        "fused-modality": ModelSpec("texture_svm", _MODALITY, ("compact",)),
        "resnet50-modality": _resnet(labels.MODALITY),
        "resnet50-location": _resnet(labels.LOCATION),
        "clip-location": _clip("clip-location", "image", "caption"),
        "clip-location-image": _clip("clip-location-image", "image"),
        "clip-location-caption": _clip("clip-location-caption", "caption"),
    }
)
# What `medpix train modality` and `medpix train location` train, in this order.
DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"modality": ("efficientnet",), "location": ("caption-location", "fused-efficientnet")}
)
