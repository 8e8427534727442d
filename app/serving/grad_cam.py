"""Grad-CAM with PyTorch, for a network that PyTorch runs."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml.models.base import Floats
from ml.models.network import MultiTaskNetwork, ServingNetwork


def grad_cam(network: ServingNetwork, pixels: NDArray[np.uint8], task: str, index: int) -> Floats:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), averaged over all members and test-time views.

    The gradient is that of the logit, not of the probability: where the model is sure, the latter is zero.

    Args:
        network: members with a ``backbone``.
        pixels: uint8, (C, S, S).
        task: one of the network's tasks.
        index: of the class.

    Returns:
        float32 (S, S), 0 where nothing contributes to the class.
    """
    size = pixels.shape[-1]
    normalised = network.normalise(torch.from_numpy(pixels)[None].to(network.mean.device))
    total = torch.zeros((size, size), device=normalised.device)
    for member in network.members:
        assert isinstance(member, MultiTaskNetwork)
        for mirrored in (False, True) if network.flip else (False,):
            heat = _member_cam(member, normalised.flip(3) if mirrored else normalised, task, index)
            total += heat.flip(1) if mirrored else heat
    return np.asarray(total.cpu().numpy(), dtype=np.float32)


def _member_cam(member: MultiTaskNetwork, images: Tensor, task: str, index: int) -> Tensor:
    maps: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        maps.append(output.detach().requires_grad_())  # the gradient ends here: the rest is not needed
        return maps[0]

    handle = member.backbone.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logit = member(images)[task][0, index]
    finally:
        handle.remove()
    [gradient] = torch.autograd.grad(logit, maps)
    weighted = (gradient.mean(dim=(2, 3), keepdim=True) * maps[0].detach()).sum(dim=1, keepdim=True).relu()
    size = tuple(images.shape[2:])
    return nn.functional.interpolate(weighted, size=size, mode="bilinear", align_corners=False)[0, 0]
