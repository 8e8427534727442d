"""Trains ``ml.models.clip``: a head on cached embeddings, and all of it where that is asked for."""

from dataclasses import asdict, dataclass, field, replace

import torch
from transformers.utils import logging as transformers_logging

from ml.context import Context
from ml.loop import schedule
from ml.models.clip import FAMILY, NAME, TASKS, ClipHead, ClipImageNetwork, ClipModel, HeadSettings
from ml.models.clip_towers import SmallTowers, Start, start_from
from ml.models.clip_tune import (
    Tuner,
    TuneSettings,
    case_weights,
    embed_captions,
    embed_images,
    head_loss,
    hide,
)
from ml.records import targets


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
        ml.weights.WeightsError: pretrained weights were asked for and cannot be had or read.
    """
    settings = settings or ClipSettings()
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
    tuning = settings.scratch if start.init == "scratch" else settings.tune
    if start.init == "pretrained":
        with context.run.stage(0.0, 0.4 if context.options.thorough else 1.0):
            _train_head(context, network, start, settings.head)
    if start.init == "scratch" or context.options.thorough:
        with context.run.stage(0.0 if start.init == "scratch" else 0.4, 1.0):
            Tuner(context, network, start, tuning, settings.head).run()
    card = context.draft_card(
        NAME,
        FAMILY,
        tasks=TASKS,
        inputs=("image", "caption"),
        preprocess=start.preprocess,
        settings={"head": asdict(settings.head), "tune": asdict(tuning)},
        init=start.init,
        weights_source=start.source,
    )
    return ClipModel(card, network.towers, start.tokenizer, head)


def _train_head(context: Context, network: ClipImageNetwork, start: Start, settings: HeadSettings) -> None:
    """Fit the head on embeddings that are computed once."""
    network.eval()
    with torch.no_grad(), context.run.stage(0.0, 0.7):
        image = embed_images(context, network, context.images(context.train, start.preprocess))
        caption = embed_captions(network, start, context.train)
    wanted = {task: torch.from_numpy(targets(context.train, task)).to(context.device) for task in TASKS}
    weights = case_weights(context, settings.case_weight)
    optimizer = torch.optim.AdamW(network.head.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    generator = torch.Generator().manual_seed(context.options.seed)
    for epoch in range(settings.epochs):
        network.head.train()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * schedule(epoch / settings.epochs, 0.05)
        for batch in torch.randperm(len(image), generator=generator).split(settings.batch):
            index = batch.to(context.device)
            shown = hide(len(index), settings.modality_dropout, generator).to(context.device)
            logits = network.head(image[index] * shown[:, :1], caption[index] * shown[:, 1:])
            loss = head_loss(logits, {t: w[index] for t, w in wanted.items()}, weights[index], settings.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        context.run.update(
            0.7 + 0.3 * (epoch + 1) / settings.epochs,
            f"head, epoch {epoch + 1}/{settings.epochs}",
            epoch=epoch + 1,
            epochs=settings.epochs,
        )
    network.eval()
