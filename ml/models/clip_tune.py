"""Trains a whole CLIP model, towers and head together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml.dataset import labels
from ml.dataset.records import targets
from ml.evaluation.metrics import negative_log_likelihood
from ml.models.base import softmax
from ml.models.clip import TASKS, ClipImageNetwork, HeadSettings, embed_texts
from ml.models.clip_examples import ClipExamples, embed, show
from ml.models.clip_towers import Start
from ml.training.augment import Augment
from ml.training.checkpoint import Checkpoint, Learner
from ml.training.context import Context
from ml.training.device import format_name, half_type, keep_freed_memory
from ml.training.loop import schedule


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
            (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903); with 0 tuning never makes it worse there.
        augment: random changes of the images.
    """

    epochs: int = 0
    batch: int = 32
    rate: float = 1e-5
    weight_decay: float = 0.1
    average: float = 0.99
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    augment: Augment = field(default_factory=Augment)


class _Whole(nn.Module):
    """Towers and head as one module, so that a team averages all gradients at once."""

    def __init__(self, network: ClipImageNetwork, start: Start, inputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._tokenizer, self._inputs = start.tokenizer, inputs

    def forward(self, images: Tensor, texts: list[str], shown: Tensor) -> dict[str, Tensor]:
        nothing = images.new_zeros(len(images), self.network.towers.visual_projection.out_features)
        image = self.network.embed(images) if "image" in self._inputs else nothing
        caption = embed_texts(self.network.towers, self._tokenizer, texts) if "caption" in self._inputs else nothing
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
        towers = network.towers
        towers.logit_scale.requires_grad_(False)
        for name, halves in (
            ("image", (towers.vision_model, towers.visual_projection)),
            ("caption", (towers.text_model, towers.text_projection)),
        ):
            for half in halves:
                half.requires_grad_(name in head.inputs)
        self.before = {name: value.clone() for name, value in network.state_dict().items()}
        self.average = {name: value.clone() for name, value in self.before.items()}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(towers.parameters()), "factor": 1.0},
                {
                    "params": list(network.head.parameters()),
                    "factor": 10.0 if start.init == "pretrained" else 1.0,
                },
            ],
            lr=settings.rate,
            weight_decay=settings.weight_decay,
        )
        self.half = half_type(context.device)
        context.run.precision = format_name(self.half)
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=self.half == torch.float16)
        self.examples = ClipExamples.of(context, start, head.case_weight)

    def run(self) -> float:
        """Train, then mix the weights before and after as is best on dev; returns the share of the latter."""
        context, settings = self.context, self.settings
        keep_freed_memory()
        learner = Learner(self.network, self.average, self.optimizer, self.scaler)
        identity = {
            "settings": asdict(settings) | {"head": asdict(self.head)},
            "seed": context.options.seed,
            **self.examples.identity(self.network),
        }
        checkpoint = Checkpoint(context.checkpoint("tune"), learner, identity, settings.epochs)
        first = checkpoint.restore()
        whole = context.team.wrap(_Whole(self.network, self.start, self.head.inputs))
        for epoch in range(first, settings.epochs):
            loss = self._epoch(whole, epoch)
            context.run.epoch("towers and head", epoch + 1, settings.epochs, loss)
            if context.team.leads:
                checkpoint.save(epoch + 1)
        return self._choose_share()

    def _epoch(self, whole: nn.Module, epoch: int) -> float:
        """One pass over the images; returns the mean loss of the team."""
        seed = self.context.options.seed * 1_000_003 + epoch
        torch.manual_seed(seed * 101 + self.context.team.rank)
        order = torch.randperm(len(self.examples.texts), generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator(self.context.device).manual_seed(seed * 101 + self.context.team.rank)
        steps = max(1, len(order) // self.settings.batch)
        total = torch.zeros((), device=self.context.device)
        whole.train()
        for step in range(steps):
            rows = order[step * self.settings.batch : (step + 1) * self.settings.batch]
            factor = schedule((epoch * steps + step) / (self.settings.epochs * steps), 0.1)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate * group["factor"] * factor
            total += self._step(whole, self.context.team.share(rows), generator)
            self._update_average(epoch * steps + step)
        return float(self.context.team.mean(total)) / steps

    def _step(self, whole: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        device = self.context.device
        texts = [self.examples.texts[row] for row in rows.tolist()]
        index = rows.to(device)
        images = 255.0 * self.settings.augment.apply(self.examples.pixels[index], generator)
        shown = show(self.head, self.examples.has_text[index], generator)
        with torch.autocast(device.type, self.half, enabled=self.half is not None):
            logits = whole(images, texts, shown)
        loss = self.examples.loss(logits, index, self.head.smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(self.settings.average, (1.0 + step) / (10.0 + step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1.0 - decay)

    @torch.no_grad()
    def _choose_share(self) -> float:
        """Keep the mix of the weights before and after tuning with the least loss on dev."""
        dev = self.context.dev
        losses = {}
        for share in self.settings.shares:
            self._mix(share)
            logits = self.network.head(*embed(self.context, self.network, self.start, dev, self.head.inputs))
            losses[share] = sum(_dev_loss(logits[task], targets(dev, task)) for task in TASKS)
        best = min(losses, key=lambda share: losses[share])
        self._mix(best)
        return best

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
