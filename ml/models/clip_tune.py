"""Trains a whole CLIP model, towers and head together."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ml import labels
from ml.augment import Augment
from ml.checkpoint import Checkpoint
from ml.context import Context
from ml.device import half_type
from ml.loop import make_examples, schedule
from ml.metrics import negative_log_likelihood
from ml.models.base import softmax
from ml.models.clip import TASKS, ClipImageNetwork, HeadSettings, embed_texts
from ml.models.clip_towers import Start
from ml.records import Record, groups, targets

_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """How to train towers and head together.

    Attributes:
        epochs: passes over the images; 0 for none.
        batch: images per step, over all processes.
        rate: highest learning rate; the head's is ten times higher.
        weight_decay: of AdamW.
        average: decay of the moving average of the weights.
        shares: shares of the tuned weights to try on dev, the rest being the weights before tuning
            (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903).
        augment: random changes of the images.
    """

    epochs: int = 0
    batch: int = 32
    rate: float = 1e-5
    weight_decay: float = 0.1
    average: float = 0.99
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    augment: Augment = field(default_factory=Augment)


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


def case_weights(context: Context, exponent: float) -> Tensor:
    """The weight of each training record, (N,), mean 1."""
    empty = np.zeros((len(context.train), 1, 1, 1), dtype=np.uint8)
    return make_examples(empty, {}, groups(context.train), exponent).weights.to(context.device)


def hide(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which of image and caption an example shows, float (N, 2); never neither."""
    draw = torch.rand(count, generator=generator)
    hidden = torch.stack([draw < probability, draw > 1.0 - probability], dim=1)
    return 1.0 - hidden.float()


def head_loss(logits: Mapping[str, Tensor], wanted: Mapping[str, Tensor], weights: Tensor, smoothing: float) -> Tensor:
    """The sum over tasks of the mean weighted cross-entropy.

    Args:
        logits: per task (N, classes).
        wanted: per task (N,), with ``labels.IGNORED``.
        weights: (N,).
        smoothing: label smoothing.
    """
    total = torch.zeros((), device=weights.device)
    for task, target in wanted.items():
        losses = functional.cross_entropy(
            logits[task].float(),
            target,
            ignore_index=labels.IGNORED,
            reduction="none",
            label_smoothing=smoothing,
        )
        total = total + (losses * weights).sum() / (target != labels.IGNORED).sum().clamp_min(1)
    return total


class _Whole(nn.Module):
    """Towers and head as one module, so that a team averages all gradients at once."""

    def __init__(self, network: ClipImageNetwork, start: Start) -> None:
        super().__init__()
        self.network = network
        self._tokenizer = start.tokenizer

    def forward(self, images: Tensor, texts: list[str], shown: Tensor) -> dict[str, Tensor]:
        image = self.network.embed(images)
        caption = embed_texts(self.network.towers, self._tokenizer, texts)
        logits: dict[str, Tensor] = self.network.head(image * shown[:, :1], caption * shown[:, 1:])
        return logits


