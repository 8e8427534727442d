from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data

from ml.dataset.preprocess import Preprocess
from ml.models import caption
from ml.models.efficientnet import (
    FAMILY,
    EfficientNetBackbone,
    EfficientNetModel,
    EfficientNetSettings,
    to_timm,
    train,
)
from ml.models.fusion import FusedModel
from ml.models.model_specs import MODEL_SPECS
from ml.registry.registry import Registry
from ml.training import pretrained as weights
from ml.training.pretrained import WeightsError, efficientnet_state
from tests.ml.conftest import MakeContext
from tests.ml.exported import run_openvino

# Domestic cats of ImageNet: tabby, tiger cat, Persian, Siamese, Egyptian.
CATS = range(281, 286)


@pytest.fixture
def small() -> EfficientNetSettings:
    """The real recipes, on images small enough for a test."""
    settings = EfficientNetSettings()
    return replace(settings, preprocess=replace(settings.preprocess, size=32), members=2)


def test_the_packaged_weights_know_a_cat() -> None:
    state, source = efficientnet_state("pretrained")
    assert state is not None
    assert source.startswith("ImageNet, efficientnet-lite0-57934424.pth")
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    whole.load_state_dict(to_timm(state, EfficientNetBackbone().stages))
    recipe = Preprocess(size=224, channels=3, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = recipe.apply(Image.fromarray(data.cat()))
    with torch.inference_mode():
        logits = whole((torch.from_numpy(pixels)[None] / 255.0 - 0.5) / 0.5)
    assert int(logits.argmax()) in CATS


def test_the_backbone_takes_both_sorts_of_names() -> None:
    state, _ = efficientnet_state("pretrained")
    assert state is not None
    first, second = EfficientNetBackbone().eval(), EfficientNetBackbone().eval()
    first.load_pretrained(state)
    second.load_pretrained(to_timm(state, first.stages))
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert first(x).shape == (1, first.features, 2, 2)
        assert torch.equal(first(x), second(x))


def test_it_is_tuned_saved_and_served(make_context: MakeContext, small: EfficientNetSettings, tmp_path: Path) -> None:
    context = make_context(weights="auto", epochs=1)
    model = train(context, small)
    assert model.card.init == "pretrained"
    assert list(model.card.settings["recipes"]) == ["head", "tune"]
    _changed_little(model)
    assert model.save(tmp_path) == ["network.safetensors"]
    loaded = EfficientNetModel.load(tmp_path, model.card)
    pixels = context.images(context.dev, small.preprocess)[:2]
    before = model.combine(model.encode_images(pixels), None)
    served = run_openvino(loaded.network, torch.from_numpy(pixels))
    after = loaded.combine(served, None)
    assert before.keys() == after.keys() == {"modality", "location", "location_category"}
    for task, probabilities in before.items():
        assert np.allclose(probabilities, after[task], atol=1e-5)


def test_it_is_joined_with_the_caption_model(make_context: MakeContext, small: EfficientNetSettings) -> None:
    context = make_context(epochs=1, members=1)
    registry = context.registry
    assert isinstance(registry, Registry)
    for model in (train(context, small), caption.train(context)):
        registry.register(model)
    fused = MODEL_SPECS["fused-efficientnet"].train(context)
    assert fused.card.init == "pretrained"
    registry.register(fused)
    loaded = registry.load("fused-efficientnet")
    assert isinstance(loaded, FusedModel)
    assert loaded.image_model.card.family == FAMILY
    outputs = loaded.encode_images(context.images(context.dev, small.preprocess)[:2])
    captions = loaded.encode_captions(["Axial CT of the chest", ""])
    answers = loaded.combine(outputs, captions)["location"]
    alone = loaded.combine(outputs, None)["location"]
    assert np.array_equal(answers[1], alone[1])
    assert not np.allclose(answers[0], alone[0])


def _changed_little(model: EfficientNetModel) -> None:
    """One epoch leaves the backbone near the ImageNet weights, in every member."""
    start = EfficientNetBackbone()
    state, _ = efficientnet_state("auto")
    assert state is not None
    start.load_pretrained(state)
    for member in model.network.members:
        moved = member.state_dict()
        for name, before in start.state_dict().items():
            if name.endswith("conv_dw.weight"):
                change = float((moved[f"backbone.{name}"] - before).norm() / before.norm())
                assert 0.0 < change < 0.5, name


def test_scratch_trains_one_phase(make_context: MakeContext, small: EfficientNetSettings) -> None:
    model = train(make_context(weights="scratch", epochs=1, members=1), small)
    assert model.card.init == "scratch"
    assert list(model.card.settings["recipes"]) == ["scratch"]
    assert len(model.network.members) == 1


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    for state in ({"conv1.weight": torch.zeros(3)}, {"_blocks.99._bn0.weight": torch.zeros(3)}):
        torch.save(state, tmp_path / "other.pth")
        loaded, source = efficientnet_state(str(tmp_path / "other.pth"))
        assert loaded is not None
        assert source == "local file other.pth"
        with pytest.raises(WeightsError, match="not those of an EfficientNet-Lite0"):
            EfficientNetBackbone().load_pretrained(loaded)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(weights, "_EFFICIENTNET", "no_such_package")
    state, source = efficientnet_state("auto")
    assert state is None
    assert "trained from random weights" in source
    assert "package no-such-package is not installed; training from scratch" in caplog.text
    with pytest.raises(WeightsError, match="package no-such-package, which is not installed"):
        efficientnet_state("pretrained")


def test_a_package_with_other_content_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="missing or not the file that is known; install its package again"):
        efficientnet_state("auto")


def test_the_stages_lead_to_the_same_feature_map() -> None:
    backbone = EfficientNetBackbone().eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features, maps = backbone.forward_stages(x)
        assert torch.allclose(features, backbone(x), atol=1e-5)
    assert [each.shape[1] for each in maps] == [16, 24, 40, 80, 112, 192, 320]
