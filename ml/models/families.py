"""Which class holds the models of a family; imported when first needed, because transformers alone takes seconds."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from ml.models.base import ServedModel

_FAMILIES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "compact": ("ml.models.compact", "CompactModel"),
        "efficientnet": ("ml.models.efficientnet", "EfficientNetModel"),
        "caption": ("ml.models.caption", "CaptionModel"),
        "fusion": ("ml.models.fusion", "FusedModel"),
        "texture-knn": ("ml.models.texture_knn", "TextureModel"),
        "texture-svm": ("ml.models.texture_svm", "TextureSumModel"),
        "resnet": ("ml.models.resnet", "ResNetModel"),
        "clip": ("ml.models.clip", "ClipModel"),
    }
)


def family_class(family: str) -> type[ServedModel]:
    """The class whose ``load`` reads the models of a family.

    Raises:
        KeyError: there is no such family.
    """
    module, name = _FAMILIES[family]
    found: type[ServedModel] = getattr(import_module(module), name)
    return found
