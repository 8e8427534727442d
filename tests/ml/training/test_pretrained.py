import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from ml.training import pretrained as weights
from ml.training.pretrained import WeightsError, clip_folder, resnet50_state


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches, and addresses that nobody listens on."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(weights, "_is_reachable", lambda address: _try("http://127.0.0.1:9/" + address[-8:]))


_try = weights._is_reachable


@pytest.mark.usefixtures("unreachable")
def test_auto_without_network_is_scratch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for found, source in (resnet50_state("auto"), clip_folder("auto")):
        assert found is None
        assert "neither cached nor reachable" in source
    resnet, clip = caplog.messages
    assert "training from scratch" in resnet
    assert "training a dual encoder on the dataset's pairs" in clip


@pytest.mark.usefixtures("unreachable")
def test_pretrained_without_network_is_an_error() -> None:
    for find in (resnet50_state, clip_folder):
        with pytest.raises(WeightsError, match="neither cached nor reachable; give --weights the path"):
            find("pretrained")


def test_scratch_asks_nobody() -> None:
    assert resnet50_state("scratch") == (None, "none: trained from random weights, as asked for")
    assert clip_folder("scratch")[0] is None


def test_a_local_state_dict_is_read_in_both_formats(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {"conv1.weight": torch.arange(4.0)}
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        found, source = resnet50_state(str(tmp_path / name))
        assert found is not None
        assert found["conv1.weight"].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert source == f"local file {name}"


class Runs:
    """An object whose unpickling would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (str(self.marker),)


def test_code_in_a_pickle_never_runs(tmp_path: Path) -> None:
    path, marker = tmp_path / "w.pth", tmp_path / "ran"
    torch.save({"conv1.weight": Runs(marker)}, path)
    with pytest.raises(WeightsError, match=r"w\.pth is not a file of tensors"):
        resnet50_state(str(path))
    assert not marker.exists()


def test_paths_that_hold_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no such file"):
        resnet50_state(str(tmp_path / "none.pth"))
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(WeightsError, match="is cut"):
        resnet50_state(str(tmp_path / "cut.safetensors"))
    with pytest.raises(WeightsError, match=r"config\.json and model\.safetensors missing"):
        clip_folder(str(tmp_path))
