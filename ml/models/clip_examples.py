"""What a CLIP model learns from, and what the trainings of its head and of all of it share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ml import labels
from ml.checkpoint import digest
from ml.context import Context
from ml.loop import make_examples
from ml.models.clip import TASKS, ClipImageNetwork, embed_texts
from ml.models.clip_towers import Start
from ml.records import Record, groups, targets

_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class ClipExamples:
    """Images, captions and labels of the training records.

    Attributes:
        pixels: uint8 tensor (N, 3, size, size).
        texts: N captions, "" where there is none.
        wanted: per task int64 tensor (N,), on the device of the run.
        weights: float32 tensor (N,), mean 1, on the device of the run.
    """

    pixels: Tensor
    texts: list[str]
    wanted: Mapping[str, Tensor]
    weights: Tensor

    @classmethod
    def of(cls, context: Context, start: Start, case_weight: float) -> Self:
        """The examples of a run.

        Args:
            context: records and device.
            start: the towers, which know how to prepare an image.
            case_weight: exponent, see ``ml.loop.Recipe``.
        """
        wanted = {task: targets(context.train, task) for task in TASKS}
        empty = np.zeros((len(context.train), 1, 1, 1), dtype=np.uint8)
        plain = make_examples(empty, wanted, groups(context.train), case_weight).to(context.device)
        pixels = torch.from_numpy(context.images(context.train, start.preprocess))
        return cls(pixels, [record.caption for record in context.train], plain.targets, plain.weights)

    def identity(self, network: nn.Module) -> dict[str, Any]:
        """What of a checkpoint's identity is data, or weights that the training starts from."""
        return {
            "images": digest([self.pixels]),
            "captions": self.texts,
            "labels": digest([*self.wanted.values(), self.weights]),
            "starting weights": digest(network.state_dict().values()),
        }

    def loss(self, logits: Mapping[str, Tensor], rows: Tensor, smoothing: float) -> Tensor:
        """The sum over tasks of the mean weighted cross-entropy of some examples.

        Args:
            logits: per task (M, classes).
            rows: which examples, (M,), on the device of the run.
            smoothing: label smoothing.
        """
        weights = self.weights[rows]
        total = torch.zeros((), device=weights.device)
        for task, targets_of_all in self.wanted.items():
            target = targets_of_all[rows]
            losses = functional.cross_entropy(
                logits[task].float(),
                target,
                ignore_index=labels.IGNORED,
                reduction="none",
                label_smoothing=smoothing,
            )
            total = total + (losses * weights).sum() / (target != labels.IGNORED).sum().clamp_min(1)
        return total


def embed_images(context: Context, network: ClipImageNetwork, pixels: NDArray[np.uint8]) -> Tensor:
    """Embeddings (N, size) of images (N, 3, H, W), on the run's device."""
    parts = []
    for start in range(0, len(pixels), _BATCH):
        batch = torch.from_numpy(pixels[start : start + _BATCH]).to(context.device)
        parts.append(network.embed(batch))
        context.run.update(start / len(pixels), "embedding images")
    return torch.cat(parts)


def embed_captions(network: ClipImageNetwork, start: Start, records: Sequence[Record]) -> Tensor:
    """Embeddings (N, size) of the captions of records; zeros where there is none."""
    texts = [record.caption for record in records]
    parts = [
        embed_texts(network.towers, start.tokenizer, texts[first : first + _BATCH])
        for first in range(0, len(texts), _BATCH)
    ]
    empty = torch.tensor([not text for text in texts])
    embedded = torch.cat(parts)
    embedded[empty.to(embedded.device)] = 0.0
    return embedded


def hide(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which of image and caption an example shows, float (N, 2); never neither."""
    draw = torch.rand(count, generator=generator)
    hidden = torch.stack([draw < probability, draw > 1.0 - probability], dim=1)
    return 1.0 - hidden.float()
