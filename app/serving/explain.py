"""Explanations: a Grad-CAM map of a class, and the prediction from each input alone."""

import copy
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.core.exceptions import UnavailableError, UnprocessableError
from app.core.settings import Settings
from app.serving.backends.base import Backend
from app.serving.backends.openvino import OpenVinoBackend
from app.serving.daemon_pool import DaemonThreadPool
from app.serving.decode.image import decode
from ml.dataset.preprocess import Preprocess
from ml.models.base import Floats, InputError, ServedModel

if TYPE_CHECKING:
    from ml.models.network import ServingNetwork

Method = Literal["grad-cam", "occlusion"]

MAP_SIDE: Final = 32
_OVERLAY_SIDE: Final = 1024
_GRID: Final = 7
_CHUNK: Final = 7
# Dark blue, cyan, yellow, red: what contributes most to the class is red.
_COLOURS: Final = np.array([[0, 0, 128], [0, 200, 255], [255, 230, 0], [220, 0, 0]], dtype=np.float32)


Inputs = Mapping[str, Mapping[str, float] | None]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of one class.

    Attributes:
        label: the class.
        method: how the map was made.
        heat: 0 to 1, (h, w), stretched over the whole image; the longer side is ``MAP_SIDE``.
        overlay: the image with the map on it, as PNG.
    """

    label: str
    method: Method
    heat: Floats
    overlay: bytes


class Explainer:
    """Explains the answers of one model, one at a time, in a thread of its own.

    Args:
        model: whose answers to explain.
        settings: limits.
        backend: what runs the network. OpenVINO gives the feature maps too; where PyTorch runs it in another thread,
            a copy is made for this one when it is first needed, since hooks and devices must not cross.
    """

    def __init__(self, model: ServedModel, settings: Settings, backend: Backend | None = None) -> None:
        self._model = model
        self._settings = settings
        self._backend = backend
        self._network: ServingNetwork | None = None
        self._waiting = 0
        self._thread = DaemonThreadPool(1, f"explain-{model.card.name}")

    async def explain(self, task: str, data: bytes, label: str) -> Explanation:
        """Explain one class for an image.

        Args:
            task: one of the model's tasks.
            data: of an image file that was decoded before.
            label: one of the task's classes.

        Raises:
            UnavailableError: too many explanations wait, or the model was stopped.
            UnprocessableError: the model does not look at images.
        """
        if self._waiting >= self._settings.max_explain:
            raise UnavailableError("Too many explanations are being made. Try again later.", retry_after_s=5)
        self._waiting += 1
        try:
            return await self._thread.run(self._explain, task, data, label)
        finally:
            self._waiting -= 1

    def stop(self) -> None:
        """End the thread when its work is done."""
        self._thread.shutdown(wait=False)

    def _explain(self, task: str, data: bytes, label: str) -> Explanation:
        preprocess = self._model.preprocess
        if preprocess is None:
            raise UnprocessableError(f"The model {self._model.card.name} does not look at images.")
        image = decode(data, self._settings).image
        pixels = preprocess.apply(image)
        index = self._model.tasks[task].index(label)
        method: Method = "grad-cam"
        square = self._class_activation_map(pixels, task, index)
        if square is None:
            method = "occlusion"
            square = occlusion(self._model, pixels, task, index)
        size = image.size
        heat = _resized(_cropped(square, preprocess.size, size), _fitted(size, MAP_SIDE))
        heat = heat / max(float(heat.max()), 1e-12)
        return Explanation(label, method, heat, _overlay(image, heat))

    def _class_activation_map(self, pixels: NDArray[np.uint8], task: str, index: int) -> Floats | None:
        """Grad-CAM, by the cheapest way there is; None where the model's family has none."""
        if isinstance(self._backend, OpenVinoBackend) and self._backend.has_maps:
            weights = self._model.class_weights(task, index)
            with suppress(RuntimeError):  # the cache folder cannot be written, or was emptied meanwhile
                if weights is not None:
                    return class_activation_map(self._backend.feature_maps(pixels[None]), weights, pixels.shape[-1])
        if not self._model.has_network or self._model.cam_layer is None:
            return None
        from app.serving.grad_cam import grad_cam  # noqa: PLC0415 - imports PyTorch

        network = self._torch_network()
        return None if network is None else grad_cam(network, pixels, task, index)

    def _torch_network(self) -> "ServingNetwork | None":
        from ml.models.network import ServingNetwork  # noqa: PLC0415 - imports PyTorch

        if self._network is None:
            network = self._model.network
            if not isinstance(network, ServingNetwork):
                return None
            # A network that OpenVINO runs is idle as a PyTorch module: it may be used as it is.
            shared = self._backend is not None and self._backend.name == "torch"
            self._network = copy.deepcopy(network).cpu() if shared else network
            self._network.requires_grad_(requires_grad=False)
        return self._network


