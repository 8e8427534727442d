"""Every network family is served and explained on a CUDA device without values, see ``tests.fake_cuda``."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from app.serving.backends.base import Precision
from app.serving.backends.cuda_graphs import CudaGraphBackend
from app.serving.backends.devices import lower_precisions
from app.serving.backends.torch import TorchBackend
from app.serving.grad_cam import grad_cam
from ml.models.base import EMBEDDING
from ml.models.clip import ClipHead, ClipImageNetwork
from ml.models.dual_encoder import DualEncoder
from ml.models.efficientnet import EfficientNetModel
from ml.models.network import CompactBackbone, MultiTaskNetwork, ServingNetwork
from ml.models.resnet import ResNetModel
from tests.fake_cuda import CUDA, fake_cuda
from tests.ml.tiny_clip import PROJECTION, tiny_clip

CLASSES = {"modality": 2, "location": 21}
MEAN, STD = (0.5,) * 3, (0.2,) * 3
SIDE = 32


def _compact() -> nn.Module:
    backbone = CompactBackbone(channels=3, width=8, blocks=(1, 1))
    return ServingNetwork([MultiTaskNetwork(backbone, backbone.features, CLASSES)], tuple(CLASSES), MEAN, STD)


def _efficientnet() -> nn.Module:
    return ServingNetwork([EfficientNetModel.build({"dropout": 0.0})], ("modality",), MEAN, STD)


def _resnet() -> nn.Module:
    return ServingNetwork([ResNetModel.build({"tasks": ["modality"], "dropout": 0.0})], ("modality",), MEAN, STD)


def _clip() -> nn.Module:
    towers, _ = tiny_clip()
    return ClipImageNetwork(towers, ClipHead(PROJECTION, 8, 0.1), MEAN, STD)


def _dual_encoder() -> nn.Module:
    tower = DualEncoder(size=16, hidden=8, dropout=0.0, case_positive=0.5).image
    return ServingNetwork([tower], ("location",), MEAN, STD)


FAMILIES = [_dual_encoder, _compact, _efficientnet, _resnet, _clip]
PIXELS = np.zeros((3, 3, SIDE, SIDE), dtype=np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("make", FAMILIES)
def test_a_batch_is_run_on_cuda(make: Callable[[], nn.Module], precision: Precision) -> None:
    with fake_cuda():
        backend = TorchBackend(make(), "cuda", precision)
        inside = backend.forward(torch.from_numpy(PIXELS).to(CUDA))
        assert {output.device for output in inside.values()} == {CUDA}
        assert {output.dtype for output in inside.values()} == {torch.float32}, "heads compute in full precision"
        outputs = backend.run(PIXELS)
    assert EMBEDDING in outputs
    for output in outputs.values():
        assert str(output.dtype) == "float32"
        assert len(output) == len(PIXELS)


@pytest.mark.parametrize("make", FAMILIES)
def test_a_captured_network_shares_input_and_outputs_of_all_sizes(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = []

    class Graph:
        def replay(self) -> None:
            """The outputs stay what they were: there are no values."""

    def capture(graph: Graph, *, pool: object, capture_error_mode: str) -> nullcontext[Graph]:
        assert capture_error_mode == "thread_local"
        pools.append(pool)
        return nullcontext(graph)

    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
    for name, value in {
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: (0, 1),
        "Stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "current_stream": lambda: stream,
        "Event": lambda **_: SimpleNamespace(record=lambda: None, synchronize=lambda: None),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with fake_cuda():
        graphs = CudaGraphBackend(TorchBackend(make(), "cuda"), (3, SIDE, SIDE), (1, 2, 4))
        for count in (1, 3, 4, 6):
            outputs = graphs.run(np.zeros((count, 3, SIDE, SIDE), dtype=np.uint8))
            assert {len(output) for output in outputs.values()} == {count}
    assert pools == [(0, 1)] * 3, "one pool for all sizes"


@pytest.mark.parametrize("make", [_compact, _efficientnet, _resnet])
def test_an_answer_is_explained_on_cuda(make: Callable[[], nn.Module]) -> None:
    with fake_cuda():
        network = make().to(CUDA).eval()
        assert isinstance(network, ServingNetwork)
        assert grad_cam(network, PIXELS[0], "modality", 1).shape == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("capability", "bf16", "expected"),
    [((9, 0), True, ("bf16", "tf32")), ((7, 5), False, ("fp16",)), ((6, 1), False, ())],
)
def test_a_device_offers_what_its_hardware_computes_in(
    capability: tuple[int, int], bf16: bool, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    assert lower_precisions("cuda") == expected
