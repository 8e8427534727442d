"""Trains ``ml.models.clip``: a head on cached embeddings, and all of it where that is asked for."""

from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ml.dataset import labels
from ml.models.clip import FAMILY, NAME, TASKS, ClipHead, ClipImageNetwork, ClipModel, HeadSettings
from ml.models.clip_examples import ClipExamples, embed, show
from ml.models.clip_towers import SmallTowers, Start, start_from
from ml.models.clip_tune import Tuner, TuneSettings
from ml.training.checkpoint import Checkpoint, Learner
from ml.training.context import Context, adjustment
from ml.training.device import format_name
from ml.training.loop import schedule


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """Every choice of a run.

    Attributes:
        head: from pretrained towers, the head on cached embeddings.
        tune: from pretrained towers, all weights after that; only with the option ``thorough``.
        scratch: from random weights, all weights at once.
        small: the towers to train from nothing.
    """

    head: HeadSettings = field(default_factory=HeadSettings)
    tune: TuneSettings = field(default_factory=lambda: TuneSettings(epochs=10))
    scratch: TuneSettings = field(
        default_factory=lambda: TuneSettings(epochs=60, rate=5e-4, weight_decay=0.05, shares=(1.0,))
    )
    small: SmallTowers = field(default_factory=SmallTowers)


def train(context: Context, settings: ClipSettings | None = None) -> ClipModel:
    """Train the head on embeddings of pretrained towers, or small towers and head from nothing.

    Raises:
        ml.training.pretrained.WeightsError: pretrained weights were asked for and cannot be had or read.
    """
    return _train(context, settings or ClipSettings(), NAME)


def train_image(context: Context, settings: ClipSettings | None = None) -> ClipModel:
    """The same with the image alone: what the caption adds is the difference."""
    settings = settings or ClipSettings()
    return _train(context, replace(settings, head=replace(settings.head, inputs=("image",))), f"{NAME}-image")


def train_caption(context: Context, settings: ClipSettings | None = None) -> ClipModel:
    """The same with the caption alone: what the image adds is the difference."""
    settings = settings or ClipSettings()
    return _train(context, replace(settings, head=replace(settings.head, inputs=("caption",))), f"{NAME}-caption")


def _train(context: Context, settings: ClipSettings, name: str) -> ClipModel:
    epochs = context.options.epochs
    if epochs is not None:
        settings = replace(
            settings,
            head=replace(settings.head, epochs=epochs),
            tune=replace(settings.tune, epochs=epochs),
            scratch=replace(settings.scratch, epochs=epochs),
        )
    # The bars of transformers would write over our own.
    transformers_logging.disable_progress_bar()
    torch.manual_seed(context.options.seed)
    start = start_from(context.options.weights, settings.small, [record.caption for record in context.train])
    head = ClipHead(start.towers.visual_projection.out_features, settings.head.hidden, settings.head.dropout)
    network = ClipImageNetwork(start.towers, head, start.preprocess.mean, start.preprocess.std)
    network.to(context.device)
    share = 0.0
    tuning = settings.scratch if start.init == "scratch" else settings.tune
    if start.init == "pretrained":
        with context.run.stage(0.0, 0.4 if context.options.thorough else 1.0):
            _train_head(context, network, start, settings.head)
    if start.init == "scratch" or context.options.thorough:
        with context.run.stage(0.0 if start.init == "scratch" else 0.4, 1.0):
            share = Tuner(context, network, start, tuning, settings.head).run()
    card = context.draft_card(
        name,
        FAMILY,
        tasks=TASKS,
        inputs=settings.head.inputs,
        preprocess=start.preprocess if "image" in settings.head.inputs else None,
        settings={
            "head": asdict(settings.head),
            "tune": asdict(tuning),
            "share": share,
            "adjust": adjustment(context.train, (labels.LOCATION,)),
        },
        init=start.init,
        weights_source=start.source,
    )
    return ClipModel(card, network.towers, start.tokenizer, head)


def _train_head(context: Context, network: ClipImageNetwork, start: Start, settings: HeadSettings) -> None:
    """Fit the head on embeddings that are computed once."""
    examples = ClipExamples.of(context, start, settings.case_weight)
    optimizer = torch.optim.AdamW(network.head.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    identity = {"settings": asdict(settings), "seed": context.options.seed, **examples.identity(network)}
    learner = Learner(network.head, {}, optimizer)
    checkpoint = Checkpoint(context.checkpoint("head"), learner, identity, settings.epochs)
    context.run.precision = format_name(None)
    first = checkpoint.restore()
    network.eval()
    if first < settings.epochs:
        with torch.no_grad(), context.run.stage(0.0, 0.7):
            embedded = embed(context, network, start, context.train, settings.inputs)
    with context.run.stage(0.7, 1.0):
        for epoch in range(first, settings.epochs):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * schedule(epoch / settings.epochs, 0.05)
            loss = _head_epoch(context, network, examples, embedded, optimizer, settings, epoch)
            context.run.epoch("head", epoch + 1, settings.epochs, loss)
            if context.team.leads:
                checkpoint.save(epoch + 1)
    network.eval()


def _head_epoch(
    context: Context,
    network: ClipImageNetwork,
    examples: ClipExamples,
    embeddings: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    settings: HeadSettings,
    epoch: int,
) -> float:
    """One pass over the embeddings of images and captions; returns the mean loss."""
    image, caption = embeddings
    # From seed and epoch alone, so that a run that goes on sees what an unbroken one would have seen.
    seed = context.options.seed * 1_000_003 + epoch
    torch.manual_seed(seed)
    generator = torch.Generator(context.device).manual_seed(seed)
    network.head.train()
    losses = []
    for index in torch.randperm(len(image), generator=generator, device=context.device).split(settings.batch):
        shown = show(settings, examples.has_text[index], generator)
        logits = network.head(image[index] * shown[:, :1], caption[index] * shown[:, 1:])
        loss = examples.loss(logits, index, settings.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())
