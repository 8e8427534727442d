import numpy as np
import pytest
import torch

from ml.models.base import EMBEDDING, has_caption, softmax
from ml.models.network import CompactBackbone, MultiTaskNetwork, ServingNetwork
from tests.ml.exported import run_openvino


@pytest.fixture
def serving() -> ServingNetwork:
    """Two small members with two tasks, as an ensemble is served."""
    torch.manual_seed(0)
    members = []
    for _ in range(2):
        backbone = CompactBackbone(width=8, blocks=(1, 1))
        members.append(MultiTaskNetwork(backbone, backbone.features, {"modality": 2, "location": 21, "plane": 3}))
    return ServingNetwork(members, ("modality", "location"), (0.2,), (0.25,)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_outputs_are_log_probabilities_of_the_tasks_asked_for(serving: ServingNetwork, pixels: torch.Tensor) -> None:
    outputs = serving(pixels)
    assert set(outputs) == {"modality", "location", EMBEDDING}
    assert outputs["location"].exp().sum(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert outputs[EMBEDDING].shape == (3, 32)
    assert outputs[EMBEDDING].norm(dim=1).tolist() == pytest.approx([2**0.5] * 3, abs=1e-5)


def test_a_mirrored_image_gets_the_same_answer(serving: ServingNetwork, pixels: torch.Tensor) -> None:
    plain, mirrored = serving(pixels), serving(pixels.flip(3))
    assert torch.allclose(plain["modality"], mirrored["modality"], atol=1e-5)


def test_float_and_integer_pixels_are_alike(serving: ServingNetwork, pixels: torch.Tensor) -> None:
    assert torch.equal(serving(pixels)["location"], serving(pixels.float())["location"])


def test_openvino_gives_what_torch_gives(serving: ServingNetwork, pixels: torch.Tensor) -> None:
    answers = run_openvino(serving, pixels)
    with torch.inference_mode():
        expected = serving(pixels)
    assert answers.keys() == expected.keys()
    for name, value in expected.items():
        assert answers[name] == pytest.approx(value.numpy(), abs=1e-3)


def test_every_block_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    backbone = CompactBackbone(width=8, blocks=(2,)).eval()
    x = torch.rand(1, 1, 32, 32)
    stem = backbone.stem(x)
    assert torch.allclose(backbone(x), torch.relu(stem))


def test_softmax_and_missing_captions() -> None:
    assert softmax(np.array([[0.0, np.log(3.0)]]), 1.0)[0].tolist() == pytest.approx([0.25, 0.75])
    assert softmax(np.array([[0.0, 1000.0]]), 5.0)[0].tolist() == pytest.approx([0.0, 1.0])
    encoded = np.array([[0.0, 1.0], [np.nan, np.nan]], dtype=np.float32)
    assert has_caption(encoded, 2).tolist() == [True, False]
    assert has_caption(None, 2).tolist() == [False, False]
