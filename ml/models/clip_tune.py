"""Trains a whole CLIP model, towers and head together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from ml.models.clip import ClipImageNetwork, HeadSettings, embed_texts
from ml.models.clip_examples import ClipExamples, show
from ml.models.clip_towers import Start
from ml.training.augment import Augment
from ml.training.checkpoint import Checkpoint, TrainState
from ml.training.context import Context
from ml.training.device import amp_dtype, format_name, keep_freed_memory
from ml.training.loop import ema_decay, schedule


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """How to train towers and head together.

    Attributes:
        epochs: passes over the images; 0 for none.
        batch_size: images per step, over all processes.
        learning_rate: highest learning rate.
        weight_decay: of AdamW.
        ema_decay: decay of the exponential moving average of the weights.
        augment: random changes of the images.
    """

    epochs: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    ema_decay: float = 0.99
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
        self.ema = {name: value.clone() for name, value in network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            [*towers.parameters(), *network.head.parameters()],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.amp_dtype = amp_dtype(context.device)
        context.run.precision = format_name(self.amp_dtype)
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=self.amp_dtype == torch.float16)
        self.examples = ClipExamples.of(context, start, head.case_weight)

    def run(self) -> None:
        """Train; the network ends with the moving average of its weights."""
        context, settings = self.context, self.settings
        keep_freed_memory()
        state = TrainState(self.network, self.ema, self.optimizer, self.scaler)
        identity = {
            "settings": asdict(settings) | {"head": asdict(self.head)},
            "seed": context.options.seed,
            **self.examples.identity(self.network),
        }
        checkpoint = Checkpoint(context.checkpoint("tune"), state, identity, settings.epochs)
        first = checkpoint.restore()
        whole = context.team.wrap(_Whole(self.network, self.start, self.head.inputs))
        for epoch in range(first, settings.epochs):
            loss = self._epoch(whole, epoch)
            context.run.epoch("towers and head", epoch + 1, settings.epochs, loss)
            if context.team.is_main_process:
                checkpoint.save(epoch + 1)
        self.network.load_state_dict(self.ema)
        self.network.eval()

    def _epoch(self, whole: nn.Module, epoch: int) -> float:
        """One pass over the images; returns the mean loss of the team."""
        seed = self.context.options.seed * 1_000_003 + epoch
        torch.manual_seed(seed * 101 + self.context.team.rank)
        order = torch.randperm(len(self.examples.texts), generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator(self.context.device).manual_seed(seed * 101 + self.context.team.rank)
        steps = max(1, len(order) // self.settings.batch_size)
        total = torch.zeros((), device=self.context.device)
        whole.train()
        for step in range(steps):
            rows = order[step * self.settings.batch_size : (step + 1) * self.settings.batch_size]
            factor = schedule((epoch * steps + step) / (self.settings.epochs * steps), 0.1)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * factor
            total += self._step(whole, self.context.team.share(rows), generator)
            self._update_ema(epoch * steps + step)
            self.context.run.update((epoch * steps + step) / (self.settings.epochs * steps))
        return float(self.context.team.mean(total)) / steps

    def _step(self, whole: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        device = self.context.device
        texts = [self.examples.texts[row] for row in rows.tolist()]
        index = rows.to(device)
        images = 255.0 * self.settings.augment.apply(self.examples.pixels[index], generator)
        shown = show(self.head, self.examples.has_text[index], generator)
        with torch.autocast(device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
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
    def _update_ema(self, step: int) -> None:
        decay = ema_decay(self.settings.ema_decay, step)
        for name, value in self.network.state_dict().items():
            self.ema[name].lerp_(value, 1.0 - decay)
