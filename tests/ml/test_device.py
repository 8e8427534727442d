import itertools

import pytest
import torch

from ml.device import DeviceError, Team, half_type, pick_device, team


def test_auto_finds_a_device_and_a_missing_one_is_named() -> None:
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    assert pick_device("cpu") == torch.device("cpu")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(DeviceError, match=f"device {name} was asked for, but this machine has none"):
                pick_device(name)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        pick_device("tpu")  # type: ignore[arg-type]


def test_half_precision_on_a_cpu_needs_its_instructions() -> None:
    capable = torch.cpu.get_capabilities()
    expected = torch.bfloat16 if capable.get("avx512_bf16") or capable.get("amx_bf16") else None
    assert half_type(torch.device("cpu")) == expected
    assert half_type(torch.device("mps")) is None


def test_shares_of_a_batch_are_disjoint_and_complete() -> None:
    batch = torch.arange(11)
    shares = [Team(rank, 3).share(batch).tolist() for rank in range(3)]
    assert sorted(itertools.chain.from_iterable(shares)) == batch.tolist()
    assert [len(share) for share in shares] == [4, 4, 3]


def test_one_process_is_a_team_of_one() -> None:
    with team(torch.device("cpu")) as alone:
        assert alone.leads
        network = torch.nn.Linear(1, 1)
        assert alone.wrap(network) is network
        alone.wait()
