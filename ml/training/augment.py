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
# Largest shares of the height that burned-in text takes at the top and at the bottom of an image.
_TOP_BAND, _BOTTOM_BAND = 0.1, 0.14
# A display window shows at least this share of the grey levels.
_NARROWEST_WINDOW: Final = 0.5
# Smallest half axis of the ellipse outside of which an image is black, as a share of half the side.
_SMALLEST_BODY: Final = 0.6
# Smallest size of an image within a black frame, as a share of the side.
_SMALLEST_PICTURE: Final = 0.45
# Sides in pixels that images are resampled from.
_COARSE_SIDES: Final = (64, 96)


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
        window: probability of another display window: the darkest levels become black, the brightest white.
        invert: probability that black and white change places.
        bands: probability that the top and the bottom, where text is burned in, are black.
        surround: probability that all is black but an ellipse, as after the removal of background and skull.
        frame: probability that the image is small, within a black frame.
        coarse: share of the images that are resampled from fewer pixels.
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
    window: float = 0.0
    invert: float = 0.0
    bands: float = 0.0
    surround: float = 0.0
    frame: float = 0.0
    coarse: float = 0.0

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
        self._resample(images)
        return self._hide(images, generator)

    def _affine(self, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
        def symmetric(limit: float) -> Tensor:
            return (torch.rand(count, generator=generator, device=device) * 2.0 - 1.0) * limit

        angle = symmetric(math.radians(self.rotation))
        scale = symmetric(math.log1p(self.scale)).exp()
        aspect = symmetric(self.aspect).exp()
        mirror = torch.where(torch.rand(count, generator=generator, device=device) < self.flip, -1.0, 1.0)
        if self.frame:
            chosen, size = torch.rand(2, count, generator=generator, device=device)
            size = _SMALLEST_PICTURE + (1.0 - _SMALLEST_PICTURE) * size
            scale = torch.where(chosen < self.frame, scale / size, scale)
        cosine, sine = scale * angle.cos(), scale * angle.sin()
        # The grid spans -1 to 1, so a shift of s of the side is 2 s.
        rows = [
            torch.stack([cosine * aspect * mirror, -sine, symmetric(2.0 * self.shift)], dim=1),
            torch.stack([sine * mirror, cosine / aspect, symmetric(2.0 * self.shift)], dim=1),
        ]
        return torch.stack(rows, dim=1)

    def _levels(self, pixels: Tensor, generator: torch.Generator) -> "_Levels":
        def uniform() -> Tensor:
            return torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)

        exponent, factor, offset = (
            ((uniform() * 2.0 - 1.0) * self.gamma).exp(),
            1.0 + (uniform() * 2.0 - 1.0) * self.contrast,
            (uniform() * 2.0 - 1.0) * self.brightness,
        )
        if self.window:
            chosen, width, low = uniform() < self.window, uniform(), uniform()
            width = torch.where(chosen, _NARROWEST_WINDOW + (1.0 - _NARROWEST_WINDOW) * width, 1.0)
            offset = (offset - low * (1.0 - width)) / width
            factor = factor / width
        inverted = uniform() < self.invert if self.invert else None
        return _Levels(exponent, factor, offset, inverted)

    def _resample(self, images: Tensor) -> None:
        """Take the first images of the batch, whose order is random, down to fewer pixels and up again, in place."""
        side = images.shape[-1]
        count = round(self.coarse * len(images) / len(_COARSE_SIDES))
        for index, coarse in enumerate(_COARSE_SIDES):
            if count and coarse < side:
                some = slice(index * count, (index + 1) * count)
                small = functional.adaptive_avg_pool2d(images[some], coarse)
                images[some] = functional.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)

    def _hide(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Paint over rectangles, bands and surroundings, in place."""
        count, _, height, width = images.shape
        # All on the device of the images: to ask for these numbers would stop a GPU at every step.
        draw = torch.rand(count, 6, 1, generator=generator, device=images.device)
        chosen, tall, wide, top, left, grey = draw.unbind(1)
        rows = _span(height, tall, top) & (chosen < self.erase)
        columns = _span(width, wide, left)
        hidden = rows[:, None, :, None] & columns[:, None, None, :]
        images = torch.where(hidden, grey[:, None, None], images, out=images)
        if self.bands:
            images *= self._inside_bands(images, generator)[:, None, :, None]
        if self.surround:
            images *= self._inside_ellipse(images, generator)[:, None]
        return images

    def _inside_bands(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Which rows are between the bands, bool (N, H)."""
        chosen, top, bottom = torch.rand(3, len(images), 1, generator=generator, device=images.device)
        positions = _positions(images.shape[2], images.device)
        hidden = (positions < _TOP_BAND * top) | (positions > 1.0 - _BOTTOM_BAND * bottom)
        return torch.logical_not(hidden & (chosen < self.bands))

    def _inside_ellipse(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Which pixels are inside an ellipse about the middle, bool (N, H, W)."""
        chosen, tall, wide = torch.rand(3, len(images), 1, generator=generator, device=images.device)
        squares = [
            ((2.0 * _positions(side, images.device) - 1.0) / (_SMALLEST_BODY + (1.0 - _SMALLEST_BODY) * share)).square()
            for side, share in ((images.shape[2], tall), (images.shape[3], wide))
        ]
        outside = squares[0][:, :, None] + squares[1][:, None, :] > 1.0
        return torch.logical_not(outside & (chosen < self.surround)[:, :, None])


def _positions(side: int, device: torch.device) -> Tensor:
    """The middles of the pixels along a side, 0 to 1, (side,)."""
    return (torch.arange(side, device=device) + 0.5) / side


def _span(side: int, share: Tensor, position: Tensor) -> Tensor:
    """Which rows, or columns, a rectangle covers in each image: a tenth of the side and more, bool (N, side)."""
    length = (side * (0.1 + 0.25 * share)).int()
    start = ((side - length) * position).int()
    index = torch.arange(side, device=share.device)
    return (index >= start) & (index < start + length)


class _Levels(NamedTuple):
    """How the grey levels of each image change, (N, 1, 1, 1) each; None where none is inverted."""

    exponent: Tensor
    factor: Tensor
    offset: Tensor
    inverted: Tensor | None

    def apply(self, images: Tensor, some: slice) -> Tensor:
        """Change some of the images, in place."""
        images.clamp_(1e-4, 1.0).pow_(self.exponent[some]).mul_(self.factor[some]).add_(self.offset[some])
        images.clamp_(0.0, 1.0)
        if self.inverted is not None:
            # The part is a buffer of this thread's own, so it may be changed in place.
            torch.where(self.inverted[some], 1.0 - images, images, out=images)
        return images


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
