"""CLIP embeddings of image and caption with a small head on both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ml.dataset import labels
from ml.models.base import EMBEDDING, Floats, Outputs, ServedModel, calibrated, missing_input, sub_state
from ml.models.network import PixelNetwork, full_precision
from ml.models.text import has_usable_word
from ml.registry.artifacts import DamagedFileError, read_json, read_tensors, write_json, write_tensors
from ml.registry.model_card import ModelCard

NAME: Final = "clip-location"
FAMILY: Final = "clip"
TOWERS_FILE: Final = "towers.safetensors"
CONFIG_FILE: Final = "clip.json"
TOKENIZER_FILE: Final = "tokenizer.json"
_MAX_CHARACTERS: Final = 4000


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """The head on the embeddings and how to train it.

    Attributes:
        hidden: width of the hidden layer.
        dropout: share of hidden values dropped in training.
        modality_dropout: probability to hide the image, and as much to hide the caption, of a
            training example, so that the head answers with either alone.
        epochs: passes over the cached embeddings.
        batch_size: examples per step.
        learning_rate: highest learning rate.
        weight_decay: of AdamW.
        smoothing: label smoothing.
        case_weight: exponent, see ``ml.training.loop.make_examples``.
        inputs: what it is trained on and answers from: "image", "caption" or both.
    """

    hidden: int = 256
    dropout: float = 0.25
    modality_dropout: float = 0.2
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    smoothing: float = 0.05
    case_weight: float = 0.5
    inputs: tuple[Literal["image", "caption"], ...] = ("image", "caption")


class ClipHead(nn.Module):
    """One hidden layer on an image and a caption embedding, and a linear layer per task.

    Args:
        size: length of an embedding.
        hidden: width of the hidden layer.
        dropout: share of hidden values dropped in training.
    """

    def __init__(self, size: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(2 * size, hidden), nn.GELU(), nn.Dropout(dropout))
        self.heads = nn.ModuleDict({task: nn.Linear(hidden, len(labels.TASKS[task])) for task in labels.LOCATION_TASKS})

    def forward(self, image: Tensor, caption: Tensor) -> dict[str, Tensor]:
        """Embeddings (N, size) of length 1, zeros where one is missing, to logits per task."""
        with full_precision(image.device):
            hidden = self.hidden(torch.cat([image, caption], dim=1).float())
            return {task: head(hidden) for task, head in self.heads.items()}


class ClipImageNetwork(PixelNetwork):
    """CLIP's image tower with normalisation, and the head's answer from the image alone."""

    def __init__(self, towers: CLIPModel, head: ClipHead, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(head, mean, std)
        self.towers, self.head = towers, head

    def embed(self, pixels: Tensor) -> Tensor:
        """Images (N, 3, H, W), 0 to 255, to embeddings (N, size) of length 1."""
        vision = self.towers.vision_model(pixel_values=self.normalise(pixels))
        with full_precision(pixels.device):
            return functional.normalize(self.towers.visual_projection(vision.pooler_output.float()), dim=1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W), 0 to 255, to log-probabilities per task and the embedding."""
        embedding = self.embed(pixels)
        logits = self.head(embedding, torch.zeros_like(embedding))
        return {task: value.log_softmax(dim=1) for task, value in logits.items()} | {EMBEDDING: embedding}


