"""A small residual network with one head per task, and what wraps networks for serving."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.models.base import EMBEDDING, MAPS, STAGES

# What the modules that stay in float32 are called in every family.
_HEADS: Final = frozenset({"head", "heads", "visual_projection"})


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Within it autocast converts nothing: heads cost next to nothing, and half precision costs their answers digits.

    Nothing is entered where autocast is off, so that an exported graph has no trace of it.
    """
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def reduced(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy for autocast whose weights are converted once, where autocast alone converts them at every run.

    Args:
        network: of any family, in float32.
        dtype: bfloat16 or float16, for the weights of convolutions and linear layers; heads and norms keep theirs.
    """
    network = copy.deepcopy(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not _HEADS & set(name.split(".")):
            module.to(dtype)
    return network


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, arXiv 1512.03385, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        # Every block starts as the identity, which lets a deep network train from scratch.
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h / stride, w / stride)."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        total: Tensor = self.shortcut(x) + self.norm2(self.conv2(inner))
        return functional.relu(total)


class CompactBackbone(nn.Module):
    """A ResNet18 whose width, in channels after the stem, is free; 64 is the original's.

    Args:
        channels: 1 for grey images.
        width: channels after the stem; the last feature map has eight times as many.
        blocks: residual blocks per stage.
    """

    def __init__(self, channels: int = 1, width: int = 32, blocks: Sequence[int] = (2, 2, 2, 2)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        layers: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width << stage
            for index in range(count):
                layers.append(ResidualBlock(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
        self.body = nn.Sequential(*layers)
        self.features = inputs

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, channels, H, W) to a feature map (N, features, H / 32, W / 32)."""
        features: Tensor = self.body(self.stem(x))
        return features


@runtime_checkable
class StagedBackbone(Protocol):
    """A backbone that gives the feature map of each of its stages."""

    def forward_stages(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Normalised images to the last feature map and those of the stages."""
        ...


class MultiTaskNetwork(nn.Module):
    """A backbone, average pooling, dropout and one linear head per task.

    Args:
        backbone: images to feature map.
        features: channels of the last feature map.
        classes: number of classes per task.
        dropout: share of pooled features dropped in training.
    """

    def __init__(self, backbone: nn.Module, features: int, classes: Mapping[str, int], dropout: float = 0.2) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({task: nn.Linear(features, count) for task, count in classes.items()})

    @property
    def has_stages(self) -> bool:
        """Whether the backbone gives the feature maps of its stages."""
        return isinstance(self.backbone, StagedBackbone)

    def forward(self, x: Tensor, *, stages: bool = False) -> dict[str, Tensor]:
        """Normalised images (N, C, H, W) to logits per task and the pooled features as embedding.

        Args:
            x: the images.
            stages: also give mean and standard deviation of each channel of each stage, of a backbone that has them.
        """
        return self.forward_with_maps(x, stages=stages)[0]

    def forward_with_maps(self, x: Tensor, *, stages: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """What ``forward`` returns, and the last feature map (N, D, h, w)."""
        if stages:
            assert isinstance(self.backbone, StagedBackbone)
            features, maps = self.backbone.forward_stages(x)
            statistics = {STAGES: torch.cat([_statistics(each) for each in maps], dim=1)}
            return self.classify(features) | statistics, features
        features = self.backbone(x)
        return self.classify(features), features

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """The backbone's last feature map (N, D, h, w) to logits per task and the embedding."""
        embedding = features.float().mean(dim=(2, 3))
        dropped = self.dropout(embedding)
        with full_precision(features.device):
            return {task: head(dropped) for task, head in self.heads.items()} | {EMBEDDING: embedding}


def _statistics(features: Tensor) -> Tensor:
    """Mean and standard deviation of each channel of a feature map: (N, C, h, w) to (N, 2 C)."""
    features = features.float()
    mean = features.mean(dim=(2, 3))
    variance = (features - mean[:, :, None, None]).square().mean(dim=(2, 3))
    return torch.cat([mean, variance.sqrt()], dim=1)


class PixelNetwork(nn.Module):
    """A network that takes pixels as they are in an image, 0 to 255, and normalises them itself.

    Args:
        part: a module of the network, whose device is that of the buffers too.
        mean: per channel, in units of 0 to 1.
        std: per channel, in units of 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, part: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # A network that was just trained is on the device of its training.
        device = next(part.parameters()).device
        self.register_buffer("mean", 255.0 * torch.tensor(mean, device=device).view(1, -1, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(std, device=device).view(1, -1, 1, 1))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images (N, C, H, W), 0 to 255, as the weights expect them."""
        return (pixels.float() - self.mean) / self.std


class ServingNetwork(PixelNetwork):
    """Normalisation, test-time views and the mean of several networks in one traceable module.

    The probabilities of all members over all views are averaged; their logarithm is the logit. The
    embedding is that of every member on the unchanged image, each of length 1, side by side, as are the statistics
    of the stages.

    Args:
        members: networks that take normalised images, all on one device.
        tasks: the tasks to answer; other heads of the members are left out.
        mean: per channel, in units of 0 to 1.
        std: per channel, in units of 0 to 1.
        flip: average over the mirrored image too.
        stages: also give the statistics of the stages.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        tasks: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        flip: bool = True,
        stages: bool = False,
    ) -> None:
        super().__init__(members[0], mean, std)
        self.members = nn.ModuleList(members)
        self.tasks = tuple(tasks)
        self.flip = flip
        self.stages = stages

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W), 0 to 255, to log-probabilities per task, the embedding (N, D) and the stages (N, S)."""
        views = self._views(pixels)
        return self._average(
            [[member(view, **self._asked(index)) for index, view in enumerate(views)] for member in self.members]
        )

    def forward_with_maps(self, pixels: Tensor) -> dict[str, Tensor]:
        """What ``forward`` returns, and the last feature maps of all members and views.

        Returns:
            Also ``"maps"``: (N, members * views, D, h, w), the views of a member side by side; those of the mirrored
            image are mirrored. All members must be ``MultiTaskNetwork``.
        """
        views = self._views(pixels)
        members = [member for member in self.members if isinstance(member, MultiTaskNetwork)]
        answers = [
            [member.forward_with_maps(view, **self._asked(index)) for index, view in enumerate(views)]
            for member in members
        ]
        maps = [each for own in answers for _, each in own]
        return self._average([[outputs for outputs, _ in own] for own in answers]) | {MAPS: torch.stack(maps, dim=1)}

    def _asked(self, view: int) -> dict[str, bool]:
        """Arguments of a member: the statistics of the stages are those of the unchanged image."""
        return {"stages": True} if self.stages and not view else {}

    def _views(self, pixels: Tensor) -> list[Tensor]:
        x = self.normalise(pixels)
        return [x, x.flip(3)] if self.flip else [x]

    def _average(self, answers: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        """The outputs of every member for every view as one."""
        sums: dict[str, Tensor] = {}
        embeddings, stages = [], []
        for own in answers:
            if self.stages:
                stages.append(own[0][STAGES])
            embeddings.append(functional.normalize(own[0][EMBEDDING].float(), dim=1))
            for view in own:
                for task in self.tasks:
                    probabilities = view[task].float().softmax(dim=1)
                    sums[task] = sums[task] + probabilities if task in sums else probabilities
        count = len(self.members) * (2 if self.flip else 1)
        logits = {task: (total / count).clamp_min(1e-8).log() for task, total in sums.items()}
        outputs = logits | {EMBEDDING: torch.cat(embeddings, dim=1)}
        return outputs | {STAGES: torch.cat(stages, dim=1)} if self.stages else outputs
