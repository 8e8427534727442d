"""The devices of this machine, and the backend that runs a network on them."""

import hashlib
import logging
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import openvino as ov

from app.core.cpus import usable_cpus
from app.core.settings import Settings
from app.serving.backends.base import Backend, NetworkOwner, Precision
from app.serving.backends.openvino import OpenVinoBackend
from ml import models
from ml.dataset.preprocess import Preprocess

logger = logging.getLogger(__name__)

# CUDA devices have fp16 units from this compute capability on.
_HALF_CAPABILITY: Final = (7, 0)
_GPU_NODES: Final = ("nvidia[0-9]*", "nvidiactl", "dxg", "kfd")


def lower_precisions(device: str) -> tuple[Precision, ...]:
    """The precisions below fp32 that a device supports natively, the fastest first."""
    if device == "cuda":
        import torch  # noqa: PLC0415 - see on_cuda

        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ("bf16", "tf32")  # of one generation
        return ("fp16",) if torch.cuda.get_device_capability() >= _HALF_CAPABILITY else ()
    return ("bf16",) if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ()


def device_name(device: str) -> str:
    """The vendor's name of a device."""
    if device == "cuda":
        import torch  # noqa: PLC0415 - see on_cuda

        return str(torch.cuda.get_device_name())
    return str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME"))


def on_cuda(settings: Settings) -> bool:
    """Whether networks run on a CUDA device; one that ``auto`` has to leave aside is logged, with the cause."""
    if settings.device == "cpu" or (settings.device == "auto" and not _has_gpu_driver()):
        return False
    # Imported here: it takes seconds and hundreds of megabytes, and OpenVINO on a CPU needs none of it.
    import torch  # noqa: PLC0415 - see above

    from ml.training.device import warn_of_unusable_gpu  # noqa: PLC0415 - see above

    if settings.device == "auto":
        warn_of_unusable_gpu()
    return torch.cuda.is_available()


def _has_gpu_driver() -> bool:
    """Whether the kernel shows a GPU that PyTorch might use: of NVIDIA, also under WSL, or of AMD."""
    return any(True for pattern in _GPU_NODES for _ in Path("/dev").glob(pattern))


@cache
def software() -> str:
    """Versions of the runtimes and a hash of the model code: with equal weights either may change an answer."""
    code = hashlib.sha256()
    for path in sorted(Path(models.__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return f"openvino {ov.__version__} torch {version('torch')} code {code.hexdigest()}"


def make_backend(
    model: NetworkOwner, preprocess: Preprocess, settings: Settings, weights: str, precision: Precision = "fp32"
) -> Backend:
    """The fastest backend that this machine has for a network.

    Args:
        model: whose network to run.
        preprocess: says the shape of its input.
        settings: device and cache folder.
        weights: hash of the network's weights, for the cache.
        precision: to compute in; where OpenVINO fails, PyTorch on the CPU does in fp32.

    Returns:
        On CUDA PyTorch, else OpenVINO; ``app.serving.autotune`` may know a way that is faster still.

    Raises:
        RuntimeError: MEDPIX_DEVICE=cuda, and there is no CUDA device.
    """
    if on_cuda(settings):
        return _torch_backend(model, "cuda", precision)
    if settings.device == "cuda":
        from ml.training.device import cuda_fault  # noqa: PLC0415 - see on_cuda

        cause = cuda_fault() or "PyTorch sees no CUDA device"
        raise RuntimeError(f"MEDPIX_DEVICE=cuda, but {cause}. Use auto or cpu.")
    try:
        key = hashlib.sha256(f"{weights} {preprocess.hash} {software()}".encode()).hexdigest()[:32]
        cache = settings.home / "cache" / "openvino" / key
        threads = _threads()
        return OpenVinoBackend(model, preprocess, threads=threads, cache=cache, precision=precision)
    except Exception:
        logger.warning("OpenVINO cannot run this network; PyTorch does", exc_info=True)
        return _torch_backend(model, "cpu", "fp32")


def decode_threads(settings: Settings) -> int:
    """How many threads decode images for a network: the setting, else 4, or 64 for a GPU, as far as there are cores."""
    return settings.decode_threads or min(64 if on_cuda(settings) else 4, usable_cpus())


def _threads() -> int:
    """As many as PyTorch would use: OMP_NUM_THREADS, but no more than there are processors."""
    configured = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(configured), usable_cpus()) if configured.isdecimal() and int(configured) else usable_cpus()


def _torch_backend(model: NetworkOwner, device: str, precision: Precision) -> Backend:
    from app.serving.backends.torch import TorchBackend  # noqa: PLC0415 - see on_cuda

    assert model.network is not None
    return TorchBackend(model.network, device, precision)
