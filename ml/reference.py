"""The embeddings of the dataset's images: what looks alike, and what looks like nothing seen before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ml.files import DamagedFileError, read_tensors, write_tensors
from ml.models.base import Floats

REFERENCE_FILE: Final = "reference.safetensors"


@dataclass(frozen=True, slots=True)
class Reference:
    """Embeddings of all images of the dataset, each of length 1.

    Attributes:
        images: N image names.
        training: which images the model was trained on, (N,).
        embeddings: float32, (N, D).
    """

    images: tuple[str, ...]
    training: NDArray[np.bool_]
    embeddings: Floats

    @classmethod
    def build(cls, images: Sequence[str], training: NDArray[np.bool_], embeddings: Floats) -> "Reference":
        """A reference from embeddings of any length."""
        return cls(tuple(images), training, normalise(embeddings))

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
        known = self.embeddings[self.training]
        return np.asarray(1.0 - (normalise(embeddings) @ known.T).max(axis=1), dtype=np.float32)

    def save(self, folder: Path) -> str:
        """Write ``reference.safetensors``; embeddings are kept as float16.

        Returns:
            The file's name.

        Raises:
            OSError: the disk is full or failed.
        """
        tensors = {
            "embeddings": torch.from_numpy(self.embeddings).half(),
            "training": torch.from_numpy(self.training),
        }
        write_tensors(folder / REFERENCE_FILE, tensors, {"images": list(self.images)})
        return REFERENCE_FILE

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """What ``save`` wrote.

        Raises:
            DamagedFileError: the file is missing, cut or of another kind.
        """
        tensors, metadata = read_tensors(folder / REFERENCE_FILE)
        if not {"embeddings", "training"} <= tensors.keys() or "images" not in metadata:
            raise DamagedFileError(f"{REFERENCE_FILE} holds no embeddings")
        embeddings = tensors["embeddings"].float().numpy()
        return cls(tuple(metadata["images"]), tensors["training"].numpy(), normalise(embeddings))


def normalise(embeddings: Floats) -> Floats:
    """Embeddings (N, D) scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(length, 1e-9), dtype=np.float32)
