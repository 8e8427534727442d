"""PyTorch, on CUDA and on a CPU where OpenVINO cannot run a network."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from app.serving.backends.base import Floats, Pixels, Precision
from ml.models.network import reduced

_DTYPES: Final[Mapping[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The flags of TF32 are the whole process's, and the thread of another model may need the other value.
_TF32_LOCK: Final = threading.Lock()


class TorchBackend:
    """Runs a network with PyTorch.

    Args:
        network: to run; moved to the device. In bf16 and fp16 on CUDA a copy runs, whose weights are converted once.
        device: cpu or cuda.
        precision: fp32, tf32 (on CUDA), or that of autocast.
    """

    name = "torch"

    def __init__(self, network: nn.Module, device: str, precision: Precision = "fp32") -> None:
        self.device = device
        self.precision = precision
        amp_dtype = _DTYPES.get(precision)
        if device == "cuda" and amp_dtype is not None:
            network = reduced(network, amp_dtype)
        self._network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch, uint8 (N, C, H, W); see ``Backend``."""
        images = torch.from_numpy(pixels)
        if self.device == "cpu":
            return {name: output.float().numpy() for name, output in self.forward(images).items()}
        outputs = self.forward(images.pin_memory().to(self.device, non_blocking=True))
        copies = {name: torch.empty(output.shape, pin_memory=True) for name, output in outputs.items()}
        for name, output in outputs.items():
            copies[name].copy_(output, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return {name: np.array(value.numpy()) for name, value in copies.items()}

    def forward(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """Run a batch (N, C, H, W) that is on the device already; the outputs stay there."""
        amp_dtype = _DTYPES.get(self.precision)
        cache_weights = self.device != "cuda"  # weights that autocast caches cannot be captured in a CUDA graph
        with (
            tf32(allowed=self.precision == "tf32") if self.device == "cuda" else nullcontext(),
            torch.inference_mode(),
            torch.autocast(self.device, amp_dtype, enabled=amp_dtype is not None, cache_enabled=cache_weights),
        ):
            outputs: dict[str, Tensor] = self._network(pixels.contiguous(memory_format=torch.channels_last))
            return outputs


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Within it the kernels that are launched may round the inputs of products to TF32, with 10 bits, or may not.

    By itself PyTorch rounds those of convolutions: fp32, which lower precisions are compared with, must forbid it.
    """
    with _TF32_LOCK:
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
