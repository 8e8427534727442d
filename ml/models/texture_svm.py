"""Modality from the image network and a support vector machine on the texture: they err on different images."""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import SVC
from torch import nn

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import RecordsError, targets
from ml.evaluation.metrics import Targets, negative_log_likelihood
from ml.models import compact
from ml.models.base import EMBEDDING, Floats, Outputs, ServedModel, need_image, softmax
from ml.models.compact import CompactModel
from ml.models.texture_knn import describe
from ml.registry.artifacts import DamagedFileError, read_tensors, write_tensors
from ml.registry.model_card import ModelCard
from ml.training.context import Context

NAME: Final = "fused-modality"
FAMILY: Final = "texture-svm"
WEIGHTS_FILE: Final = "svm.safetensors"
# What the file is called in models of version 0.1, whose cards list it.
_FORMER_WEIGHTS_FILE: Final = "machine.safetensors"
_DESCRIPTORS: Final = ["texture"]
_C: Final = 10.0


@dataclass(frozen=True, slots=True)
class RbfSvm:
    """A support vector machine with a Gaussian kernel (Cortes and Vapnik 1995), between two classes.

    Attributes:
        vectors: support vectors, scaled, float32 (N, D).
        weights: of each vector, negative for the first class, float32 (N,).
        bias: added to the sum.
        gamma: of the kernel exp(-gamma d^2).
        mean: of each feature before scaling, (D,).
        std: of each feature before scaling, (D,).
    """

    vectors: Floats
    weights: Floats
    bias: float
    gamma: float
    mean: Floats
    std: Floats

    @classmethod
    def fit(cls, raw: NDArray[np.float64], classes: NDArray[np.int64]) -> Self:
        """The SVM for descriptors (N, D) and classes 0 or 1, (N,)."""
        mean, std = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-9)
        gamma = 1.0 / raw.shape[1]  # the features have variance 1
        svm = SVC(C=_C, gamma=gamma).fit((raw - mean) / std, classes)
        vectors, weights = (np.asarray(a, np.float32) for a in (svm.support_vectors_, svm.dual_coef_[0]))
        return cls(vectors, weights, float(svm.intercept_[0]), gamma, mean.astype(np.float32), std.astype(np.float32))

    def margin(self, raw: NDArray[np.float64]) -> Floats:
        """Values of the decision function for raw descriptors (M, D), (M,); positive for the second class."""
        scaled = ((raw - self.mean) / self.std).astype(np.float32)
        squares = (scaled**2).sum(axis=1)[:, None] + (self.vectors**2).sum(axis=1) - 2.0 * scaled @ self.vectors.T
        kernel = np.exp(-self.gamma * np.maximum(squares, 0.0))
        return np.asarray(kernel @ self.weights + self.bias, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class SumWeights:
    """How the two add up to the log-odds of the second class.

    Attributes:
        image: factor on the network's log-odds.
        texture: factor on the margin.
    """

    image: float = 0.8
    texture: float = 1.0


class CnnSvmFusion(ServedModel):
    """The image model's answer corrected by texture; slower than it alone, since textures are counted.

    Args:
        card: what is known about the model; ``settings["sum"]`` has the weights.
        image_model: the network.
        svm: the support vector machine.
    """

    def __init__(self, card: ModelCard, image_model: CompactModel, svm: RbfSvm) -> None:
        super().__init__(card)
        self.image_model, self.svm = image_model, svm

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Those of the image model."""
        return self.image_model.modules

    def encode_images(self, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        """Log-odds of network and texture, (N, 2), and the network's embedding."""
        image_parts = parts(self.image_model, self.svm, pixels)
        return {labels.MODALITY: image_parts.odds, EMBEDDING: image_parts.embedding}

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities from the image; captions are ignored."""
        del caption_out
        odds = need_image(image_out, self.card.name)[labels.MODALITY]
        logits = add(odds, SumWeights(**self.card.settings["sum"]))
        return {labels.MODALITY: softmax(logits, self.card.temperature[labels.MODALITY])}

    def save(self, folder: Path) -> list[str]:
        """Write the network and the support vector machine."""
        own = self.svm
        arrays = {"vectors": own.vectors, "weights": own.weights, "mean": own.mean, "std": own.std}
        numbers = {"bias": np.float64(own.bias), "gamma": np.float64(own.gamma)}
        tensors = {name: torch.from_numpy(np.atleast_1d(a)) for name, a in (arrays | numbers).items()}
        write_tensors(folder / WEIGHTS_FILE, tensors)
        return [*self.image_model.save(folder), WEIGHTS_FILE]

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """The model that ``save`` wrote.

        Raises:
            DamagedFileError: a file is missing, cut, or lacks a part.
        """
        half: dict[str, Any] = card.settings["image"]
        image_model = CompactModel.load(folder, card.model_copy(update=half))
        listed = {file.name for file in card.files}
        name = _FORMER_WEIGHTS_FILE if _FORMER_WEIGHTS_FILE in listed else WEIGHTS_FILE
        tensors, _ = read_tensors(folder / name)
        try:
            arrays = {name: tensors[name].numpy() for name in ("vectors", "weights", "mean", "std")}
            svm = RbfSvm(bias=float(tensors["bias"]), gamma=float(tensors["gamma"]), **arrays)
        except (KeyError, RuntimeError) as error:
            raise DamagedFileError(f"{name} lacks a part: {error}") from error
        return cls(card, image_model, svm)

    def count_parameters(self) -> int:
        """The number of trained values of the network and the support vector machine."""
        return self.image_model.count_parameters() + int(self.svm.vectors.size)


@dataclass(frozen=True, slots=True)
class _Parts:
    odds: Floats
    embedding: Floats


def parts(image_model: CompactModel, svm: RbfSvm, pixels: NDArray[np.uint8]) -> _Parts:
    """Log-odds of network and SVM, and the embeddings, of images (N, 1, S, S), S a multiple of the network's side."""
    assert image_model.preprocess is not None
    outputs = image_model.encode_images(shrink(pixels, image_model.preprocess.size))
    assert outputs is not None
    logits = outputs[labels.MODALITY]
    margin = svm.margin(describe(pixels, _DESCRIPTORS))
    return _Parts(np.stack([logits[:, 1] - logits[:, 0], margin], axis=1), outputs[EMBEDDING])


def shrink(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images (N, 1, S, S) as the mean of squares of pixels, (N, 1, size, size)."""
    factor = pixels.shape[2] // size
    blocks = pixels.reshape(len(pixels), 1, size, factor, size, factor)
    return np.asarray(blocks.mean(axis=(3, 5)).round(), dtype=np.uint8)


def add(odds: Floats, weights: SumWeights) -> NDArray[np.float64]:
    """Logits (N, 2) from the log-odds of both parts, (N, 2)."""
    total = odds.astype(np.float64) @ np.array([weights.image, weights.texture])
    return np.stack([-total / 2.0, total / 2.0], axis=1)


def choose_weights(odds: Floats, classes: Targets) -> SumWeights:
    """The weights with the least negative log-likelihood on dev, out of a coarse grid, from (N, 2) and (N,)."""
    pairs = product((0.4, 0.6, 0.8, 1.0, 1.3), (0.0, 0.5, 1.0, 1.5, 2.0))
    ranked = [SumWeights(*pair) for pair in pairs]
    return min(ranked, key=lambda weights: negative_log_likelihood(softmax(add(odds, weights)), classes))


def train(context: Context) -> CnnSvmFusion:
    """Train the support vector machine, and join it with the registered image model; the weights are chosen on dev.

    Raises:
        ml.registry.registry.UnknownModelError: the image model is not registered.
        ml.dataset.records.RecordsError: images are missing or damaged, or all show one modality.
    """
    image_model = context.load(compact.NAME)
    assert isinstance(image_model, CompactModel)
    assert image_model.preprocess is not None
    preprocess = Preprocess(size=2 * image_model.preprocess.size)
    with context.run.stage(0.0, 0.2):
        pixels = context.images([*context.train, *context.dev], preprocess)
    context.run.update(0.2, "describing textures")
    count, classes = len(context.train), targets(context.train, labels.MODALITY)
    if len(np.unique(classes)) < len(labels.MODALITIES):
        raise RecordsError("all training images show one modality; two are needed to tell them apart")
    svm = RbfSvm.fit(describe(pixels[:count], _DESCRIPTORS), classes)
    context.run.update(0.8, "choosing weights on dev")
    odds = parts(image_model, svm, pixels[count:]).odds
    weights = choose_weights(odds, targets(context.dev, labels.MODALITY))
    half = image_model.card
    card = context.draft_card(
        NAME,
        FAMILY,
        tasks=(labels.MODALITY,),
        inputs=("image",),
        preprocess=preprocess,
        settings={
            "sum": asdict(weights),
            "image": {
                "name": half.name,
                "version": half.version,
                "tasks": half.tasks,
                "temperature": half.temperature,
                "settings": half.settings,
                "preprocess": half.preprocess,
                "preprocess_hash": half.preprocess_hash,
            },
        },
    )
    return CnnSvmFusion(card, image_model, svm)
