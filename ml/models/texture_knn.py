"""Modality by nearest neighbours of texture and grey-level descriptors, without a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

from ml.dataset import labels
from ml.dataset.preprocess import Pixels, Preprocess
from ml.dataset.records import targets
from ml.evaluation.metrics import negative_log_likelihood
from ml.models.base import EMBEDDING, Floats, Outputs, ServedModel, log, need_image, softmax
from ml.registry.artifacts import DamagedFileError, read_tensors, write_tensors
from ml.registry.model_card import ModelCard
from ml.training.context import Context

FAMILY: Final = "texture-knn"
WEIGHTS_FILE: Final = "neighbours.safetensors"
_LEVELS: Final = 32
_BINS: Final = 64
_LBP: Final = ((8, 1), (16, 2))
_PROPERTIES: Final = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "ASM")
_NEIGHBOURS: Final = (1, 3, 5, 7, 11, 15, 25)


def texture(image: Pixels) -> NDArray[np.float64]:
    """Co-occurrence properties and local binary patterns of a grey image.

    The properties of Haralick 1973 over distances of 1, 2 and 4 pixels and four angles (mean and
    range over the angles), and histograms of uniform patterns (Ojala et al. 2002).

    Args:
        image: uint8 array (1, H, W).

    Returns:
        Descriptor, (64,).
    """
    grey = image[0]
    matrix = graycomatrix(
        grey // (256 // _LEVELS),
        distances=[1, 2, 4],
        angles=[0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4],
        levels=_LEVELS,
        symmetric=True,
        normed=True,
    )
    parts = []
    for name in _PROPERTIES:
        values = graycoprops(matrix, name)
        parts += [values.mean(axis=1), np.ptp(values, axis=1)]
    for points, radius in _LBP:
        patterns = local_binary_pattern(grey, points, radius, "uniform")
        parts.append(np.histogram(patterns, bins=points + 2, range=(0, points + 2), density=True)[0])
    return np.concatenate(parts)


def colour(image: Pixels) -> NDArray[np.float64]:
    """The histogram of grey levels of an image, padding and all.

    Args:
        image: uint8 array (1, H, W).

    Returns:
        Square roots of the shares of 64 equal ranges, (64,): distances then compare shapes, not peaks.
    """
    return np.asarray(np.sqrt(np.histogram(image, bins=_BINS, range=(0, 256))[0] / image.size))


_DESCRIPTORS: Final[dict[str, Callable[[Pixels], NDArray[np.float64]]]] = {
    "texture": texture,
    "colour": colour,
}


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Scaled descriptors of the training images.

    Attributes:
        descriptors: float32, (N, D), each feature with mean 0 and standard deviation 1.
        targets: class of each, (N,).
        mean: of each feature before scaling, (D,).
        std: of each feature before scaling, (D,).
    """

    descriptors: Floats
    targets: NDArray[np.int64]
    mean: Floats
    std: Floats

    def scale(self, raw: NDArray[np.floating]) -> Floats:
        """Raw descriptors (M, D) on the scale of the training ones."""
        return np.asarray((raw - self.mean) / self.std, dtype=np.float32)

    def vote(self, scaled: Floats, count: int, classes: int) -> Floats:
        """The share of each class among the nearest neighbours, with one vote added, shared by all classes.

        Args:
            scaled: (M, D).
            count: neighbours.
            classes: number of classes.

        Returns:
            (M, classes).
        """
        squares = (self.descriptors**2).sum(axis=1) - 2.0 * scaled @ self.descriptors.T
        nearest = np.argpartition(squares, count - 1, axis=1)[:, :count]
        votes = np.eye(classes)[self.targets[nearest]].sum(axis=1) + 1.0 / classes
        return np.asarray(votes / votes.sum(axis=1, keepdims=True), dtype=np.float32)


