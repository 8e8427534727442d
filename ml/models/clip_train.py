"""Trains ``clip-location``: a head on embeddings of CLIP, or a dual encoder where its weights are not at hand."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Final, Literal

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ml.dataset import labels
from ml.evaluation.retrieval import retrieval
from ml.models import dual_encoder_train
from ml.models.base import ServedModel
from ml.models.clip import FAMILY, NAME, ClipHead, ClipImageNetwork, ClipModel, HeadSettings
from ml.models.clip_examples import ClipExamples, embed, modality_mask
from ml.models.clip_towers import PretrainedClip, load_pretrained_clip
from ml.training.checkpoint import Checkpoint, TrainState
from ml.training.context import Context, adjustment
from ml.training.device import format_name
from ml.training.loop import schedule
from ml.training.pretrained import clip_folder

# Share of the steps over which the learning rate rises.
_WARMUP: Final = 0.05
_BOTH: tuple[Literal["image", "caption"], ...] = ("image", "caption")


def train(context: Context, settings: HeadSettings | None = None) -> ServedModel:
    """Train the head on embeddings of CLIP's towers, or a dual encoder on the dataset's pairs.

    Raises:
        ml.training.pretrained.WeightsError: pretrained weights were asked for and cannot be had or read.
    """
    return _train(context, settings or HeadSettings(), NAME, _BOTH)


def train_image(context: Context, settings: HeadSettings | None = None) -> ServedModel:
    """The same with the image alone: what the caption adds is the difference."""
    return _train(context, settings or HeadSettings(), f"{NAME}-image", ("image",))


def train_caption(context: Context, settings: HeadSettings | None = None) -> ServedModel:
    """The same with the caption alone: what the image adds is the difference."""
    return _train(context, settings or HeadSettings(), f"{NAME}-caption", ("caption",))


def _train(
    context: Context, settings: HeadSettings, name: str, inputs: Sequence[Literal["image", "caption"]]
) -> ServedModel:
    folder, source = clip_folder(context.options.weights)
    if folder is None:
        return dual_encoder_train.train(context, name, inputs)
    settings = replace(settings, inputs=tuple(inputs), epochs=context.options.epochs or settings.epochs)
    # The bars of transformers would write over our own.
    transformers_logging.disable_progress_bar()
    torch.manual_seed(context.options.seed)
    clip = load_pretrained_clip(folder, source)
    head = ClipHead(clip.towers.visual_projection.out_features, settings.hidden, settings.dropout)
    network = ClipImageNetwork(clip.towers, head, clip.preprocess.mean, clip.preprocess.std)
    network.to(context.device)
    _train_head(context, network, clip, settings)
    card = context.draft_card(
        name,
        FAMILY,
        tasks=labels.LOCATION_TASKS,
        inputs=settings.inputs,
        preprocess=clip.preprocess if "image" in settings.inputs else None,
        settings={"head": asdict(settings), "adjust": adjustment(context.train, (labels.LOCATION,))},
        init="pretrained",
        weights_source=clip.source,
    )
    model = ClipModel(card, network.towers, clip.tokenizer, head)
    if set(inputs) == set(_BOTH):
        card.shared_embedding = True
        with torch.no_grad():
            image, _ = embed(context, network, clip, context.dev, ("image",))
        captions = model.encode_captions([record.caption for record in context.dev])
        if (figures := retrieval(captions, image.cpu().numpy(), context.dev)) is not None:
            card.retrieval["dev"] = figures
    return model


def _train_head(context: Context, network: ClipImageNetwork, clip: PretrainedClip, settings: HeadSettings) -> None:
    """Fit the head on embeddings that are computed once."""
    examples = ClipExamples.of(context, clip, settings.case_weight)
    optimizer = torch.optim.AdamW(
        network.head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    identity = {"settings": asdict(settings), "seed": context.options.seed, **examples.identity(network)}
    state = TrainState(network.head, {}, optimizer)
    checkpoint = Checkpoint(context.checkpoint("head"), state, identity, settings.epochs)
    context.run.precision = format_name(None)
    first = checkpoint.restore()
    network.eval()
    if first < settings.epochs:
        with torch.no_grad(), context.run.stage(0.0, 0.7):
            embedded = embed(context, network, clip, context.train, settings.inputs)
    with context.run.stage(0.7, 1.0):
        for epoch in range(first, settings.epochs):
            loss = _head_epoch(context, network, examples, embedded, optimizer, settings, epoch)
            context.run.epoch("head", epoch + 1, settings.epochs, loss)
            if context.team.is_main_process:
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
    batches = torch.randperm(len(image), generator=generator, device=context.device).split(settings.batch_size)
    for step, index in enumerate(batches):
        done = (epoch * len(batches) + step) / (settings.epochs * len(batches))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(done, _WARMUP)
        kept = modality_mask(settings, examples.has_text[index], generator)
        logits = network.head(image[index] * kept[:, :1], caption[index] * kept[:, 1:])
        loss = examples.loss(logits, index, settings.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())
