"""What every model offers to training, evaluation and the service."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ml.dataset.preprocess import Preprocess
from ml.registry.model_card import ModelCard

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_Value = TypeVar("_Value")
Floats = NDArray[np.float32]
Outputs = Mapping[str, Floats]
# The output by which images are compared: similar images and the out-of-distribution rule need it.
EMBEDDING = "embedding"
# Feature maps of a graph that is exported for explanations too.
MAPS = "maps"
# Statistics of the feature maps of all stages, for the out-of-distribution rule.
STAGES = "stages"


class InputError(ValueError):
    """A model was asked without an input that it cannot do without."""


class ServedModel(ABC):
    """A trained model: one half runs on images, one on captions, and ``combine`` joins them.

    The halves are apart so that a service can run ``network`` in batches on any backend. A model may
    lack either half. All its weights and buffers are on one device, ``device``: that of the modules
    it is made of, until ``to`` moves them all.

    Attributes:
        card: what is known about the model.
        network: uint8 or float tensor (N, C, size, size), 0 to 255, to a dict with one tensor of
            logits (N, classes) per task and ``"embedding"`` (N, D). It normalises by itself and
            holds the test-time augmentation. None for a model that runs no network on images.
        combines_any_outputs: whether ``combine`` needs nothing learned but what is on the card, so that it can
            combine outputs of models of the same recipe that were trained on other records.
    """

    network: "nn.Module | None" = None
    combines_any_outputs: bool = False

    def __init__(self, card: ModelCard) -> None:
        self.card = card

    @property
    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """The classes of each task, in output order."""
        return {task: tuple(classes) for task, classes in self.card.tasks.items()}

    @property
    def inputs(self) -> frozenset[str]:
        """What the model can use: "image", "caption" or both."""
        return frozenset(self.card.inputs)

    @property
    def preprocess(self) -> Preprocess | None:
        """How to prepare an image; None for a model without image."""
        return self.card.make_preprocess()

    @property
    def has_network(self) -> bool:
        """Whether there is a ``network``; to ask for itself may read its weights and import its libraries."""
        return self.network is not None

    @property
    def is_deferred(self) -> bool:
        """Whether ``network`` has yet to be read from its file."""
        return False

    def class_weights(self, task: str, index: int) -> Floats | None:
        """The weights of the last feature map's channels in a class's logit, for class activation maps.

        Returns:
            (members, D) where the logit of each member is linear in the mean of its last feature map; else None.
        """
        del task, index
        return None

    @property
    def cam_layer(self) -> "nn.Module | None":
        """The part of ``network`` whose output is the last feature map (N, D, h, w), for Grad-CAM."""
        return None

    @property
    def modules(self) -> "tuple[nn.Module, ...]":
        """Every module of the model; a family that has more than ``network`` names them all."""
        return () if self.network is None else (self.network,)

    @property
    def device(self) -> "torch.device":
        """Where the weights are; the CPU for a model without modules."""
        import torch  # noqa: PLC0415 - a service on OpenVINO needs no PyTorch

        weights = (parameter for module in self.modules for parameter in module.parameters())
        return next((parameter.device for parameter in weights), torch.device("cpu"))

    def to(self, device: "torch.device") -> Self:
        """Move every weight and buffer to a device, in place; returns the model."""
        for module in self.modules:
            module.to(device)
        return self

    def encode_images(self, pixels: NDArray[np.uint8]) -> dict[str, Floats] | None:
        """The image half, run here and now on the device of the model.

        A family that looks at images and has no ``network`` overrides it.

        Args:
            pixels: uint8 array (N, C, size, size) from ``preprocess.apply``.

        Returns:
            What ``network`` returns, as arrays; None for a model without image.
        """
        if self.network is None:
            return None
        import torch  # noqa: PLC0415 - a service on OpenVINO needs no PyTorch

        self.network.eval()
        with torch.inference_mode():
            outputs: dict[str, Tensor] = self.network(torch.from_numpy(pixels).to(self.device))
        return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    def encode_captions(self, captions: Sequence[str | None]) -> Floats | None:
        """The caption half.

        Args:
            captions: N captions; None or "" where there is none.

        Returns:
            float32 array (N, D), a row of NaN where there is no caption or no word that the model knows;
            None for a model that takes no captions.
        """
        del captions
        return None

    def embed_captions(self, captions: Sequence[str | None]) -> Floats | None:
        """Captions in the space of the images' ``"embedding"``, for a model whose card says ``shared_embedding``.

        Args:
            captions: N captions; None or "" where there is none.

        Returns:
            float32 array (N, D) of length 1, NaN where there is no caption; None for any other model.
        """
        del captions
        return None

    @abstractmethod
    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities from what the halves gave.

        Args:
            image_out: arrays from ``network`` or ``encode_images``; None without image.
            caption_out: array from ``encode_captions``; None without captions.

        Returns:
            Per task a float32 array (N, classes), each row adding up to 1.

        Raises:
            InputError: an input is missing that the model cannot do without.
        """

    @abstractmethod
    def save(self, folder: Path) -> list[str]:
        """Write the files that ``load`` needs, as safetensors and JSON.

        Returns:
            Their names, the one with the weights first.

        Raises:
            OSError: the disk is full or failed.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """The model that ``save`` wrote.

        Raises:
            ml.registry.artifacts.DamagedFileError: a file is missing, cut or of another model.
        """

    @property
    def parts(self) -> tuple["ServedModel", ...]:
        """The models that this one is made of, which are calibrated with it."""
        return ()

    def count_parameters(self) -> int:
        """The number of trained values."""
        return 0 if self.network is None else sum(parameter.numel() for parameter in self.network.parameters())


def softmax(log_probabilities: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Softmax over the last axis of logits (..., classes) divided by a temperature."""
    scaled = log_probabilities.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    exponent = np.exp(scaled)
    return np.asarray(exponent / exponent.sum(axis=-1, keepdims=True), dtype=np.float32)


