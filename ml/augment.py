"""Random changes to a batch of images that leave modality and location as they are."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Augment:
    """How far an image may be changed.

    Attributes:
        rotation: largest angle in degrees.
        scale: largest change of size, 0.2 for 1/1.2 to 1.2 times.
        aspect: largest change of the ratio of the axes, in natural log.
        shift: largest shift, as a share of the side.
        flip: probability of a mirror image; left and right share their labels.
        gamma: largest change of the exponent of grey levels, in natural log: display windows vary.
        contrast: largest relative change of contrast.
        brightness: largest change of brightness, in units of 0 to 1.
        erase: probability that a rectangle is painted over (Zhong et al. 2017, arXiv 1708.04896).
        noise: largest standard deviation of added noise, in units of 0 to 1.
    """

    rotation: float = 15.0
    scale: float = 0.2
    aspect: float = 0.08
    shift: float = 0.12
    flip: float = 0.5
    gamma: float = 0.4
    contrast: float = 0.25
    brightness: float = 0.08
    erase: float = 0.3
    noise: float = 0.0

    def apply(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Change every image of a batch by itself.

        Args:
            pixels: uint8 tensor (N, C, H, W).
            generator: source of randomness, on the device of ``pixels``.

        Returns:
            float32 tensor (N, C, H, W), 0 to 1.
        """
        images = pixels.float() / 255.0
        theta = self._affine(len(images), images.device, generator)
        images = functional.grid_sample(images, grid(theta, *images.shape[2:]), align_corners=False)
        return self._erase(self._grey_levels(images, generator), generator)

    def _affine(self, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
        def symmetric(limit: float) -> Tensor:
            return (torch.rand(count, generator=generator, device=device) * 2.0 - 1.0) * limit

        angle = symmetric(math.radians(self.rotation))
        scale = symmetric(math.log1p(self.scale)).exp()
        aspect = symmetric(self.aspect).exp()
        mirror = torch.where(torch.rand(count, generator=generator, device=device) < self.flip, -1.0, 1.0)
        cosine, sine = scale * angle.cos(), scale * angle.sin()
        # The grid spans -1 to 1, so a shift of s of the side is 2 s.
        rows = [
            torch.stack([cosine * aspect * mirror, -sine, symmetric(2.0 * self.shift)], dim=1),
            torch.stack([sine * mirror, cosine / aspect, symmetric(2.0 * self.shift)], dim=1),
        ]
        return torch.stack(rows, dim=1)

    def _grey_levels(self, images: Tensor, generator: torch.Generator) -> Tensor:
        def symmetric(limit: float) -> Tensor:
            draw = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
            return (draw * 2.0 - 1.0) * limit

        images = images.clamp(1e-4, 1.0) ** symmetric(self.gamma).exp()
        images = images * (1.0 + symmetric(self.contrast)) + symmetric(self.brightness)
        if self.noise:
            strength = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
            grain = torch.randn(images.shape, generator=generator, device=images.device)
            images = images + grain * strength * self.noise
        return images.clamp(0.0, 1.0)

    def _erase(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        draw = torch.rand(count, 6, generator=generator, device=images.device).cpu()
        for index in (draw[:, 0] < self.erase).nonzero()[:, 0].tolist():
            tall, wide, top, left, grey = draw[index, 1:].tolist()
            rows, columns = int(height * (0.1 + 0.25 * tall)), int(width * (0.1 + 0.25 * wide))
            y, x = int((height - rows) * top), int((width - columns) * left)
            images[index, :, y : y + rows, x : x + columns] = grey
        return images


def grid(theta: Tensor, height: int, width: int) -> Tensor:
    """What ``affine_grid`` gives without aligned corners, several times faster on a CPU.

    Rows and columns are multiplied apart, and added only then: a matrix product with three columns
    costs more than all the rest of the augmentation.

    Args:
        theta: float tensor (N, 2, 3).
        height: of the images.
        width: of the images.

    Returns:
        Places to sample at, -1 to 1, (N, height, width, 2): x before y.
    """
    x, y = (
        torch.linspace(-1.0, 1.0, side, device=theta.device) * ((side - 1) / side) if side > 1 else theta.new_zeros(1)
        for side in (width, height)
    )
    places = theta.new_empty(len(theta), height, width, 2)
    for axis in (0, 1):
        by_x, by_y, shift = theta[:, axis].unbind(1)
        columns, rows = by_x[:, None] * x, by_y[:, None] * y
        places[..., axis] = columns[:, None, :] + rows[:, :, None] + shift[:, None, None]
    return places


def mix(images: Tensor, alpha: float, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412): blend each image with another of the batch.

    Args:
        images: float tensor (N, C, H, W).
        alpha: both parameters of the beta distribution that the share is drawn from; 0 for none.
        probability: share of batches that are mixed.
        generator: source of randomness, on the device of ``images``.

    Returns:
        The images, the index (N,) of the partner of each, and the share of the image itself, 0 to 1.
    """
    count, device = len(images), images.device
    if not alpha or torch.rand(1, generator=generator, device=device).item() >= probability:
        return images, torch.arange(count, device=device), 1.0
    partner = torch.randperm(count, generator=generator, device=device)
    # A beta draw as the ratio of two gamma draws, which take a generator only through uniform noise.
    share = _beta(alpha, generator, device)
    return share * images + (1.0 - share) * images[partner], partner, share


def _beta(alpha: float, generator: torch.Generator, device: torch.device) -> float:
    """One draw from Beta(alpha, alpha) for alpha <= 1 (Johnk 1964): reject until the powers add to 1."""
    while True:
        first, second = torch.rand(2, generator=generator, device=device).tolist()
        a, b = first ** (1.0 / alpha), second ** (1.0 / alpha)
        if 0.0 < a + b <= 1.0:
            return float(a / (a + b))
