"""What a CLIP model learns from, and what the trainings of its head and of all of it share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ml.dataset import labels
from ml.dataset.records import Record, groups, targets
from ml.models.clip import ClipImageNetwork, HeadSettings, embed_texts
from ml.models.clip_towers import PretrainedClip
from ml.training.checkpoint import digest
from ml.training.context import Context
from ml.training.loop import make_examples

_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class ClipExamples:
    """Images, captions and labels of the training records.

    Attributes:
        pixels: uint8 tensor (N, 3, size, size).
        texts: N captions, "" where there is none.
        has_text: whether there is one, float tensor (N,).
        targets: per task int64 tensor (N,).
        weights: float32 tensor (N,), mean 1.

    All tensors are on the device of the run.
    """

    pixels: Tensor
    texts: list[str]
    has_text: Tensor
    targets: Mapping[str, Tensor]
    weights: Tensor

    @classmethod
    def of(cls, context: Context, clip: PretrainedClip, case_weight: float) -> Self:
        """The examples of a run.

        Args:
            context: records and device.
            clip: the towers, which know how to prepare an image.
            case_weight: exponent, see ``ml.training.loop.make_examples``.
        """
        task_targets = {task: targets(context.train, task) for task in labels.LOCATION_TASKS}
        empty = np.zeros((len(context.train), 1, 1, 1), dtype=np.uint8)
        plain = make_examples(empty, task_targets, groups(context.train), case_weight).to(context.device)
        pixels = torch.from_numpy(context.images(context.train, clip.preprocess)).to(context.device)
        texts = [record.caption for record in context.train]
        has_text = torch.tensor([float(bool(text)) for text in texts], device=context.device)
        return cls(pixels, texts, has_text, plain.targets, plain.weights)

    def identity(self, network: nn.Module) -> dict[str, Any]:
        """What of a checkpoint's identity is data, or weights that the training starts from."""
        return {
            "images": digest([self.pixels]),
            "captions": self.texts,
            "labels": digest([*self.targets.values(), self.weights]),
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
        for task, targets_of_all in self.targets.items():
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


def embed(
    context: Context, network: ClipImageNetwork, clip: PretrainedClip, records: Sequence[Record], inputs: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Embeddings of images and captions, each (N, size) on the run's device.

    Args:
        context: images, device and reporter.
        network: the towers.
        clip: which prepares the images and cuts captions into tokens.
        records: N records.
        inputs: "image", "caption" or both; what is not named is all zeros, as is a missing caption.
    """
    size = network.towers.visual_projection.out_features
    image = caption = torch.zeros(len(records), size, device=context.device)
    if "image" in inputs:
        image = _embed_images(context, network, context.images(records, clip.preprocess))
    if "caption" in inputs:
        caption = _embed_captions(network, clip, [record.caption for record in records])
    return image, caption


def _embed_images(context: Context, network: ClipImageNetwork, pixels: NDArray[np.uint8]) -> Tensor:
    parts = []
    for start in range(0, len(pixels), _BATCH):
        batch = torch.from_numpy(pixels[start : start + _BATCH]).to(context.device)
        parts.append(network.embed(batch))
        context.run.update(start / len(pixels), "embedding images")
    return torch.cat(parts)


def _embed_captions(network: ClipImageNetwork, clip: PretrainedClip, texts: Sequence[str]) -> Tensor:
    parts = [
        embed_texts(network.towers, clip.tokenizer, texts[first : first + _BATCH])
        for first in range(0, len(texts), _BATCH)
    ]
    embedded = torch.cat(parts)
    embedded[torch.tensor([not text for text in texts], device=embedded.device)] = 0.0
    return embedded


def modality_mask(head: HeadSettings, has_text: Tensor, generator: torch.Generator) -> Tensor:
    """Which of image and caption each example shows, float (N, 2).

    Args:
        head: its inputs, and the probability that one of two is hidden; never both are.
        has_text: whether there is a caption to show, float (N,).
        generator: source of randomness, on the device of ``has_text``.
    """
    if len(head.inputs) == 1:
        only = has_text.new_tensor([float(name in head.inputs) for name in ("image", "caption")])
        return only.expand(len(has_text), 2)
    draw = torch.rand(len(has_text), generator=generator, device=has_text.device)
    caption = has_text * (draw <= 1.0 - head.modality_dropout)
    # Without a caption the image is kept, whatever was drawn.
    image = torch.where(caption > 0, (draw >= head.modality_dropout).float(), 1.0)
    return torch.stack([image, caption], dim=1)
