"""The embeddings of the dataset's images: nearest neighbours, and distances for the out-of-distribution rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ml.models.base import EMBEDDING, STAGES, Floats, Outputs
from ml.registry.artifacts import DamagedFileError, read_arrays, write_arrays

REFERENCE_FILE: Final = "reference.safetensors"


# Directions in which the training images hardly differ are given this share of the mean variance. Chosen on
# photographs in grey and not critical: shares of 0.1 to 0.5 differ little.
_LEAST_VARIANCE: Final = 0.2
# The same for the statistics of the stages; found by `python -m benchmarks.out_of_distribution`, where 0.005 to 0.3
# differ little.
_LEAST_STAGE_VARIANCE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Density:
    """A Gaussian over the embeddings of the training images, whose distance says how far from them an image is.

    The Mahalanobis distance counts each direction by how much the training images differ in it (Lee et al. 2018,
    arXiv 1807.03888). `python -m benchmarks.out_of_distribution` compares it with other rules.

    Attributes:
        mean: float32, (D,).
        axes: orthogonal directions of more than the least variance, float32, (D, K).
        variances: along them, float32, (K,).
        least: variance in every other direction.
    """

    mean: Floats
    axes: Floats
    variances: Floats
    least: float

    @classmethod
    def fit(cls, rows: Floats, least_share: float = _LEAST_VARIANCE) -> "Density":
        """The Gaussian over (N, D) rows, as embeddings of length 1.

        Args:
            rows: of the training images.
            least_share: least variance of a direction, as a share of the mean variance.
        """
        mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - mean
        variances, axes = np.linalg.eigh(centred.T @ centred / len(rows))
        least = max(least_share * float(variances.mean()), 1e-12)
        chosen = variances > least
        return cls(
            mean.astype(np.float32), axes[:, chosen].astype(np.float32), variances[chosen].astype(np.float32), least
        )

    def distance(self, embeddings: Floats) -> Floats:
        """Mahalanobis distance of (M, D) embeddings of any length: (M,)."""
        return self.distance_of_rows(normalise(embeddings))

    def distance_of_rows(self, rows: Floats) -> Floats:
        """Mahalanobis distance of (M, D) rows as they are: (M,)."""
        centred = rows - self.mean
        along = centred @ self.axes
        squares = (along**2).sum(axis=1)
        residual = np.maximum((centred**2).sum(axis=1) - squares, 0.0)
        return np.asarray(np.sqrt((along**2 / self.variances).sum(axis=1) + residual / self.least), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Reference:
    """Embeddings of all images of the dataset, each of length 1.

    Embeddings and statistics are those that the file gives back, rounded to half precision, also before they are
    written: a threshold on the distances is set with the same values that a service measures distances with.

    Attributes:
        images: N image names.
        training: which images the model was trained on, (N,).
        embeddings: float32, (N, D).
        stages: statistics of the stages, float32, (N, S); None for a model that does not give them.
    """

    images: tuple[str, ...]
    training: NDArray[np.bool_]
    embeddings: Floats
    stages: Floats | None = None
    _distances: dict[str, Callable[[Outputs], Floats]] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls, images: Sequence[str], training: NDArray[np.bool_], embeddings: Floats, stages: Floats | None = None
    ) -> "Reference":
        """A reference from N image names, a mask (N,), embeddings (N, D) of any length, and statistics (N, S)."""
        rounded = None if stages is None else _half_precision(stages)
        return cls(tuple(images), training, normalise(_half_precision(normalise(embeddings))), rounded)

    def similarity(self, embeddings: Floats) -> Floats:
        """Cosine similarity, -1 to 1, of (M, D) embeddings to all images: (M, N)."""
        return np.asarray(normalise(embeddings) @ self.embeddings.T, dtype=np.float32)

    def nearest(self, embedding: Floats, count: int = 10) -> list[tuple[str, float]]:
        """The most similar images.

        Args:
            embedding: (D,).
            count: how many.

        Returns:
            (image, cosine similarity) pairs, the most similar first.
        """
        similarity = self.similarity(embedding[None])[0]
        order = np.argsort(-similarity, kind="stable")[:count]
        return [(self.images[index], float(similarity[index])) for index in order]

    def distance(self, embeddings: Floats) -> Floats:
        """Cosine distance, 0 to 2, of (M, D) embeddings to the nearest training image: (M,)."""
        training = self.embeddings[self.training]
        return np.asarray(1.0 - (normalise(embeddings) @ training.T).max(axis=1), dtype=np.float32)

    def distance_by(self, kind: Literal["nearest", "mahalanobis", "stages"]) -> Callable[[Outputs], Floats]:
        """The distance that a model card names: from what a network gave for M images, to the training images, (M,).

        A density is fitted at the first call, which takes a second.

        Raises:
            DamagedFileError: the statistics that it needs are not there.
        """
        if kind not in self._distances:
            if kind == "stages":
                self._distances[kind] = self._stage_distance()
            else:
                distance = self.density().distance if kind == "mahalanobis" else self.distance
                self._distances[kind] = lambda outputs: distance(outputs[EMBEDDING])
        return self._distances[kind]

    def _stage_distance(self) -> Callable[[Outputs], Floats]:
        """Mahalanobis distance over the standardised means and standard deviations of the channels of all stages.

        Early stages tell textures apart that the last one, trained for CT against MR, does not (Lee et al. 2018,
        arXiv 1807.03888).

        Raises:
            DamagedFileError: there are none.
        """
        if self.stages is None:
            raise DamagedFileError(f"{REFERENCE_FILE} holds no statistics of stages")
        training = self.stages[self.training]
        mean, std = training.mean(axis=0), training.std(axis=0) + 1e-6
        density = Density.fit((training - mean) / std, _LEAST_STAGE_VARIANCE)
        return lambda outputs: density.distance_of_rows((outputs[STAGES] - mean) / std)

    def density(self) -> Density:
        """The density of the training images; takes a second where embeddings are long."""
        return Density.fit(self.embeddings[self.training])

    def save(self, folder: Path) -> str:
        """Write ``reference.safetensors``; embeddings are kept as float16.

        Returns:
            The file's name.

        Raises:
            OSError: the disk is full or failed.
        """
        arrays = {"embeddings": self.embeddings.astype(np.float16), "training": self.training}
        if self.stages is not None:
            arrays["stages"] = self.stages.astype(np.float16)
        write_arrays(folder / REFERENCE_FILE, arrays, {"images": list(self.images)})
        return REFERENCE_FILE

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """What ``save`` wrote.

        Raises:
            DamagedFileError: the file is missing, cut or of another kind.
        """
        arrays, metadata = read_arrays(folder / REFERENCE_FILE)
        if not {"embeddings", "training"} <= arrays.keys() or "images" not in metadata:
            raise DamagedFileError(f"{REFERENCE_FILE} holds no embeddings")
        embeddings = arrays["embeddings"].astype(np.float32)
        stages = arrays["stages"].astype(np.float32) if "stages" in arrays else None
        return cls(tuple(metadata["images"]), arrays["training"], normalise(embeddings), stages)


def _half_precision(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def normalise(embeddings: Floats) -> Floats:
    """Embeddings (N, D) scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(length, 1e-9), dtype=np.float32)
