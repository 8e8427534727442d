"""Every network family is trained, calibrated and asked on a CUDA device without values, see ``tests.fake_cuda``."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ml.dataset.records import Record
from ml.evaluation.retrain import Part, RetrainSettings, TrainedModels, retrain
from ml.models import dual_encoder_train, efficientnet, resnet
from ml.models.base import ServedModel
from ml.models.model_specs import MODEL_SPECS
from ml.training.context import Context, Options
from ml.training.progress import silent
from ml.training.train import calibrate
from tests.fake_cuda import CUDA, fake_cuda
from tests.ml.conftest import MakeContext
from tests.ml.small_options import CPU

WAYS = [
    ("compact", {}),
    ("efficientnet", {"weights": "scratch"}),
    ("resnet50-modality", {"weights": "scratch"}),
    ("resnet50-modality", {"weights": "resnet"}),
    ("resnet50-location", {"weights": "scratch"}),
    ("clip-location", {}),
    ("clip-location", {"weights": "scratch"}),
    ("clip-location", {"weights": "clip"}),
    ("clip-location-image", {"weights": "scratch"}),
    ("clip-location-caption", {"weights": "scratch"}),
    ("clip-location-caption", {"weights": "clip"}),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 pixels and few members, which cost less to read; the rest is as it is trained."""

    families = {
        "ResNetSettings": resnet,
        "EfficientNetSettings": efficientnet,
        "DualEncoderSettings": dual_encoder_train,
    }
    for name, module in families.items():
        settings = getattr(module, name)
        preprocess = replace(settings().preprocess, size=32)
        monkeypatch.setattr(module, name, partial(settings, preprocess=preprocess))


def on_cuda(make_context: MakeContext, **options: Any) -> Context:
    context = make_context(**{"epochs": 1, "members": 1} | options)
    context.device = CUDA
    return context


def weights_of(modules: tuple[nn.Module, ...]) -> Iterator[Tensor]:
    return chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)


def devices(model: ServedModel) -> set[torch.device]:
    return {tensor.device for tensor in weights_of(model.modules)}


def submodules(model: ServedModel) -> Iterator[nn.Module]:
    """Every module that a model or a part of it holds."""
    for value in vars(model).values():
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, ServedModel):
            yield from submodules(value)


def check(model: ServedModel, device: torch.device) -> None:
    """All weights and buffers are on one device, and none is left out."""
    assert model.device == device
    assert devices(model) <= {device}
    declared = {id(tensor) for tensor in weights_of(model.modules)}
    assert {id(tensor) for tensor in weights_of(tuple(submodules(model)))} <= declared


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_a_network_is_trained_calibrated_and_asked_on_cuda(
    name: str, options: dict[str, Any], make_context: MakeContext, resnet_file: Path, clip_folder: Path
) -> None:
    local = {"resnet": str(resnet_file), "clip": str(clip_folder)}
    weights = options.get("weights", "auto")
    context = on_cuda(make_context, **options | {"weights": local.get(weights, weights)})
    with fake_cuda():
        model = MODEL_SPECS[name].train(context)
        check(model, CUDA)
        calibrate(model, context)
        check(model.to(CPU), CPU)


def test_a_model_that_others_made_moves_as_one(make_context: MakeContext) -> None:
    with fake_cuda():
        context = on_cuda(make_context)
        context.device = CPU
        model = MODEL_SPECS["compact"].train(context)
        check(model, CPU)
        check(model.to(CUDA), CUDA)


def test_retrained_models_and_what_joins_them_are_on_cuda(
    train_records: list[Record], dev_records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["compact", "efficientnet", "caption-location", "fused-location", "fused-efficientnet", "fused-modality"]
    kept: dict[str, ServedModel] = {}
    monkeypatch.setattr(TrainedModels, "load", lambda self, name: kept.setdefault(name, self.models[name]))
    options = dict.fromkeys(names, Options(weights="scratch", epochs=1, members=1))
    with fake_cuda():
        part = Part("fold 1", train_records, dev_records, dev_records)
        retrained = retrain(names, [part], RetrainSettings(CUDA, tmp_path, silent, options))
        for model in kept.values():
            check(model, CUDA if model.modules else CPU)
    assert list(retrained) == names
