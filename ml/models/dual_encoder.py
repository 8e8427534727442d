"""A dual encoder by the method of CLIP: EfficientNet-Lite0 and all-MiniLM-L6-v2, trained on the dataset's own pairs.

Images and captions are embedded in one space by a contrastive loss (Radford et al. 2021, arXiv 2103.00020), with a
head per task on each tower. transformers' ``VisionTextDualEncoderModel`` takes towers of transformers alone, of which
timm's EfficientNet is none; ``ml.models.network`` has what is needed, with test-time views and Grad-CAM.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from app.data.text_encoder import DIMENSIONS, MODEL_NAME, WEIGHTS_SHA256, TextEncoder
from ml.dataset import labels
from ml.models.base import EMBEDDING, Floats, Outputs, ServedModel, has_caption, missing_input, softmax
from ml.models.caption import (
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    clean,
    load_text_model,
    save_text_model,
    split_tasks,
)
from ml.models.efficientnet import EfficientNetBackbone
from ml.models.fusion import FusionWeights, fuse
from ml.models.network import MultiTaskNetwork, ServingNetwork, full_precision
from ml.models.text import LinearClassifier, TextFeatures
from ml.registry.artifacts import DamagedFileError, read_tensors, write_tensors
from ml.registry.model_card import ModelCard

FAMILY: Final = "dual-encoder"
TOWERS_FILE: Final = "towers.safetensors"
# What the outputs of the caption tower's heads are called in training, beside those of the image tower.
CAPTION_HEADS: Final[Mapping[str, str]] = {task: f"caption_{task}" for task in labels.LOCATION_TASKS}
# What the caption tower's embedding is called in training, beside that of the image tower.
CAPTION_EMBEDDING: Final = f"caption_{EMBEDDING}"
# Of CLIP: the logits are at most this many times the cosine similarity.
_MAX_SCALE: Final = 100.0
_HIDDEN_LOGIT: Final = -1e4


class ImageTower(MultiTaskNetwork):
    """EfficientNet-Lite0 with a head per task and a linear projection into the shared space.

    Args:
        size: length of the embeddings.
        dropout: share of pooled features dropped in training.
    """

    def __init__(self, size: int, dropout: float) -> None:
        backbone = EfficientNetBackbone()
        classes = {task: len(names) for task, names in labels.TASKS.items()} | {labels.PLANE: len(labels.PLANES)}
        super().__init__(backbone, backbone.features, classes, dropout)
        self.visual_projection = nn.Linear(backbone.features, size)

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """The last feature map (N, D, h, w) to logits per task and the embedding (N, size) of length 1."""
        outputs = super().classify(features)
        with full_precision(features.device):
            projected = self.visual_projection(self.dropout(outputs[EMBEDDING]))
            return outputs | {EMBEDDING: functional.normalize(projected, dim=1)}


class CaptionTower(nn.Module):
    """A projection of sentence embeddings into the shared space, and a head per task on it.

    Args:
        size: length of the embeddings.
        hidden: width of the hidden layer.
        dropout: share of values dropped before each linear layer in training.
    """

    def __init__(self, size: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.text_projection = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(DIMENSIONS, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, size)
        )
        self.heads = nn.ModuleDict({task: nn.Linear(size, len(labels.TASKS[task])) for task in labels.LOCATION_TASKS})

    @property
    def device(self) -> torch.device:
        """Where its weights are: a service may move the image tower alone."""
        return self.heads[labels.LOCATION_TASKS[0]].weight.device  # type: ignore[return-value]  # of an nn.Linear

    def embed(self, sentences: Tensor) -> Tensor:
        """Sentence embeddings (N, 384) to embeddings (N, size) of length 1."""
        return functional.normalize(self.text_projection(sentences.float()), dim=1)

    def classify(self, embedding: Tensor) -> dict[str, Tensor]:
        """Embeddings (N, size) to logits per task."""
        return {task: head(embedding) for task, head in self.heads.items()}


class DualEncoder(nn.Module):
    """Both towers and the learned temperature of the contrastive loss.

    Args:
        size: length of the embeddings.
        hidden: width of the caption tower's hidden layer.
        dropout: of both towers.
        case_positive: weight of another image's caption of the same case as a positive, beside 1 for the same caption.
    """

    batch_outputs = (EMBEDDING, CAPTION_EMBEDDING)

    def __init__(self, size: int, hidden: int, dropout: float, case_positive: float) -> None:
        super().__init__()
        self.image = ImageTower(size, dropout)
        self.caption = CaptionTower(size, hidden, dropout)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1.0 / 0.07)))
        self.case_positive = case_positive

    def extra_repr(self) -> str:
        """What is in no state dict, for the representation of the module."""
        return f"case_positive={self.case_positive}"

    def forward(self, x: Tensor, sentences: Tensor) -> dict[str, Tensor]:
        """The outputs of a training step.

        Args:
            x: normalised images (N, 3, H, W).
            sentences: sentence embeddings of their captions, (N, 384).

        Returns:
            Logits per task and embeddings (N, size) of both towers.
        """
        outputs: dict[str, Tensor] = self.image(x)
        with full_precision(x.device):
            text = self.caption.embed(sentences)
            outputs |= {CAPTION_HEADS[task]: logits for task, logits in self.caption.classify(text).items()}
        return outputs | {CAPTION_EMBEDDING: text}

    def batch_loss(self, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """The contrastive loss of a batch, see ``ml.training.loop.BatchLoss``.

        Args:
            outputs: embeddings of N images and of their captions, (N, size) each.
            inputs: "captions" and "cases", see ``contrastive_loss``.
        """
        scale = self.logit_scale.exp().clamp(max=_MAX_SCALE)
        logits = scale * outputs[EMBEDDING].float() @ outputs[CAPTION_EMBEDDING].T
        return contrastive_loss(logits, inputs["captions"], inputs["cases"], self.case_positive)


def contrastive_loss(logits: Tensor, captions: Tensor, cases: Tensor, case_positive: float) -> Tensor:
    """InfoNCE in both directions, with several positives per row.

    The target of a row is spread over its positives: equal captions weigh 1, other captions of the same case
    ``case_positive``, and rows add up to 1. Images without a caption are neither rows nor columns.

    Args:
        logits: scaled cosine similarities of N images (rows) and their N captions (columns).
        captions: equal captions have one number, -1 where there is none, int64 (N,).
        cases: images of one case have one number, int64 (N,).
        case_positive: 0 to 1.
    """
    has_caption = (captions >= 0).float()
    positives = torch.maximum(
        (captions[:, None] == captions[None]).float(), case_positive * (cases[:, None] == cases[None]).float()
    )
    positives = positives * has_caption[:, None] * has_caption[None]
    positives = positives / positives.sum(dim=1, keepdim=True).clamp_min(1e-6)
    logits = logits.masked_fill(has_caption[:, None] * has_caption[None] == 0, _HIDDEN_LOGIT)
    losses = -(positives * (logits.log_softmax(dim=1) + logits.T.log_softmax(dim=1))).sum(dim=1)
    return 0.5 * (losses * has_caption).sum() / has_caption.sum().clamp_min(1.0)


class DualEncoderModel(ServedModel):
    """Location and location category from image, caption or both, and one space of both for retrieval.

    The image tower's heads answer for the image. For the caption a softmax regression on TF-IDF and lexicon answers
    (``ml.models.caption``), to whose log-probabilities those of the caption tower's heads are added with the weight
    ``settings["sentence_weight"]``: words of anatomy name a place more surely than the meaning of the sentence does.
    Where both inputs are there, image and caption are added with the weights of ``settings["fusion"]``. All weights
    are chosen on dev, and image, caption and both have a temperature each.

    Args:
        card: what is known about the model; it has no preprocessing where it takes no image.
        towers: trained.
        features: fitted text features.
        classifiers: one per task.
    """

    network: ServingNetwork | None

    def __init__(
        self,
        card: ModelCard,
        towers: DualEncoder,
        features: TextFeatures,
        classifiers: dict[str, LinearClassifier],
    ) -> None:
        super().__init__(card)
        self.towers, self.features, self.classifiers = towers.eval(), features, classifiers
        self.network = None
        if preprocess := self.preprocess:
            self.network = ServingNetwork([towers.image], tuple(card.tasks), preprocess.mean, preprocess.std).eval()

    @property
    def cam_layer(self) -> nn.Module | None:
        """The last feature map of the image tower."""
        return None if self.network is None else self.towers.image.backbone

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The towers, and the network around one of them where the model takes images."""
        return (self.towers,) if self.network is None else (self.towers, self.network)

    def encode_captions(self, captions: Sequence[str | None]) -> Floats:
        """Embedding and log-probabilities of the regressions side by side, (N, size + 21 + 5).

        NaN where there is no caption or none of its words is known.
        """
        texts = [clean(caption) for caption in captions]
        terms = self.features.transform(texts)
        log_probabilities = [self.classifiers[task].log_probabilities(terms) for task in labels.LOCATION_TASKS]
        encoded = np.hstack([self.embed_captions(texts), *log_probabilities]).astype(np.float32)
        encoded[~self.features.has_known_words(texts)] = np.nan
        return encoded

    def embed_captions(self, captions: Sequence[str | None]) -> Floats:
        """Caption embeddings (N, size) of length 1, NaN where there is no caption; 128 tokens of each are read."""
        texts = [clean(caption) for caption in captions]
        rows = [index for index, text in enumerate(texts) if text]
        encoded = np.full((len(texts), self.towers.image.visual_projection.out_features), np.nan, dtype=np.float32)
        if rows:
            sentences = torch.from_numpy(sentence_encoder().encode([texts[index] for index in rows]))
            with torch.inference_mode():
                encoded[rows] = self.towers.caption.embed(sentences.to(self.towers.caption.device)).cpu().numpy()
        return encoded

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities from image, caption or both, per item.

        Raises:
            InputError: an item has nothing that the model takes.
        """
        image = image_out if "image" in self.inputs else None
        caption = caption_out if "caption" in self.inputs else None
        count = next((len(part) for part in (caption, *(image or {}).values()) if part is not None), 0)
        has_text = has_caption(caption, count)
        if image is None and ("image" in self.inputs or caption is None) and not (count and has_text.all()):
            raise missing_input(self.card)
        from_caption = {} if caption is None else self.classify_captions(caption)
        return {
            task: self._combine(task, None if image is None else image[task], from_caption.get(task), has_text)
            for task in self.card.tasks
        }

    def _combine(
        self, task: str, image: Floats | None, caption: NDArray[np.float32] | None, has_text: NDArray[np.bool_]
    ) -> Floats:
        """Of one task, from log-probabilities of the image and of the captions where ``has_text`` is true."""
        settings, temperature = self.card.settings, self.card.temperature[task]
        prior = np.array(settings["log_prior"][task])
        if image is None:
            assert caption is not None
            alone = temperature if "image" not in self.inputs else settings["temperature_alone"]["caption"][task]
            return softmax(np.where(has_text[:, None], caption, prior), alone)
        alone = temperature if "caption" not in self.inputs else settings["temperature_alone"]["image"][task]
        answer = softmax(image, alone)
        if caption is not None and has_text.any():
            weights = FusionWeights(**settings["fusion"][task])
            fused = fuse(softmax(image[has_text]), caption[has_text], prior, weights)
            answer[has_text] = softmax(fused, temperature)
        return answer

    def classify_captions(self, encoded: Floats) -> dict[str, Floats]:
        """Log-probabilities (N, classes) per task, not normalised, from what ``encode_captions`` gives."""
        caption = self.towers.caption
        size = self.towers.image.visual_projection.out_features
        by_words = split_tasks(encoded[:, size:])
        with torch.inference_mode():
            logits = caption.classify(torch.from_numpy(np.nan_to_num(encoded[:, :size])).to(caption.device))
        weight = self.card.settings["sentence_weight"]
        return {
            task: by_words[task] + weight[task] * value.log_softmax(dim=1).cpu().numpy()
            for task, value in logits.items()
        }

    def save(self, folder: Path) -> list[str]:
        """Write towers, regressions and vocabulary; the sentence encoder comes with its package."""
        write_tensors(folder / TOWERS_FILE, dict(self.towers.state_dict()))
        save_text_model(folder, self.features, self.classifiers)
        return [TOWERS_FILE, WEIGHTS_FILE, VOCABULARY_FILE]

    def count_parameters(self) -> int:
        """The number of trained values, without the sentence encoder."""
        towers = sum(value.numel() for value in self.towers.parameters())
        return towers + sum(item.weights.size + item.bias.size for item in self.classifiers.values())

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """The model that ``save`` wrote.

        Raises:
            DamagedFileError: the file is missing, cut or of another architecture, or the model was trained with
                another sentence encoder.
            app.data.text_encoder.EncoderError: the sentence encoder is not installed.
        """
        tensors, _ = read_tensors(folder / TOWERS_FILE)
        if card.settings["sentence_encoder"] != sentence_encoder_identity():
            raise DamagedFileError(f"it was trained with another sentence encoder than {MODEL_NAME}; train it again")
        towers = DualEncoder(**card.settings["architecture"])
        try:
            towers.load_state_dict(tensors)
        except RuntimeError as error:
            raise DamagedFileError(f"{TOWERS_FILE} does not fit the architecture in its card") from error
        sentence_encoder()  # takes a second, which the first request need not pay
        return cls(card, towers, *load_text_model(folder))


@cache
def sentence_encoder() -> TextEncoder:
    """The encoder whose embeddings the caption tower projects, one for all models of the process.

    Raises:
        app.data.text_encoder.EncoderError: it is not installed, or not the one that is known.
    """
    return TextEncoder()


def sentence_encoder_identity() -> dict[str, Any]:
    """Which sentence encoder this is, for a card."""
    return {"name": MODEL_NAME, "sha256": WEIGHTS_SHA256}
