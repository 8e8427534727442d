"""Trains ``ml.models.dual_encoder`` on the image-caption pairs of the train split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ml.dataset import labels
from ml.dataset.preprocess import Preprocess
from ml.dataset.records import Record, groups, targets
from ml.evaluation.metrics import Targets, negative_log_likelihood
from ml.evaluation.retrieval import retrieval
from ml.models.base import EMBEDDING, Floats, has_caption, softmax
from ml.models.caption import CaptionSettings, clean, fit_text_model
from ml.models.dual_encoder import (
    CAPTION_HEADS,
    FAMILY,
    DualEncoder,
    DualEncoderModel,
    sentence_encoder,
    sentence_encoder_identity,
)
from ml.models.efficientnet import EfficientNetBackbone
from ml.models.fusion import choose_weights
from ml.models.predict_records import captions_of, run_images
from ml.training.calibration import fit_temperature
from ml.training.context import Context, log_prior
from ml.training.loop import Examples, Recipe
from ml.training.phases import READING, Phase, examples_of, recipes_to_json, train_phases
from ml.training.pretrained import efficientnet_state

_SENTENCES: Final = 64
_SENTENCE_WEIGHTS: Final = (0.0, 0.15, 0.3, 0.5)
# Share of a run by which the captions are embedded.
_EMBEDDED: Final = 0.05


def _task_weights() -> dict[str, float]:
    """One third for each head of either tower, beside the contrastive loss with weight 1."""
    heads = (*labels.TASKS, *CAPTION_HEADS.values())
    return {**dict.fromkeys(heads, 1 / 3), labels.PLANE: 1 / 6}


@dataclass(frozen=True, slots=True)
class DualEncoderSettings:
    """Every choice of a run, made on dev.

    Attributes:
        size: length of the embeddings.
        hidden: width of the caption tower's hidden layer.
        dropout: share of values dropped in training.
        case_positive: see ``ml.models.dual_encoder.contrastive_loss``.
        caption: of the softmax regression on the words of the captions.
        preprocess: of the images; the grey image stands in all three channels.
        recipe: of both towers together.
        rates: factors on the learning rate from ImageNet weights. The first stages of the image tower, whose edges
            and textures serve CT and MR as they are, stay frozen: they take most of the time of a step.
    """

    size: int = 256
    hidden: int = 512
    dropout: float = 0.3
    case_positive: float = 0.5
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    preprocess: Preprocess = field(
        default_factory=lambda: Preprocess(
            size=160, channels=3, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
    )
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=14, learning_rate=1e-3, warmup=0.1, ema_decay=0.98, task_weights=_task_weights()
        )
    )
    rates: Mapping[str, float] = field(
        default_factory=lambda: {
            "image.backbone": 0.3,
            "image.backbone.body.conv_stem": 0.0,
            "image.backbone.body.bn1": 0.0,
            "image.backbone.body.blocks.0": 0.0,
            "image.backbone.body.blocks.1": 0.0,
            "image.backbone.body.blocks.2": 0.0,
            "logit_scale": 0.3,
        }
    )

    def architecture(self) -> dict[str, Any]:
        """What is needed to build the towers again."""
        return {name: getattr(self, name) for name in ("size", "hidden", "dropout", "case_positive")}


def train(
    context: Context,
    name: str,
    inputs: Sequence[Literal["image", "caption"]] = ("image", "caption"),
    settings: DualEncoderSettings | None = None,
) -> DualEncoderModel:
    """Train both towers, from ImageNet weights and sentence embeddings; for "scratch" from a random image tower.

    Args:
        context: records, device and reporter.
        name: of the model.
        inputs: what it answers from; it is trained on both.
        settings: the chosen ones by default.

    Raises:
        ml.dataset.records.RecordsError: images are missing or damaged.
        app.data.text_encoder.EncoderError: the sentence encoder is not installed.
        ml.training.pretrained.WeightsError: the package with the ImageNet weights is damaged.
    """
    settings = settings or DualEncoderSettings()
    recipe = context.recipe(settings.recipe, depthwise=True)
    state, source = efficientnet_state("scratch" if context.options.weights == "scratch" else "auto")
    phase = Phase("scratch", recipe, {}) if state is None else Phase("pairs", recipe, settings.rates)
    with context.run.stage(0.0, READING):
        pixels = context.images(context.train, settings.preprocess)
    with context.run.stage(READING, _EMBEDDED):
        sentences = embed_captions(context.train, lambda done: context.run.update(done, "embedding captions"))
    examples = pairs(context.train, pixels, sentences, recipe)
    torch.manual_seed(context.options.seed)
    towers = DualEncoder(**settings.architecture())
    if state is not None:
        assert isinstance(towers.image.backbone, EfficientNetBackbone)
        towers.image.backbone.load_pretrained(state)
    with context.run.stage(_EMBEDDED, 0.95):
        train_phases(context, towers, examples, [phase], settings.preprocess, seed=context.options.seed)
    card = context.draft_card(
        name,
        FAMILY,
        tasks=labels.LOCATION_TASKS,
        inputs=inputs,
        preprocess=settings.preprocess if "image" in inputs else None,
        settings={
            "architecture": settings.architecture(),
            "recipes": recipes_to_json([phase]),
            "sentence_encoder": sentence_encoder_identity(),
            "fit": asdict(settings.caption),
            "sentence_weight": dict.fromkeys(labels.LOCATION_TASKS, 0.0),
            "log_prior": {task: log_prior(context.train, task).tolist() for task in labels.LOCATION_TASKS},
            # What `medpix evaluate --cv` retrains it with.
            "weights": context.options.weights,
        },
        init="scratch" if state is None else "pretrained",
        weights_source=f"EfficientNet-Lite0 + MiniLM, trained on the dataset's pairs (image tower: {source})",
    )
    model = DualEncoderModel(card, towers, *fit_text_model(context.train, settings.caption))
    if set(inputs) == {"image", "caption"}:
        with context.run.stage(0.95, 1.0):
            _choose_on_dev(context, model)
    return model


def embed_captions(records: Sequence[Record], on_progress: Callable[[float], None]) -> Floats:
    """Sentence embeddings (N, 384) of the captions of N records; ``on_progress`` is called with the finished share."""
    encoder, captions = sentence_encoder(), [clean(record.caption) for record in records]
    parts = []
    for start in range(0, len(captions), _SENTENCES):
        parts.append(encoder.encode(captions[start : start + _SENTENCES]))
        on_progress(min(1.0, (start + _SENTENCES) / len(captions)))
    return np.concatenate(parts)


def pairs(records: list[Record], pixels: NDArray[np.uint8], sentences: Floats, recipe: Recipe) -> Examples:
    """One pair per image: the labels of both towers' heads, sentence embeddings, equal captions and cases.

    Args:
        records: N records.
        pixels: of their images, uint8 (N, 3, size, size).
        sentences: embeddings of their captions, (N, 384).
        recipe: whose tasks are wanted.
    """
    captions = [clean(record.caption) for record in records]
    _, numbers = np.unique(np.array(captions, dtype=np.str_), return_inverse=True)
    _, cases = np.unique(groups(records), return_inverse=True)
    empty = np.array([not caption for caption in captions], dtype=np.bool_)
    image_tasks = {task: weight for task, weight in recipe.task_weights.items() if task not in CAPTION_HEADS.values()}
    examples = examples_of(records, pixels, replace(recipe, task_weights=image_tasks))
    of_captions = {
        head: torch.from_numpy(np.where(empty, labels.IGNORED, targets(records, task)))
        for task, head in CAPTION_HEADS.items()
    }
    loss_inputs = {"captions": torch.from_numpy(np.where(empty, -1, numbers)), "cases": torch.from_numpy(cases)}
    return replace(
        examples,
        targets={**examples.targets, **of_captions},
        inputs={"sentences": torch.from_numpy(sentences)},
        loss_inputs=loss_inputs,
    )


def _choose_on_dev(context: Context, model: DualEncoderModel) -> None:
    """Set the weights of the heads, the temperatures of each alone, and the retrieval figures on the card."""
    card, dev = model.card, context.dev
    assert model.preprocess is not None
    image_out = run_images(model, context.images(dev, model.preprocess))
    assert image_out is not None
    caption_out = model.encode_captions(captions_of(dev))
    has_text = has_caption(caption_out, len(dev))
    task_targets = {task: targets(dev, task) for task in labels.LOCATION_TASKS}
    card.settings["sentence_weight"] = {
        task: _sentence_weight(model, caption_out[has_text], task, task_targets[task][has_text])
        for task in labels.LOCATION_TASKS
    }
    from_caption = model.classify_captions(caption_out)
    card.settings["temperature_alone"] = {
        "image": {task: fit_temperature(image_out[task], task_targets[task]) for task in labels.LOCATION_TASKS},
        "caption": {
            task: fit_temperature(from_caption[task][has_text], task_targets[task][has_text])
            for task in labels.LOCATION_TASKS
        },
    }
    card.settings["fusion"] = {
        task: asdict(
            choose_weights(
                softmax(image_out[task][has_text]),
                from_caption[task][has_text],
                np.array(card.settings["log_prior"][task]),
                task_targets[task][has_text],
            )
        )
        for task in labels.LOCATION_TASKS
    }
    card.shared_embedding = True
    if (figures := retrieval(model.embed_captions(captions_of(dev)), image_out[EMBEDDING], dev)) is not None:
        card.retrieval["dev"] = figures


def _sentence_weight(model: DualEncoderModel, encoded: Floats, task: str, dev_targets: Targets) -> float:
    """The weight of the caption tower's head beside the regression with the least negative log-likelihood on dev."""
    keep = dev_targets != labels.IGNORED
    if not keep.any():
        return 0.0
    losses = {}
    for weight in _SENTENCE_WEIGHTS:
        model.card.settings["sentence_weight"][task] = weight
        logits = model.classify_captions(encoded[keep])[task]
        temperature = fit_temperature(logits, dev_targets[keep])
        losses[weight] = negative_log_likelihood(softmax(logits, temperature), dev_targets[keep])
    return min(losses, key=losses.__getitem__)