def class_activation_map(maps: Floats, weights: Floats, size: int) -> Floats:
    """Grad-CAM of a network whose logits are linear in the mean of its last feature map, without a gradient.

    The gradient of such a logit is the class's weight over h w at every place, so Grad-CAM is the class activation map
    (Zhou et al. 2016, arXiv 1512.04150) without its negative part (Selvaraju et al. 2017, section 3).

    Args:
        maps: (members * views, D, h, w), the views of a member side by side: the image, and where there are two, the
            mirrored one.
        weights: of the channels in the class's logit, (members, D).
        size: side of the result, in pixels.

    Returns:
        float32 (size, size), the sum over members and views; 0 where nothing contributes to the class.
    """
    views = len(maps) // len(weights)
    total = np.zeros((size, size), dtype=np.float32)
    for number, own in enumerate(maps):
        heat = np.maximum(np.tensordot(weights[number // views], own, axes=1), 0.0) / own[0].size
        heat = _resized(heat.astype(np.float32), (size, size))
        total += heat[:, ::-1] if number % views else heat
    return total


def occlusion(model: ServedModel, pixels: NDArray[np.uint8], task: str, index: int) -> Floats:
    """How much the log-odds of a class fall when a part of the image is hidden; for any model.

    Returns:
        float32 (S, S), constant over each cell of a 7 x 7 grid.
    """
    size = pixels.shape[-1]
    edges = np.linspace(0, size, _GRID + 1).round().astype(int)
    spans = [slice(start, end) for start, end in pairwise(edges)]
    cells = list(product(spans, spans))
    hidden = np.repeat(pixels[None], len(cells) + 1, axis=0)
    for copy_, (rows, columns) in zip(hidden[1:], cells, strict=True):
        copy_[:, rows, columns] = 0
    chunks = [model.encode_images(hidden[start : start + _CHUNK]) for start in range(0, len(hidden), _CHUNK)]
    share = np.concatenate([model.combine(chunk, None)[task][:, index] for chunk in chunks])
    share = np.clip(share.astype(np.float64), 1e-7, 1 - 1e-7)
    odds = np.log(share / (1 - share))
    heat = np.zeros((size, size), dtype=np.float32)
    for fall, (rows, columns) in zip(odds[0] - odds[1:], cells, strict=True):
        heat[rows, columns] = max(0.0, float(fall))
    return heat


def by_input(model: ServedModel, task: str, outputs: dict[str, Any] | None, caption: str | None) -> Inputs:
    """The predictions from image and from caption alone: class to probability; None where there is none."""
    encoded = None if caption is None else model.encode_captions([caption])
    if encoded is not None and np.isnan(encoded).any():  # the caption has no word that the model knows
        encoded = None
    return {"image": _alone(model, task, outputs, None), "caption": _alone(model, task, None, encoded)}


def _alone(
    model: ServedModel, task: str, image: dict[str, Any] | None, caption: Floats | None
) -> Mapping[str, float] | None:
    """The answer from one input; where the model refuses, from its caption model, if it has one."""
    if image is None and caption is None:
        return None
    for each in (model, getattr(model, "caption_model", None)):
        if isinstance(each, ServedModel):
            with suppress(InputError):
                return dict(zip(each.tasks[task], map(float, each.combine(image, caption)[task][0]), strict=True))
    return None


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _cropped(square: NDArray[Any], side: int, size: tuple[int, int]) -> NDArray[Any]:
    """The part of a padded square (…, side, side) that holds the image of a size (width, height)."""
    width, height = _fitted(size, side)
    left, top = (side - width) // 2, (side - height) // 2
    return square[..., top : top + height, left : left + width]


def _resized(heat: Floats, size: tuple[int, int]) -> Floats:
    image = Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)


def _overlay(image: Image.Image, heat: Floats) -> bytes:
    """The image, no longer than 1024 pixels, with a map on it, as PNG."""
    size = image.size
    side = max(8, min(_OVERLAY_SIDE, max(size)))
    recipe = replace(Preprocess(), size=side, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = _cropped(recipe.apply(image), side, size).transpose(1, 2, 0).astype(np.float32)
    strength = np.clip(_resized(heat, (pixels.shape[1], pixels.shape[0])), 0.0, 1.0)
    position = strength * (len(_COLOURS) - 1)
    below = np.minimum(position.astype(int), len(_COLOURS) - 2)
    fraction = (position - below)[..., None]
    colour = _COLOURS[below] * (1 - fraction) + _COLOURS[below + 1] * fraction
    opacity = 0.6 * strength[..., None]
    mixed = pixels * (1 - opacity) + colour * opacity
    buffer = io.BytesIO()
    Image.fromarray(mixed.round().astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
