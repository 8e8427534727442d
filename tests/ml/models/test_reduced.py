from collections.abc import Callable

import pytest
import torch
from torch import nn

from ml.models.clip import ClipHead, ClipImageNetwork
from ml.models.dual_encoder import DualEncoder
from ml.models.efficientnet import EfficientNetModel
from ml.models.network import ServingNetwork, reduced
from ml.models.resnet import ResNetModel
from tests.ml.tiny_clip import PROJECTION, tiny_clip

HALF = torch.bfloat16


def _clip() -> nn.Module:
    towers, _ = tiny_clip()
    return ClipImageNetwork(towers, ClipHead(PROJECTION, 8, 0.1), (0.5,) * 3, (0.2,) * 3)


def _efficientnet() -> nn.Module:
    member = EfficientNetModel.build({"dropout": 0.0})
    return ServingNetwork([member], ("modality",), (0.5,) * 3, (0.5,) * 3)


def _resnet() -> nn.Module:
    member = ResNetModel.build({"tasks": ["modality"], "dropout": 0.0})
    return ServingNetwork([member], ("modality",), (0.5,) * 3, (0.5,) * 3)


def _dual_encoder() -> nn.Module:
    tower = DualEncoder(size=16, hidden=8, dropout=0.0, case_positive=0.5).image
    return ServingNetwork([tower], ("location",), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("make", [_clip, _dual_encoder, _efficientnet, _resnet])
def test_weights_are_converted_once_and_answers_are_those_of_autocast(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make().eval()
    copied = reduced(network, HALF).eval()
    assert {value.dtype for value in network.parameters()} == {torch.float32}, "the network itself stays as it is"
    full = {"head", "heads", "visual_projection"}
    for name, module in copied.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.dtype == (torch.float32 if full.intersection(name.split(".")) else HALF), name
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode(), torch.autocast("cpu", HALF):
        expected, got = network(pixels), copied(pixels)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype == torch.float32, "heads are in float32, outside autocast"
        assert torch.allclose(got[name], value, atol=2e-2), name
