"""Random changes to a batch of images that leave modality and location as they are."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Values of images that a thread changes at a time: with their grid and a copy they take two megabytes.
_CACHED: Final = 1 << 17


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
        count, _, height, width = pixels.shape
        theta = self._affine(count, pixels.device, generator)
        levels = self._levels(pixels, generator)
        images = torch.empty(pixels.shape, device=pixels.device)
        for some in _parts(pixels):
            part = pixels[some].float().div_(255.0)
            part = functional.grid_sample(part, grid(theta[some], height, width), align_corners=False)
            images[some] = levels.apply(part, some)
        return self._erase(images, generator)

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

    def _levels(self, pixels: Tensor, generator: torch.Generator) -> "_Levels":
        def symmetric(limit: float) -> Tensor:
            draw = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
            return (draw * 2.0 - 1.0) * limit

        exponent, factor, offset = (
            symmetric(self.gamma).exp(),
            1.0 + symmetric(self.contrast),
            symmetric(self.brightness),
        )
        if not self.noise:
            return _Levels(exponent, factor, offset)
        strength = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
        grain = torch.randn(pixels.shape, generator=generator, device=pixels.device)
        return _Levels(exponent, factor, offset, grain.mul_(strength).mul_(self.noise))

    def _erase(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        # All on the device of the images: to ask for these numbers would stop a GPU at every step.
        draw = torch.rand(count, 6, 1, generator=generator, device=images.device)
        chosen, tall, wide, top, left, grey = draw.unbind(1)
        rows = _span(height, tall, top) & (chosen < self.erase)
        columns = _span(width, wide, left)
        hidden = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(hidden, grey[:, None, None], images, out=images)


def _span(side: int, share: Tensor, place: Tensor) -> Tensor:
    """Which rows, or columns, a rectangle covers in each image: a tenth of the side and more, bool (N, side)."""
    length = (side * (0.1 + 0.25 * share)).int()
    start = ((side - length) * place).int()
    index = torch.arange(side, device=share.device)
    return (index >= start) & (index < start + length)


class _Levels(NamedTuple):
    """How the grey levels of each image change; (N, 1, 1, 1) but for the noise, which is (N, C, H, W)."""

    exponent: Tensor
    factor: Tensor
    offset: Tensor
    noise: Tensor | None = None

    def apply(self, images: Tensor, some: slice) -> Tensor:
        """Change some of the images, in place."""
        images.clamp_(1e-4, 1.0).pow_(self.exponent[some]).mul_(self.factor[some]).add_(self.offset[some])
        if self.noise is not None:
            images.add_(self.noise[some])
        return images.clamp_(0.0, 1.0)


def _parts(pixels: Tensor) -> Iterator[slice]:
    """Parts of a batch that stay in the caches of a processor from one pass to the next; on a GPU all of it."""
    size = len(pixels)
    if pixels.device.type == "cpu":
        size = torch.get_num_threads() * max(1, _CACHED // math.prod(pixels.shape[1:]))
    for start in range(0, len(pixels), size):
        yield slice(start, start + size)


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
