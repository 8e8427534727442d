import itertools
import platform
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from ml.models.efficientnet import EfficientNetBackbone
from ml.registry.artifacts import read_json, read_tensors
from ml.training.device import (
    DeviceError,
    Team,
    amp_dtype,
    cuda_fault,
    pick_device,
    team,
    warn_of_unusable_gpu,
)
from tests.fake_cuda import CUDA, fake_cuda
from tests.ml.ddp_worker import start, train

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def test_auto_finds_a_device_and_a_missing_one_is_named() -> None:
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    assert pick_device("cpu") == torch.device("cpu")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(DeviceError, match=f"device {name} was asked for, but this machine has none"):
                pick_device(name)  # type: ignore[arg-type]  # a name of the loop
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        pick_device("tpu")  # type: ignore[arg-type]  # refused


def test_half_precision_on_a_cpu_needs_its_instructions() -> None:
    capable = torch.cpu.get_capabilities()
    expected = torch.bfloat16 if capable.get("avx512_bf16") or capable.get("amx_bf16") else None
    assert amp_dtype(torch.device("cpu")) == expected
    assert amp_dtype(torch.device("mps")) is None


def test_shares_of_a_batch_are_disjoint_and_complete() -> None:
    batch = torch.arange(11)
    shares = [Team(rank, 3).share(batch).tolist() for rank in range(3)]
    assert sorted(itertools.chain.from_iterable(shares)) == batch.tolist()
    assert [len(share) for share in shares] == [4, 4, 3]


# Ten steps with tensors of 67 MB; the last five are counted.
_FREED = """
import resource, sys
import torch
from torch import nn
from ml.training.device import keep_freed_memory

def pages():
    network, images = nn.Conv2d(1, 64, 3, padding=1), torch.rand(64, 1, 64, 64)
    for step in range(10):
        if step == 5:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        network(images).relu().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left = pages()
keep_freed_memory()
sys.stdout.write(f"{left} {pages()}")
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no such setting")
def test_freed_memory_is_not_asked_for_again() -> None:
    done = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True)
    left, kept = map(int, done.stdout.split())
    assert left > 5 * 64 * 64 * 64 * 64 * 4 / 4096, "every step asked for the pages of the tensor"
    assert kept < left / 5


def test_one_process_is_a_team_of_one() -> None:
    with team(torch.device("cpu")) as alone:
        assert alone.is_main_process
        network = torch.nn.Linear(1, 1)
        assert alone.wrap(network) is network
        alone.wait()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes trained together."""
    folder = tmp_path_factory.mktemp("ddp")
    done = subprocess.run(
        [*TORCHRUN, "tests.ml.ddp_worker", str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kind", ["plain", "pairs"])
def test_two_processes_learn_what_one_learns(kind: str, two_processes: Path) -> None:
    """The mean of the gradients of both is that of the whole batch, also where all its images are compared."""
    network, losses = train(kind, Team())
    before = start(kind).state_dict()
    for rank in ("0", "1"):
        state, metadata = read_tensors(two_processes / f"{kind}-{rank}")
        assert metadata["losses"] == pytest.approx(losses, rel=1e-4)
        for name, value in network.state_dict().items():
            difference, change = (value - state[name]).double().norm(), (value - before[name]).double().norm()
            assert difference <= 0.01 * change, name


def test_processes_agree_on_pretrained_weights(two_processes: Path) -> None:
    """The network answered one of them alone: each would train another network, and wait for the other forever."""
    sources = [read_json(two_processes / f"weights-{rank}")["source"] for rank in (0, 1)]
    assert sources[0] == sources[1]
    assert "neither cached nor reachable" in sources[0]


def test_batch_norms_are_synchronised_where_they_can_be() -> None:
    """Those of timm, which hold the activation, keep it; a network of several phases is converted once."""
    with fake_cuda():
        backbone = EfficientNetBackbone().eval()
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
        names, activation = list(backbone.state_dict()), type(backbone.body.bn1.act)
        Team(0, 2).synchronise_norms(backbone)
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in backbone.modules()), "a CPU has none"
        backbone.to(CUDA)
        Team().synchronise_norms(backbone)
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in backbone.modules())
        for _ in range(2):
            Team(0, 2).synchronise_norms(backbone)
        assert sum(isinstance(module, nn.SyncBatchNorm) for module in backbone.modules()) == norms > 40
        assert isinstance(backbone.body.bn1.act, activation)
        assert activation is nn.ReLU6
        images = torch.zeros(2, 3, 32, 32, device=CUDA)
        assert backbone(images).shape == (2, backbone.features, 1, 1)
        assert list(backbone.state_dict()) == names


def test_a_process_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="use --nproc-per-node 2"):
        pick_device("cuda")


def test_a_gpu_that_cannot_be_used_is_told_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system\n is too old (found version 11040)")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("ml.training.device._NVIDIA_NODES", (tmp_path, "nvidia[0-9]*"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    (tmp_path / "nvidiactl").touch()
    assert cuda_fault() is None, "the control node alone is no GPU"
    warn_of_unusable_gpu.cache_clear()
    pick_device("auto")
    assert not caplog.records
    (tmp_path / "nvidia0").touch()
    warn_of_unusable_gpu.cache_clear()
    pick_device("auto")
    pick_device("auto")
    [record] = caplog.records
    assert record.message.startswith("this machine has an NVIDIA GPU that cannot be used, models run without it")
    assert record.message.endswith("The NVIDIA driver on your system is too old (found version 11040)")
    with pytest.raises(DeviceError, match="it cannot be used: The NVIDIA driver on your system is too old"):
        pick_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this build of PyTorch has no CUDA" in (cuda_fault() or "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_fault() is None, "who hides the GPUs wants none"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda_fault() is None
    warn_of_unusable_gpu.cache_clear()


def test_a_team_waits_as_long_as_its_first_process_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait at a barrier while the first one calibrates and registers; NCCL alone would give up."""
    joined: list[tuple[str, timedelta, torch.device | None]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda name, *, timeout, device_id: joined.append((name, timeout, device_id)),
    )
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    gpu = torch.device("cuda", 1)
    for device in (gpu, torch.device("cpu")):
        with team(device) as workers:
            assert not workers.is_main_process
    assert [(name, device) for name, _, device in joined] == [("nccl", gpu), ("gloo", None)]
    assert all(timeout > timedelta(hours=1) for _, timeout, _ in joined)