def adjust(logits: NDArray[np.floating], log_prior: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    """Logit adjustment (Menon et al. 2020, arXiv 2007.07314): take tau times the log prior off.

    Args:
        logits: (N, classes), or log-probabilities.
        log_prior: log frequency of the classes in training, (classes,).
        tau: 0 for plain accuracy, 1 for balanced error.
    """
    return np.asarray(logits - tau * log_prior, dtype=np.float64)


def calibrated(card: ModelCard, task: str, logits: NDArray[np.floating]) -> Floats:
    """Probabilities (N, classes) from logits, as a card says: first its logit adjustment, then its temperature."""
    adjustment = card.settings.get("adjust", {}).get(task)
    if adjustment is not None:
        logits = adjust(logits, np.array(adjustment["log_prior"]), adjustment["tau"])
    return softmax(logits, card.temperature[task])


def log(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Natural logarithm that keeps a probability of zero finite."""
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-9))


def need_image(image_out: Outputs | None, name: str) -> Outputs:
    """The image outputs.

    Raises:
        InputError: there are none.
    """
    if image_out is None:
        raise InputError(f"{name} needs an image")
    return image_out


def missing_input(card: ModelCard) -> InputError:
    """The error of a model that was asked about items without any of its inputs."""
    inputs = " or ".join({"image": "an image", "caption": "a caption"}[name] for name in card.inputs)
    return InputError(f"{card.name} needs {inputs} for every item")


def sub_state(state: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    """The entries of a state dict whose names begin with a prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def has_caption(caption_out: Floats | None, count: int) -> NDArray[np.bool_]:
    """Which of N items came with a caption."""
    if caption_out is None:
        return np.zeros(count, dtype=np.bool_)
    return np.asarray(~np.isnan(caption_out).any(axis=1), dtype=np.bool_)
