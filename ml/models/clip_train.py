"""Trains ``clip-location``: a head on embeddings of CLIP, or a dual encoder where its weights are not at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record, groups, targets
from ml.evaluation.retrieval import retrieval
from ml.models import dual_encoder_train
from ml.models.base import ServedModel
from ml.models.clip import (
    FAMILY,
    NAME,
    ClipHead,
    ClipImageNetwork,
    ClipModel,
    HeadSettings,
    embed_texts,
    read_tokenizer,
)
from ml.registry.artifacts import DamagedFileError, read_json
from ml.training.checkpoint import Checkpoint, TrainState
from ml.training.context import Context, logit_adjustment
from ml.training.device import format_name
from ml.training.loop import Examples, contents, make_examples, schedule, summed_cross_entropy
from ml.training.pretrained import WeightsError, clip_folder

_BOTH: Final[tuple[Literal["image", "caption"], ...]] = ("image", "caption")
# Images or captions that the towers embed at a time.
_BATCH: Final = 64
# Share of the steps over which the learning rate rises.
_WARMUP: Final = 0.05
# Of OpenAI's models.
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)
# Of transformers since version 5, and before.
_PROCESSOR_FILE: Final = "processor_config.json"
_IMAGE_PROCESSOR_FILE: Final = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class PretrainedClip:
    """Towers before training on this dataset.

    Attributes:
        towers: the CLIP model.
        tokenizer: its tokenizer.
        preprocess: of its images.
        source: where they came from, in words.
    """

    towers: CLIPModel
    tokenizer: CLIPTokenizer
    preprocess: Preprocess
    source: str


def load_pretrained_clip(folder: Path, source: str) -> PretrainedClip:
    """The towers in a folder, as transformers saves a CLIP model.

    Args:
        folder: from ``ml.training.pretrained.clip_folder``.
        source: where it came from, in words.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        towers = _read_towers(folder)
        tokenizer = read_tokenizer(folder)
        preprocess = read_preprocess(folder, image_size(towers))
    except (OSError, RuntimeError, ValueError, DamagedFileError, SafetensorError) as error:
        raise WeightsError(f"{folder.name} holds no usable CLIP model: {error}") from error
    return PretrainedClip(towers, tokenizer, preprocess, source)


def _read_towers(folder: Path) -> CLIPModel:
    """The towers in a folder; transformers alone would initialise missing weights at random.

    Raises:
        DamagedFileError: weights are missing.
        OSError, RuntimeError, ValueError: of transformers: the folder holds no CLIP model that it can read.
    """
    loaded: Any = CLIPModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if missing := loaded[1]["missing_keys"]:
        raise DamagedFileError(f"{len(missing)} weights are missing, such as {min(missing)}")
    towers: CLIPModel = loaded[0]
    return towers


def image_size(towers: CLIPModel) -> int:
    """Side in pixels of the images that the towers take."""
    size: int = towers.vision_model.embeddings.image_size
    return size


def read_preprocess(folder: Path, size: int) -> Preprocess:
    """The preprocessing that a CLIP model was trained with, but padded where CLIP would crop.

    Args:
        folder: of the CLIP model.
        size: side of its images in pixels.

    Raises:
        DamagedFileError: the configuration of the image processor is not JSON.
    """
    fields: dict[str, Any] = {}
    if (folder / _PROCESSOR_FILE).is_file():
        fields = read_json(folder / _PROCESSOR_FILE).get("image_processor", {})
    elif (folder / _IMAGE_PROCESSOR_FILE).is_file():
        fields = read_json(folder / _IMAGE_PROCESSOR_FILE)
    mean, std = fields.get("image_mean", _MEAN), fields.get("image_std", _STD)
    return Preprocess(size=size, channels=3, interpolation="bicubic", mean=tuple(mean), std=tuple(std))


def train(
    context: Context,
    name: str = NAME,
    inputs: Sequence[Literal["image", "caption"]] = _BOTH,
    settings: HeadSettings | None = None,
) -> ServedModel:
    """Train the head on embeddings of CLIP's towers, or a dual encoder on the dataset's pairs.

    Args:
        context: records, device and reporter.
        name: of the model.
        inputs: what it is trained on and answers from.
        settings: of the head; the chosen ones by default.

    Raises:
        WeightsError: pretrained weights were asked for and cannot be had or read.
    """
    folder, source = clip_folder(context.options.weights, context.team)
    if folder is None:
        return dual_encoder_train.train(context, name, inputs)
    settings = settings or HeadSettings()
    settings = replace(settings, inputs=tuple(inputs), epochs=context.options.epochs_or(settings.epochs))
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
        settings={"head": asdict(settings), "adjust": logit_adjustment(context.train, (labels.LOCATION,))},
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


def _examples(context: Context, clip: PretrainedClip, settings: HeadSettings) -> Examples:
    """The training images, as far as the head sees them, with their labels, and whether each has a caption."""
    pixels = np.zeros((len(context.train), 1, 1, 1), dtype=np.uint8)
    if "image" in settings.inputs:
        pixels = context.images(context.train, clip.preprocess)
    task_targets = {task: targets(context.train, task) for task in labels.LOCATION_TASKS}
    examples = make_examples(pixels, task_targets, groups(context.train), settings.case_weight)
    has_text = torch.tensor([float(bool(record.caption)) for record in context.train])
    return replace(examples, inputs={"has_text": has_text})


def _train_head(context: Context, network: ClipImageNetwork, clip: PretrainedClip, settings: HeadSettings) -> None:
    """Fit the head on embeddings that are computed once."""
    examples = _examples(context, clip, settings)
    optimizer = torch.optim.AdamW(
        network.head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    identity = {
        "settings": asdict(settings),
        "seed": context.options.seed,
        "captions": [record.caption for record in context.train],
        **contents(network, examples),
    }
    state = TrainState(network.head, {}, optimizer)
    checkpoint = Checkpoint(context.checkpoint("head"), state, identity, settings.epochs)
    context.run.precision = format_name(None)
    # Of the images the embeddings alone are needed on the device.
    examples = replace(examples, pixels=examples.pixels[:0]).to(context.device)
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
    examples: Examples,
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
        kept = modality_mask(settings, examples.inputs["has_text"][index], generator)
        logits = network.head(image[index] * kept[:, :1], caption[index] * kept[:, 1:])
        loss = _loss(logits, examples, index, settings.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _loss(logits: Mapping[str, Tensor], examples: Examples, rows: Tensor, smoothing: float) -> Tensor:
    """The sum over tasks of the mean weighted cross-entropy.

    Args:
        logits: per task (M, classes).
        examples: to learn from.
        rows: the M of them that the logits are for, on their device.
        smoothing: label smoothing.
    """
    total = torch.zeros((), device=rows.device)
    for task, targets_of_all in examples.targets.items():
        target = targets_of_all[rows]
        losses = summed_cross_entropy(logits[task], target, examples.weights[rows], smoothing)
        total = total + losses / (target != labels.IGNORED).sum().clamp_min(1)
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
