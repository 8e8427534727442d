import asyncio
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from app.core.exceptions import UnavailableError, UnprocessableError
from app.core.settings import load_settings
from app.serving.backends.devices import make_backend
from app.serving.backends.openvino import OpenVinoBackend
from app.serving.explain import MAP_SIDE, Explainer, by_input, class_activation_map
from app.serving.grad_cam import grad_cam
from ml.dataset.preprocess import Preprocess
from ml.models.base import Floats, InputError, Outputs, ServedModel, softmax
from ml.models.network import CompactBackbone, MultiTaskNetwork, ServingNetwork
from ml.registry.model_card import ModelCard
from tests.serving.owner import Owner

CLASSES = ("CT", "MR")


class Brightness(nn.Module):
    """A backbone of two features: how bright and how dark each eighth of the image is."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(x, x.shape[2] // 8)
        return torch.cat([pooled.relu(), (-pooled).relu()], dim=1)


def _network(weight: float = 2.0) -> ServingNetwork:
    member = MultiTaskNetwork(Brightness(), 2, {"modality": 2}).eval()
    head = member.heads["modality"]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[weight, 0.0], [0.0, weight]]))  # CT is bright, MR dark
        head.bias.zero_()
    return ServingNetwork([member], ("modality",), (0.5,), (0.5,)).eval()


class Fake(ServedModel):
    """Says CT where the image is bright; with captions, what the caption says."""

    def __init__(self, network: nn.Module | None, preprocess: Preprocess | None = None, cam: bool = True) -> None:
        fields: dict[str, Any] = {
            "name": "fake",
            "tasks": {"modality": list(CLASSES)},
            "inputs": ["image", "caption"],
            "preprocess": None if preprocess is None else preprocess.to_json(),
        }
        super().__init__(ModelCard.model_construct(**fields))
        self.network = network
        self._cam = cam

    @property
    def cam_layer(self) -> nn.Module | None:
        return self.network if self._cam else None

    def encode_captions(self, captions: Sequence[str | None]) -> Floats:
        return np.array([[5.0, 0.0] if caption == "CT" else [0.0, 5.0] for caption in captions], dtype=np.float32)

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        if image_out is None:
            raise InputError("fake needs an image")
        total = image_out["modality"] if caption_out is None else image_out["modality"] + caption_out
        return {"modality": softmax(total)}

    def save(self, folder: Path) -> list[str]:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> "Fake":
        raise NotImplementedError


def _corner(size: tuple[int, int]) -> bytes:
    """A black image whose lower right quarter is white."""
    image = Image.new("L", size)
    image.paste(255, (size[0] // 2, size[1] // 2, *size))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _explain(model: ServedModel, data: bytes, label: str) -> Any:
    async def scenario() -> Any:
        explainer = Explainer(model, load_settings())
        try:
            return await explainer.explain("modality", data, label)
        finally:
            explainer.stop()

    return asyncio.run(scenario())


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (50, 100)])
@pytest.mark.parametrize("cam", [True, False])
def test_the_map_shows_what_speaks_for_the_class(size: tuple[int, int], cam: bool) -> None:
    model = Fake(_network(), Preprocess(size=64, mean=(0.5,), std=(0.5,)), cam=cam)
    explanation = _explain(model, _corner(size), "CT")
    assert explanation.method == ("grad-cam" if cam else "occlusion")
    height, width = explanation.heat.shape
    assert max(height, width) == MAP_SIDE
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)
    assert explanation.heat.min() >= 0
    assert explanation.heat.max() == pytest.approx(1)
    inside = explanation.heat[int(height * 0.6) :, int(width * 0.6) :].mean()
    outside = explanation.heat[: int(height * 0.4), : int(width * 0.4)].mean()
    assert inside > 5 * outside
    overlay = Image.open(io.BytesIO(explanation.overlay))
    assert (overlay.format, overlay.size) == ("PNG", size)


def test_another_class_gets_another_map() -> None:
    model = Fake(_network(), Preprocess(size=64, mean=(0.5,), std=(0.5,)))
    bright, dark = (_explain(model, _corner((64, 64)), label).heat for label in CLASSES)
    assert bright[-4:, -4:].mean() > 0.5 > dark[-4:, -4:].mean()
    assert dark[:4, :4].mean() > 0.5 > bright[:4, :4].mean()


def test_a_model_that_is_sure_is_explained_too() -> None:
    """The probability of CT is one here, and its gradient zero; that of the logit is not."""
    network = _network(50.0)
    pixels: NDArray[np.uint8] = np.full((1, 64, 64), 255, dtype=np.uint8)
    with torch.no_grad():
        assert network(torch.from_numpy(pixels)[None])["modality"][0, 0] == 0
    assert grad_cam(network, pixels, "modality", 0).max() > 0


def test_explaining_leaves_no_hook_behind() -> None:
    network = _network()
    grad_cam(network, np.zeros((1, 64, 64), dtype=np.uint8), "modality", 0)
    assert all(not module._forward_hooks for module in network.modules())


def test_each_input_is_asked_alone() -> None:
    model = Fake(None)
    outputs = {"modality": np.array([[0.0, 2.0]], dtype=np.float32)}
    answers = by_input(model, "modality", outputs, "CT")
    image = answers["image"]
    assert image is not None
    assert image["MR"] > 0.8
    assert answers["caption"] is None  # this model cannot answer from a caption alone
    assert by_input(model, "modality", outputs, None)["caption"] is None


def test_a_model_without_images_says_so() -> None:
    with pytest.raises(UnprocessableError, match="does not look at images"):
        _explain(Fake(None), _corner((64, 64)), "CT")


def test_too_many_explanations_are_refused() -> None:
    free = threading.Event()

    class Slow(Fake):
        def encode_images(self, pixels: NDArray[np.uint8]) -> dict[str, Floats] | None:
            free.wait(30)
            return super().encode_images(pixels)

    async def scenario() -> Mapping[str, str]:
        model = Slow(_network(), Preprocess(size=64, mean=(0.5,), std=(0.5,)), cam=False)
        explainer = Explainer(model, load_settings(max_explain=2))
        data = _corner((64, 64))
        tasks = [asyncio.create_task(explainer.explain("modality", data, "CT")) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError) as caught:
            await explainer.explain("modality", data, "CT")
        free.set()
        await asyncio.gather(*tasks)
        await explainer.explain("modality", data, "CT")
        explainer.stop()
        return caught.value.headers

    assert asyncio.run(scenario())["Retry-After"]


@pytest.mark.parametrize("flip", [True, False])
def test_openvino_gives_the_map_that_the_gradient_gives(flip: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    members = [MultiTaskNetwork(CompactBackbone(width=8, blocks=(1, 1)), 16, {"modality": 2}).eval() for _ in range(2)]
    network = ServingNetwork(members, ("modality",), (0.5,), (0.5,), flip=flip).eval()
    backend = make_backend(Owner(network), Preprocess(size=64), load_settings(home=tmp_path, device="cpu"), "weights")
    assert isinstance(backend, OpenVinoBackend)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64), dtype=np.uint8)
    for index in range(2):
        weights = np.stack([_row(member, index) for member in members])
        expected = grad_cam(network, pixels, "modality", index)
        assert expected.max() > 0
        activation = class_activation_map(backend.feature_maps(pixels[None]), weights, 64)
        assert activation == pytest.approx(expected, abs=1e-4 * float(expected.max()))


def _row(member: MultiTaskNetwork, index: int) -> NDArray[np.float32]:
    head = member.heads["modality"]
    assert isinstance(head, nn.Linear)
    return head.weight[index].detach().numpy()