class TextureModel(ServedModel):
    """Modality from descriptors of the image; it has no network, only ``encode_images``.

    Args:
        card: what is known about the model; ``settings`` names descriptors and neighbours.
        neighbours: the training images' descriptors.
    """

    def __init__(self, card: ModelCard, neighbours: Neighbours) -> None:
        super().__init__(card)
        self.neighbours = neighbours

    def encode_images(self, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        """Log of the neighbours' votes (N, 2), and the scaled descriptor (N, D) as embedding."""
        scaled = self.neighbours.scale(describe(pixels, self.card.settings["descriptors"]))
        classes = len(self.card.tasks[labels.MODALITY])
        votes = self.neighbours.vote(scaled, self.card.settings["neighbours"], classes)
        return {labels.MODALITY: log(votes).astype(np.float32), EMBEDDING: scaled}

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities from the image; captions are ignored."""
        del caption_out
        votes = need_image(image_out, self.card.name)[labels.MODALITY]
        return {labels.MODALITY: softmax(votes, self.card.temperature[labels.MODALITY])}

    def save(self, folder: Path) -> list[str]:
        """Write the descriptors of the training images."""
        own = self.neighbours
        tensors = {"descriptors": own.descriptors, "targets": own.targets, "mean": own.mean, "std": own.std}
        write_tensors(folder / WEIGHTS_FILE, {name: torch.from_numpy(a) for name, a in tensors.items()})
        return [WEIGHTS_FILE]

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """The model that ``save`` wrote.

        Raises:
            DamagedFileError: the file is missing, cut, or lacks a part.
        """
        tensors, _ = read_tensors(folder / WEIGHTS_FILE)
        try:
            arrays: dict[str, Any] = {name: tensors[name].numpy() for name in ("descriptors", "targets", "mean", "std")}
        except KeyError as error:
            raise DamagedFileError(f"{WEIGHTS_FILE} lacks {error}") from error
        return cls(card, Neighbours(**arrays))

    def count_parameters(self) -> int:
        """The number of stored values."""
        return int(self.neighbours.descriptors.size)


def describe(pixels: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.float64]:
    """Raw descriptors of images, side by side.

    Args:
        pixels: uint8 array (N, 1, H, W).
        names: "texture", "colour" or both.

    Returns:
        (N, 64) or (N, 128).
    """
    rows = [np.concatenate([_DESCRIPTORS[name](image) for name in names]) for image in pixels]
    return np.stack(rows)


def train(context: Context, name: str, descriptors: Sequence[str]) -> TextureModel:
    """Keep the training images' descriptors as neighbours; how many of them vote is chosen on dev.

    Args:
        context: records and reporter.
        name: of the model.
        descriptors: "texture", "colour" (the original work's word for the histogram of grey levels), or both.

    Raises:
        ml.dataset.records.RecordsError: images are missing or damaged.
    """
    preprocess = Preprocess(size=256)
    with context.run.stage(0.0, 0.3):
        pixels = context.images([*context.train, *context.dev], preprocess)
    context.run.update(0.3, "describing textures" if "texture" in descriptors else "counting grey levels")
    raw = describe(pixels, descriptors)
    count = len(context.train)
    mean, std = raw[:count].mean(axis=0), np.maximum(raw[:count].std(axis=0), 1e-9)
    neighbours = Neighbours(
        ((raw[:count] - mean) / std).astype(np.float32),
        targets(context.train, labels.MODALITY),
        mean.astype(np.float32),
        std.astype(np.float32),
    )
    best = _choose_neighbours(neighbours, neighbours.scale(raw[count:]), targets(context.dev, labels.MODALITY))
    card = context.draft_card(
        name,
        FAMILY,
        tasks=(labels.MODALITY,),
        inputs=("image",),
        preprocess=preprocess,
        settings={"descriptors": list(descriptors), "neighbours": best},
    )
    return TextureModel(card, neighbours)


def _choose_neighbours(neighbours: Neighbours, dev: Floats, dev_targets: NDArray[np.int64]) -> int:
    """The number of neighbours with the best accuracy on dev, likelihood breaking ties."""
    classes = len(labels.MODALITIES)
    ranked = []
    for count in _NEIGHBOURS:
        if count <= len(neighbours.targets):
            votes = neighbours.vote(dev, count, classes)
            accuracy = float((votes.argmax(axis=1) == dev_targets).mean())
            ranked.append((accuracy, -negative_log_likelihood(votes, dev_targets), count))
    return max(ranked)[2]
