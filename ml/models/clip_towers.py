"""Where a CLIP model starts from: pretrained towers on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from transformers import CLIPModel, CLIPTokenizer

from ml.dataset.preprocess import Preprocess
from ml.models.clip import read_tokenizer
from ml.registry.artifacts import DamagedFileError, read_json
from ml.training.pretrained import WeightsError

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
