from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from torch import nn

from app.core.settings import load_settings
from app.serving.autotune import with_cuda_graphs
from app.serving.backends.base import Precision
from app.serving.backends.devices import make_backend, software
from app.serving.backends.openvino import OpenVinoBackend
from app.serving.backends.torch import TorchBackend, tf32
from ml.dataset.preprocess import Preprocess
from ml.models.clip import ClipHead, ClipImageNetwork
from ml.models.dual_encoder import DualEncoder
from ml.models.network import CompactBackbone, MultiTaskNetwork, ServingNetwork
from ml.models.resnet import ResNetModel
from tests.ml.tiny_clip import PROJECTION, tiny_clip
from tests.serving.owner import Owner

CLASSES = {"modality": 2, "location": 21}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


def _compact() -> tuple[nn.Module, Preprocess]:
    members = []
    for _ in range(2):
        backbone = CompactBackbone(width=8, blocks=(1, 1))
        members.append(MultiTaskNetwork(backbone, backbone.features, CLASSES))
    return ServingNetwork(members, tuple(CLASSES), (0.2,), (0.25,)), Preprocess(size=32)


def _clip() -> tuple[nn.Module, Preprocess]:
    towers, _ = tiny_clip()
    head = ClipHead(PROJECTION, 8, 0.1)
    return ClipImageNetwork(towers, head, MEAN, STD), Preprocess(size=32, channels=3, mean=MEAN, std=STD)


def _dual_encoder() -> tuple[nn.Module, Preprocess]:
    tower = DualEncoder(size=16, hidden=8, dropout=0.0, case_positive=0.5).image
    return ServingNetwork([tower], ("location",), MEAN, STD), Preprocess(size=64, channels=3, mean=MEAN, std=STD)


def _resnet() -> tuple[nn.Module, Preprocess]:
    network = ResNetModel.build({"tasks": ["modality"], "dropout": 0.0})
    return ServingNetwork([network], ("modality",), MEAN, STD), Preprocess(size=64, channels=3, mean=MEAN, std=STD)


@pytest.mark.parametrize("make", [_compact, _clip, _dual_encoder, _resnet])
def test_openvino_answers_as_pytorch_does(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert callable(make)
    network, preprocess = make()
    network.eval()
    settings = load_settings(home=tmp_path, device="cpu")
    shape = (5, preprocess.channels, preprocess.size, preprocess.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    backend = make_backend(Owner(network), preprocess, settings, "weights")
    assert (backend.name, backend.device, backend.precision) == ("openvino", "cpu", "fp32")
    expected = TorchBackend(network, "cpu").run(pixels)
    for count in (1, 5):
        answers = backend.run(pixels[:count])
        assert set(answers) == set(expected)
        for name, value in expected.items():
            assert answers[name] == pytest.approx(value[:count], abs=1e-3)
    cached = make_backend(Owner(network), preprocess, settings, "weights")
    assert cached.run(pixels).keys() == expected.keys()


def test_a_damaged_cache_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network, preprocess = _compact()
    settings = load_settings(home=tmp_path, device="cpu")
    make_backend(Owner(network), preprocess, settings, "weights")
    [graph] = (tmp_path / "cache" / "openvino").glob("*/graph.xml")
    graph.write_text("<cut")
    pixels = np.zeros((1, 1, 32, 32), dtype=np.uint8)
    backend = make_backend(Owner(network), preprocess, settings, "weights")
    assert "made again" in caplog.text
    assert backend.name == "openvino"
    assert set(backend.run(pixels)) == {*CLASSES, "embedding"}
    assert graph.read_text().startswith("<?xml")


def test_another_version_of_the_code_gets_a_graph_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, preprocess = _compact()
    settings = load_settings(home=tmp_path, device="cpu")
    make_backend(Owner(network), preprocess, settings, "weights")
    versions = software()
    assert all(part in versions for part in (openvino.__version__, version("torch"), "code "))
    monkeypatch.setattr("app.serving.backends.devices.software", lambda: versions + "!")
    make_backend(Owner(network), preprocess, settings, "weights")
    assert len(list((tmp_path / "cache" / "openvino").glob("*/graph.xml"))) == 2


def test_a_quota_of_processors_limits_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.serving.backends.devices.usable_cpus", lambda: 1)
    network, preprocess = _compact()
    backend = make_backend(Owner(network), preprocess, load_settings(home=tmp_path, device="cpu"), "weights")
    assert isinstance(backend, OpenVinoBackend)
    assert backend._compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_network_that_cannot_be_converted_runs_on_pytorch(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"modality": torch.full((len(pixels), 2), float(pixels.float().mean().item() > 0))}

    backend = make_backend(Owner(Odd()), Preprocess(size=32), load_settings(home=tmp_path, device="cpu"), "odd")
    assert backend.name == "torch"
    assert backend.run(np.ones((2, 1, 32, 32), dtype=np.uint8))["modality"].shape == (2, 2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_answers_nearly_alike(precision: Precision) -> None:
    torch.manual_seed(0)
    network, _ = _compact()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
    expected, got = (TorchBackend(network, "cpu", kind).run(pixels) for kind in ("fp32", precision))
    for name, value in expected.items():
        assert got[name].dtype == np.float32
        assert got[name] == pytest.approx(value, abs=0.05)
        assert not np.array_equal(got[name], value)


def test_tf32_is_allowed_by_its_own_precision_alone_and_flags_are_put_back() -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = flags()
    for allowed in (True, False):
        with tf32(allowed=allowed):
            assert flags() == (allowed, allowed)
        assert flags() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("make", [_compact, _clip, _dual_encoder, _resnet])
def test_cuda_answers_as_the_cpu_does(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert callable(make)
    network, preprocess = make()
    shape = (16, preprocess.channels, preprocess.size, preprocess.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    exact = load_settings(home=tmp_path, device="cpu")
    expected = make_backend(Owner(network), preprocess, exact, "weights").run(pixels)
    backend = make_backend(Owner(network), preprocess, load_settings(home=tmp_path, device="cuda"), "weights")
    assert (backend.name, backend.device) == ("torch", "cuda")
    got = with_cuda_graphs(backend, (preprocess.channels, preprocess.size, preprocess.size)).run(pixels)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_said(tmp_path: Path) -> None:
    network, preprocess = _compact()
    with pytest.raises(RuntimeError, match="MEDPIX_DEVICE=cuda"):
        make_backend(Owner(network), preprocess, load_settings(home=tmp_path, device="cuda"), "weights")
