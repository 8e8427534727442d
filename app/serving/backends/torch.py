"""PyTorch, on CUDA and on a CPU where OpenVINO cannot run a network."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from app.serving.backends.base import Floats, Pixels, Precision

_DTYPES: Final[Mapping[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """Runs a network with PyTorch.

    Args:
        network: to run; moved to the device.
        device: cpu or cuda.
        precision: fp32, or the one of autocast.
    """

    name = "torch"

    def __init__(self, network: nn.Module, device: str, precision: Precision = "fp32") -> None:
        self.device = device
        self.precision = precision
        self._network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # PyTorch rounds the inputs of convolutions to TF32, with 10 bits, unless it is told not to: fp32 is what
        # lower precisions are compared with.
        torch.backends.cudnn.allow_tf32 = False

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        """Run a batch."""
        outputs = self.forward(torch.from_numpy(pixels).to(self.device))
        return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    def forward(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """Run a batch that is on the device already; the outputs stay there."""
        amp_dtype = _DTYPES.get(self.precision)
        cache_weights = self.device != "cuda"  # weights that autocast caches cannot be captured in a CUDA graph
        with (
            torch.inference_mode(),
            torch.autocast(self.device, amp_dtype, enabled=amp_dtype is not None, cache_enabled=cache_weights),
        ):
            outputs: dict[str, Tensor] = self._network(pixels.contiguous(memory_format=torch.channels_last))
            return outputs