class ClipModel(ServedModel):
    """Location and location category from image, caption or both.

    ``combine`` runs the head on what there is: a missing image or caption is a zero embedding, as in
    training with modality dropout. A model of both inputs needs at least one of them for every item; a
    model of one input ignores the other.

    Args:
        card: what is known about the model; it has no preprocessing where it takes no image.
        towers: the CLIP model.
        tokenizer: its tokenizer.
        head: the trained head.
    """

    network: ClipImageNetwork | None

    def __init__(self, card: ModelCard, towers: CLIPModel, tokenizer: CLIPTokenizer, head: ClipHead) -> None:
        super().__init__(card)
        self.towers, self.tokenizer, self.head = towers.eval(), tokenizer, head.eval()
        self.network = None
        if preprocess := self.preprocess:
            self.network = ClipImageNetwork(towers, head, preprocess.mean, preprocess.std).eval()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Towers and head, and the network around them where the model takes images."""
        return (self.towers, self.head) if self.network is None else (self.network,)

    def encode_captions(self, captions: Sequence[str | None]) -> Floats:
        """Caption embeddings (N, size) of length 1, NaN where there is no caption or it has no usable word.

        CLIP reads the first 77 tokens of a caption; one in nine of the dataset's is longer.
        """
        texts = [" ".join((caption or "")[:_MAX_CHARACTERS].split()) for caption in captions]
        self.towers.eval()
        with torch.inference_mode():
            embedded = embed_texts(self.towers, self.tokenizer, texts).float().cpu().numpy()
        embedded[~has_usable_word(texts)] = np.nan
        return np.asarray(embedded, dtype=np.float32)

    def embed_captions(self, captions: Sequence[str | None]) -> Floats:
        """The same: the head stands on the shared embeddings."""
        return self.encode_captions(captions)

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities from image, caption or both, per item.

        Raises:
            InputError: an item has nothing that the model takes.
        """
        image = image_out[EMBEDDING] if image_out is not None and "image" in self.inputs else None
        caption = caption_out if "caption" in self.inputs else None
        some = next((part for part in (image, caption) if part is not None), None)
        # A model of captions alone has learned what to say without one.
        if some is None or (image is None and "image" in self.inputs and np.isnan(some).any()):
            raise missing_input(self.card)
        parts = [np.zeros_like(some) if part is None else np.nan_to_num(part) for part in (image, caption)]
        with torch.inference_mode():
            logits = self.head(*(torch.from_numpy(part).float().to(self.device) for part in parts))
        return {task: calibrated(self.card, task, logits[task].float().cpu().numpy()) for task in self.card.tasks}

    def save(self, folder: Path) -> list[str]:
        """Write towers, head, configuration and tokenizer."""
        tensors = {f"towers.{name}": t for name, t in self.towers.state_dict().items()}
        tensors |= {f"head.{name}": t for name, t in self.head.state_dict().items()}
        write_tensors(folder / TOWERS_FILE, tensors)
        write_json(folder / CONFIG_FILE, self.towers.config.to_dict())
        self.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
        return [TOWERS_FILE, CONFIG_FILE, TOKENIZER_FILE]

    def count_parameters(self) -> int:
        """The number of trained values of both towers and the head."""
        return sum(value.numel() for module in (self.towers, self.head) for value in module.parameters())

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """The model that ``save`` wrote.

        Raises:
            DamagedFileError: a file is missing, cut or of another model.
        """
        tensors, _ = read_tensors(folder / TOWERS_FILE)
        towers = CLIPModel(CLIPConfig.from_dict(read_json(folder / CONFIG_FILE)))
        settings = card.settings["head"]
        head = ClipHead(towers.visual_projection.out_features, settings["hidden"], settings["dropout"])
        try:
            towers.load_state_dict(sub_state(tensors, "towers."))
            head.load_state_dict(sub_state(tensors, "head."))
        except RuntimeError as error:
            raise DamagedFileError(f"the files of {card.name} do not belong together") from error
        return cls(card, towers.eval(), read_tokenizer(folder / TOKENIZER_FILE), head)


def read_tokenizer(path: Path) -> CLIPTokenizer:
    """The tokenizer in a tokenizer.json, or in the folder of a CLIP model.

    Raises:
        DamagedFileError: there is none that can be read.
    """
    try:
        if path.is_dir():
            tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        else:
            tokenizer = CLIPTokenizer(tokenizer_file=str(path))
    except Exception as error:  # the Rust library under it raises nothing narrower
        raise DamagedFileError(f"{path.name} is no tokenizer of CLIP: {error}") from error
    return cast("CLIPTokenizer", tokenizer)


def embed_texts(towers: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Caption embeddings (N, size) of length 1, on the device of the towers."""
    length = towers.text_model.embeddings.position_embedding.num_embeddings
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    device = towers.text_projection.weight.device
    hidden = towers.text_model(
        input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
    )
    return functional.normalize(towers.text_projection(hidden.pooler_output), dim=1)
