from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from app.config import load_settings
from app.inference.backends import Backend, Floats, Pixels, Precision, TorchBackend, make_backend
from app.inference.recorded import RecordedBackend, choose, recorded
from ml.models.network import CompactBackbone, MultiTaskNetwork, ServingNetwork
from ml.preprocess import Preprocess

SHAPE = (1, 32, 32)


class Timed:
    """A real network behind a clock of the test's own.

    Args:
        clock: one number, the time.
        cost: seconds of a run by batch size.
        shift: added to all answers.
    """

    name, device = "torch", "cpu"
    precision: Precision = "fp32"

    def __init__(self, clock: list[float], cost: Mapping[int, float], shift: float = 0.0) -> None:
        self._clock, self._cost, self._shift = clock, cost, shift
        self._backend = _torch("cpu")

    def run(self, pixels: Pixels) -> Mapping[str, Floats]:
        self._clock[0] += self._cost[len(pixels)]
        return {name: output + np.float32(self._shift) for name, output in self._backend.run(pixels).items()}


def _torch(device: str, precision: Precision = "fp32") -> TorchBackend:
    torch.manual_seed(0)
    backbone = CompactBackbone(width=8, blocks=(1, 1))
    member = MultiTaskNetwork(backbone, backbone.features, {"modality": 2, "location": 21})
    return TorchBackend(ServingNetwork([member], ("modality", "location"), (0.2,), (0.25,)), device, precision)


@pytest.mark.parametrize(
    ("cost", "shift", "taken"),
    [
        ({1: 0.5, 4: 1.0}, 0.0, True),
        ({1: 0.98, 4: 0.99}, 0.0, False),
        ({1: 0.2, 4: 1.2}, 0.0, False),
        ({1: 0.5, 4: 0.5}, 0.1, False),
    ],
)
def test_another_way_is_taken_if_it_answers_alike_and_is_faster(
    monkeypatch: pytest.MonkeyPatch, cost: Mapping[int, float], shift: float, taken: bool
) -> None:
    clock = [0.0]
    monkeypatch.setattr("app.inference.recorded.time.perf_counter", lambda: clock[0])
    plain, other = Timed(clock, {1: 1.0, 4: 1.0}), Timed(clock, cost, shift)
    assert (choose(plain, lambda: other, SHAPE, (1, 4)) is other) == taken


def test_a_way_that_fails_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Backend:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = Timed([0.0], {1: 1.0})
    assert choose(plain, fail, SHAPE, (1,)) is plain
    assert "cannot be recorded" in caplog.text


def test_nothing_is_recorded_on_a_cpu(tmp_path: Path) -> None:
    backend = _torch("cpu")
    assert recorded(backend, SHAPE) is backend
    network = backend._network
    openvino = make_backend(network, Preprocess(size=32), load_settings(home=tmp_path, device="cpu"), "weights")
    assert recorded(openvino, SHAPE) is openvino


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_recorded_network_answers_as_the_plain_one(precision: Precision) -> None:
    plain = _torch("cuda", precision)
    graphs = RecordedBackend(plain, SHAPE, (1, 4))
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    for count in (1, 3, 4, 6, 2):
        got = graphs.run(pixels[:count])
        for name, value in plain.run(pixels[:count]).items():
            assert got[name].shape == value.shape
            assert got[name] == pytest.approx(value, abs=1e-2)
