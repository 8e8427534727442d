"""Where a CLIP model starts from: pretrained towers on disk, or small untrained ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ml.dataset.preprocess import Preprocess
from ml.models.clip import read_tokenizer
from ml.registry.artifacts import DamagedFileError, read_json
from ml.training.pretrained import WeightsError, clip_folder

_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)
# Of transformers since version 5, and before.
_PROCESSOR_FILE: Final = "processor_config.json"
_IMAGE_PROCESSOR_FILE: Final = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class SmallTowers:
    """A CLIP small enough to train from nothing on 1,653 images.

    Attributes:
        size: side of the images in pixels.
        patch: side of a patch in pixels.
        width: of both towers.
        image_layers: of the image tower.
        text_layers: of the text tower.
        heads: attention heads.
        projection: length of the embeddings.
        vocabulary: tokens, learned from the training captions.
        tokens: tokens read of a caption.
    """

    size: int = 128
    patch: int = 16
    width: int = 192
    image_layers: int = 6
    text_layers: int = 3
    heads: int = 3
    projection: int = 128
    vocabulary: int = 3000
    tokens: int = 77


@dataclass(frozen=True, slots=True)
class Start:
    """Towers before training on this dataset.

    Attributes:
        towers: the CLIP model.
        tokenizer: its tokenizer.
        preprocess: of its images.
        init: whether the towers are pretrained.
        source: where they came from, in words.
    """

    towers: CLIPModel
    tokenizer: CLIPTokenizer
    preprocess: Preprocess
    init: Literal["pretrained", "scratch"]
    source: str


def start_from(weights: str, small: SmallTowers, captions: Sequence[str]) -> Start:
    """Pretrained towers where they can be had, else small ones.

    Args:
        weights: auto, pretrained, scratch or the path of a CLIP folder.
        small: what to build without pretrained weights.
        captions: training captions, for the tokenizer of small towers.

    Raises:
        WeightsError: pretrained weights were asked for and cannot be had or read.
    """
    folder, source = clip_folder(weights)
    if folder is None:
        towers, tokenizer = build_small(small, captions)
        preprocess = Preprocess(size=small.size, channels=3, mean=_MEAN, std=_STD)
        return Start(towers, tokenizer, preprocess, "scratch", source)
    try:
        towers = _read_towers(folder)
        tokenizer = read_tokenizer(folder)
        preprocess = read_preprocess(folder, image_size(towers))
    except (OSError, RuntimeError, ValueError, DamagedFileError) as error:
        raise WeightsError(f"{folder.name} holds no usable CLIP model: {error}") from error
    return Start(towers, tokenizer, preprocess, "pretrained", source)


def _read_towers(folder: Path) -> CLIPModel:
    """The towers in a folder; transformers alone would make up the weights that are not there.

    Raises:
        DamagedFileError: weights are missing.
        OSError, RuntimeError, ValueError: of transformers: the folder holds no CLIP model that it can read.
    """
    towers, found = CLIPModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if missing := found["missing_keys"]:
        raise DamagedFileError(f"{len(missing)} weights are missing, such as {min(missing)}")
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


def build_small(small: SmallTowers, captions: Sequence[str]) -> tuple[CLIPModel, CLIPTokenizer]:
    """Untrained small towers, and a tokenizer learned from captions."""
    tokenizer = CLIPTokenizer().train_new_from_iterator(
        [caption for caption in captions if caption], small.vocabulary, show_progress=False
    )
    shared = {
        "hidden_size": small.width,
        "intermediate_size": 4 * small.width,
        "num_attention_heads": small.heads,
        "projection_dim": small.projection,
    }
    text = shared | {
        "num_hidden_layers": small.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": small.tokens,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = shared | {
        "num_hidden_layers": small.image_layers,
        "image_size": small.size,
        "patch_size": small.patch,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=small.projection)
    return CLIPModel(config), tokenizer