class Tuner:
    """Trains towers and head of a CLIP model together.

    Args:
        context: records, device and whom to tell.
        network: towers and head, changed in place.
        start: what the towers were.
        settings: how to train.
        head: dropout of modalities, label smoothing and weights of cases.
    """

    def __init__(
        self,
        context: Context,
        network: ClipImageNetwork,
        start: Start,
        settings: TuneSettings,
        head: HeadSettings,
    ) -> None:
        self.context, self.network, self.start = context, network, start
        self.settings, self.head = settings, head
        network.towers.logit_scale.requires_grad_(False)
        self.before = {name: value.clone() for name, value in network.state_dict().items()}
        self.average = {name: value.clone() for name, value in self.before.items()}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(network.towers.parameters()), "factor": 1.0},
                {
                    "params": list(network.head.parameters()),
                    "factor": 10.0 if start.init == "pretrained" else 1.0,
                },
            ],
            lr=settings.rate,
            weight_decay=settings.weight_decay,
        )
        self.pixels = torch.from_numpy(context.images(context.train, start.preprocess))
        self.texts = [record.caption for record in context.train]
        self.has_text = torch.tensor([[1.0, float(bool(text))] for text in self.texts])
        self.wanted = {task: torch.from_numpy(targets(context.train, task)) for task in TASKS}
        self.weights = case_weights(context, head.case_weight)

    def run(self) -> None:
        """Train, then mix the weights before and after as is best on dev."""
        context, settings = self.context, self.settings
        identity = {"tune": asdict(settings), "head": asdict(self.head), "source": self.start.source}
        checkpoint = Checkpoint(context.checkpoint("tune"), identity)
        first = checkpoint.restore(self.network, self.average, self.optimizer)
        whole = context.team.wrap(_Whole(self.network, self.start))
        for epoch in range(first, settings.epochs):
            self._epoch(whole, epoch)
            if context.team.leads:
                checkpoint.save(epoch + 1, self.network, self.average, self.optimizer)
            message = f"towers and head, epoch {epoch + 1}/{settings.epochs}"
            done = (epoch + 1) / settings.epochs
            context.run.update(done, message, epoch=epoch + 1, epochs=settings.epochs)
        self._choose_share()

    def _epoch(self, whole: nn.Module, epoch: int) -> None:
        seed = self.context.options.seed * 1_000_003 + epoch
        torch.manual_seed(seed * 101 + self.context.team.rank)
        order = torch.randperm(len(self.pixels), generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed * 101 + self.context.team.rank)
        steps = max(1, len(order) // self.settings.batch)
        whole.train()
        for step in range(steps):
            rows = order[step * self.settings.batch : (step + 1) * self.settings.batch]
            factor = schedule((epoch * steps + step) / (self.settings.epochs * steps), 0.1)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate * group["factor"] * factor
            self._step(whole, self.context.team.share(rows), generator)
            self._update_average(epoch * steps + step)

    def _step(self, whole: nn.Module, rows: Tensor, generator: torch.Generator) -> None:
        device = self.context.device
        half = half_type(device)
        images = 255.0 * self.settings.augment.apply(self.pixels[rows], generator)
        shown = hide(len(rows), self.head.modality_dropout, generator) * self.has_text[rows]
        # Without caption the image must show, whatever the dice say.
        shown[:, 0] = torch.where(shown[:, 1] > 0, shown[:, 0], 1.0)
        with torch.autocast(device.type, half, enabled=half is not None):
            logits = whole(images.to(device), [self.texts[i] for i in rows.tolist()], shown.to(device))
        wanted = {task: target[rows].to(device) for task, target in self.wanted.items()}
        loss = head_loss(logits, wanted, self.weights[rows.to(device)], self.head.smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(self.settings.average, (1.0 + step) / (10.0 + step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1.0 - decay)

    @torch.no_grad()
    def _choose_share(self) -> None:
        """Keep the mix of the weights before and after tuning with the least loss on dev."""
        dev = self.context.dev
        pixels = self.context.images(dev, self.start.preprocess)
        losses = {}
        for share in self.settings.shares:
            self._mix(share)
            image = embed_images(self.context, self.network, pixels)
            logits = self.network.head(image, embed_captions(self.network, self.start, dev))
            losses[share] = sum(_dev_loss(logits[task], targets(dev, task)) for task in TASKS)
        self._mix(min(losses, key=lambda share: losses[share]))

    def _mix(self, share: float) -> None:
        mixed = {
            name: torch.lerp(value, self.average[name], share) if value.is_floating_point() else value
            for name, value in self.before.items()
        }
        self.network.load_state_dict(mixed)
        self.network.eval()


def _dev_loss(logits: Tensor, wanted: NDArray[np.int64]) -> float:
    keep = wanted != labels.IGNORED
    return negative_log_likelihood(softmax(logits.float().cpu().numpy())[keep], wanted[keep])
