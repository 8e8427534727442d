import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch

from app.core.settings import load_settings
from app.serving import autotune
from app.serving.autotune import choose, tune, with_cuda_graphs
from app.serving.backends.base import Backend, Floats, Pixels, Precision
from app.serving.backends.cuda_graphs import CudaGraphBackend
from app.serving.backends.devices import make_backend
from app.serving.backends.openvino import OpenVinoBackend, stream_count
from app.serving.backends.torch import TorchBackend
from ml.dataset.preprocess import Preprocess
from ml.models.network import CompactBackbone, MultiTaskNetwork, ServingNetwork
from tests.serving.owner import Owner

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
    monkeypatch.setattr("app.serving.autotune.time.perf_counter", lambda: clock[0])
    plain, other = Timed(clock, {1: 1.0, 4: 1.0}), Timed(clock, cost, shift)
    assert (choose(plain, lambda: other, SHAPE, (1, 4)) is other) == taken


def test_a_way_that_fails_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Backend:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = Timed([0.0], {1: 1.0})
    assert choose(plain, fail, SHAPE, (1,)) is plain
    assert "the alternative backend failed" in caplog.text


def _openvino(tmp_path: Path) -> OpenVinoBackend:
    network = _torch("cpu")._network
    backend = make_backend(Owner(network), Preprocess(size=32), load_settings(home=tmp_path, device="cpu"), "weights")
    assert isinstance(backend, OpenVinoBackend)
    return backend


@pytest.mark.parametrize("count", [2, 3])
def test_streams_answer_as_one_does_and_side_by_side(tmp_path: Path, count: int) -> None:
    plain = _openvino(tmp_path)
    streams = plain.streams(count)
    pixels = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    with ThreadPoolExecutor(count) as pool:
        for size in (1, 2, 3, 5, 8):
            expected = plain.run(pixels[:size])
            for done in [pool.submit(run, pixels[:size]) for run in streams]:
                got = done.result()
                assert got.keys() == expected.keys()
                for name, value in expected.items():
                    assert got[name] == pytest.approx(value, abs=1e-5)
    first = streams[0](pixels)["location"]
    kept = first.copy()
    streams[0](255 - pixels)  # what was answered before is not overwritten
    assert (first == kept).all()


@pytest.mark.parametrize(("sizes", "chosen"), [((1, 2, 4, 8), (2, 4)), ((1,), (1,)), ((16,), (16,))])
def test_streams_take_few_images_unless_the_batch_size_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], chosen: tuple[int, ...]
) -> None:
    monkeypatch.setattr("app.serving.backends.devices.usable_cpus", lambda: 2)
    tuned = tune(_openvino(tmp_path), SHAPE, sizes)
    assert len(tuned.streams) == 2
    assert tuned.plan.size in chosen


def test_without_a_kept_graph_one_stream_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.serving.backends.devices.usable_cpus", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    plain = _openvino(tmp_path)
    assert plain.threads == 2
    shutil.rmtree(tmp_path / "cache")
    assert tune(plain, SHAPE, (1, 2)).streams == ()
    assert "2 streams failed; one serves" in caplog.text


def test_models_of_one_network_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.serving.backends.devices.usable_cpus", lambda: 2)
    first = tune(_openvino(tmp_path), SHAPE, (1, 2, 4))
    compiled: list[object] = []
    compile_model = ov.Core.compile_model

    def counted(*arguments: object, **options: object) -> object:
        compiled.append(arguments)
        return compile_model(*arguments, **options)

    monkeypatch.setattr(ov.Core, "compile_model", counted)
    second = tune(_openvino(tmp_path), SHAPE, (1, 2, 4))
    assert compiled == []
    pixels = np.random.default_rng(1).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    for name, expected in first.streams[0](pixels).items():
        np.testing.assert_allclose(second.streams[0](pixels)[name], expected, atol=1e-5)
    tune(_openvino(tmp_path / "other"), SHAPE, (1, 2, 4))
    assert compiled


def test_streams_share_the_threads_and_one_thread_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [stream_count(threads) for threads in (1, 2, 4, 64)] == [1, 2, 4, 4]
    monkeypatch.setattr("app.serving.backends.devices.usable_cpus", lambda: 1)
    plain = _openvino(tmp_path)
    assert tune(plain, SHAPE, (1, 2)).streams == ()
    eager = _torch("cpu")
    tuned = tune(eager, SHAPE, (1, 2))
    assert tuned.backend is eager
    assert tuned.streams == ()


@pytest.mark.parametrize(
    ("sizes", "captured"), [((48,), (1, 2, 4, 8, 16, 32, 48)), ((1, 2, 4), (1, 2, 4)), ((1,), (1,))]
)
def test_graphs_are_captured_for_the_sizes_that_are_configured(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], captured: tuple[int, ...]
) -> None:
    made, tried = list[tuple[int, ...]](), list[list[int]]()

    def graphs(backend: Backend, shape: tuple[int, int, int], sizes: tuple[int, ...]) -> Backend:
        assert shape == SHAPE
        made.append(sizes)
        return backend

    def choose_second(_: Backend, make: Callable[[], Backend], __: object, sizes: list[int]) -> Backend:
        tried.append(sizes)
        return make()

    monkeypatch.setattr("app.serving.backends.cuda_graphs.CudaGraphBackend", graphs)
    monkeypatch.setattr(autotune, "choose", choose_second)
    backend = _torch("cpu")
    backend.device = "cuda"
    assert with_cuda_graphs(backend, SHAPE, sizes) is backend
    assert (made, tried) == ([captured], [sorted({1, max(sizes)})])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_captured_network_answers_as_the_baseline(precision: Precision) -> None:
    plain = _torch("cuda", precision)
    graphs = CudaGraphBackend(plain, SHAPE, (1, 4))
    pixels = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    for count in (1, 3, 4, 6, 2):
        got = graphs.run(pixels[:count])
        for name, value in plain.run(pixels[:count]).items():
            assert got[name].shape == value.shape
            assert got[name] == pytest.approx(value, abs=1e-2)
