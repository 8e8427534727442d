from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet50

from ml.dataset.labels import LOCATION, MODALITY
from ml.dataset.preprocess import Preprocess
from ml.models.resnet import ResNetBackbone, ResNetModel, ResNetSettings, train
from ml.training.pretrained import WeightsError
from tests.ml.conftest import MakeContext


@pytest.fixture
def small() -> ResNetSettings:
    """The real recipes, on images small enough for a test."""
    preprocess = Preprocess(size=32, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    settings = ResNetSettings(preprocess=preprocess, scratch_preprocess=preprocess)
    return replace(settings, tune=replace(settings.tune, ema_decay=0.5))


def test_the_backbone_is_torchvisions(resnet_file: Path) -> None:
    state = torch.load(resnet_file, weights_only=True)
    whole = resnet50(weights=None)
    whole.load_state_dict(state)
    backbone = ResNetBackbone()
    backbone.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = whole.eval()(x)
        features = backbone.eval()(x).mean(dim=(2, 3))
        assert torch.allclose(whole.fc(features), expected, atol=1e-4)


def test_pretrained_weights_are_tuned_saved_and_served(
    make_context: MakeContext, small: ResNetSettings, resnet_file: Path, tmp_path: Path
) -> None:
    context = make_context(weights=str(resnet_file), epochs=1)
    model = train(context, MODALITY, small)
    assert model.card.init == "pretrained"
    assert model.card.weights_source == "local file resnet50.pth"
    assert list(model.card.settings["recipes"]) == ["head", "tune"]
    _changed_little(model, resnet_file)
    (tmp_path / "saved").mkdir()
    assert model.save(tmp_path / "saved") == ["network.safetensors"]
    loaded = ResNetModel.load(tmp_path / "saved", model.card)
    pixels = context.images(context.dev, small.preprocess)[:2]
    before = model.combine(model.encode_images(pixels), None)["modality"]
    after = loaded.combine(loaded.encode_images(pixels), None)["modality"]
    assert np.allclose(before, after, atol=1e-6)  # the sums of a convolution come in any order
    assert loaded.cam_layer is not None


def _changed_little(model: ResNetModel, resnet_file: Path) -> None:
    """One epoch at small rates moves the early layers less than the late ones."""
    start = torch.load(resnet_file, weights_only=True)
    member = model.network.members[0].state_dict()

    def moved(name: str) -> float:
        return float((member[f"backbone.{name}"] - start[name]).norm() / start[name].norm())

    assert 0.0 < moved("layer1.0.conv1.weight") < moved("layer4.0.conv1.weight") < 0.5


def test_scratch_trains_one_phase(make_context: MakeContext, small: ResNetSettings) -> None:
    model = train(make_context(weights="scratch", epochs=1), LOCATION, small)
    assert model.card.name == "resnet50-location"
    assert model.card.init == "scratch"
    assert list(model.card.settings["recipes"]) == ["scratch"]
    assert model.tasks["location"][0] == "Abdomen"


def test_weights_of_another_network_are_named(make_context: MakeContext, small: ResNetSettings, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not those of a torchvision ResNet50"):
        train(make_context(weights=str(tmp_path / "other.pth")), MODALITY, small)
