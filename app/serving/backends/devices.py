"""The devices of this machine, and the backend that runs a network on them."""

import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Final

import openvino as ov
import torch
from torch import nn

from app.core.cpus import usable_cpus
from app.core.settings import Settings
from app.serving.backends.base import Backend, Precision
from app.serving.backends.openvino import OpenVinoBackend
from app.serving.backends.torch import TorchBackend
from ml import models
from ml.dataset.preprocess import Preprocess
from ml.training.device import cuda_fault, warn_of_unusable_gpu

logger = logging.getLogger(__name__)

# CUDA devices have fp16 units from this compute capability on.
_HALF_CAPABILITY: Final = (7, 0)


def lower_precisions(device: str) -> tuple[Precision, ...]:
    """The precisions below fp32 that a device supports natively, the fastest first."""
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ("bf16", "tf32")  # of one generation
        return ("fp16",) if torch.cuda.get_device_capability() >= _HALF_CAPABILITY else ()
    return ("bf16",) if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ()


def device_name(device: str) -> str:
    """The vendor's name of a device."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME"))


def on_cuda(settings: Settings) -> bool:
    """Whether networks run on a CUDA device; one that ``auto`` has to leave aside is logged, with the cause."""
    if settings.device == "auto":
        warn_of_unusable_gpu()
    return settings.device != "cpu" and torch.cuda.is_available()


@cache
def software() -> str:
    """Versions of the runtimes and a hash of the model code: with equal weights either may change an answer."""
    code = hashlib.sha256()
    for path in sorted(Path(models.__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return f"openvino {ov.__version__} torch {torch.__version__} code {code.hexdigest()}"


def make_backend(
    network: nn.Module, preprocess: Preprocess, settings: Settings, weights: str, precision: Precision = "fp32"
) -> Backend:
    """The fastest backend that this machine has for a network.

    Args:
        network: to run.
        preprocess: says the shape of its input.
        settings: device and cache folder.
        weights: hash of the network's weights, for the cache.
        precision: to compute in; where OpenVINO fails, PyTorch on the CPU does in fp32.

    Returns:
        On CUDA PyTorch, else OpenVINO; ``app.serving.autotune`` may know a way that is faster still.

    Raises:
        RuntimeError: MEDPIX_DEVICE=cuda, and there is no CUDA device.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        cause = cuda_fault() or "PyTorch sees no CUDA device"
        raise RuntimeError(f"MEDPIX_DEVICE=cuda, but {cause}. Use auto or cpu.")
    if on_cuda(settings):
        return TorchBackend(network, "cuda", precision)
    try:
        key = hashlib.sha256(f"{weights} {preprocess.hash} {software()}".encode()).hexdigest()[:32]
        cache = settings.home / "cache" / "openvino" / key
        threads = min(torch.get_num_threads(), usable_cpus())
        return OpenVinoBackend(network, preprocess, threads=threads, cache=cache, precision=precision)
    except Exception:
        logger.warning("OpenVINO cannot run this network; PyTorch does", exc_info=True)
        return TorchBackend(network, "cpu")
