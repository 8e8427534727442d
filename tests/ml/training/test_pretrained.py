import errno
import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from ml.models.clip_train import load_pretrained_clip
from ml.training import pretrained as weights
from ml.training.pretrained import CLIP, RESNET50, WeightsError, clip_folder, resnet50_state
from tests.file_server import FileServer


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches, and addresses that nobody listens on."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(weights, "_RESNET50_URL", "http://127.0.0.1:9/resnet50.pth")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("unreachable")
def test_auto_without_network_is_scratch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for loaded, source in (resnet50_state("auto"), clip_folder("auto")):
        assert loaded is None
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
    save_file(state, tmp_path / "w.safetensors", {"format": "pt"})  # as transformers writes it
    for name in ("w.pth", "w.safetensors"):
        loaded, source = resnet50_state(str(tmp_path / name))
        assert loaded is not None
        assert loaded["conv1.weight"].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert source == f"local file {name}"


@pytest.mark.parametrize("content", [torch.arange(3.0), [1, 2], {"epoch": 3}])
def test_a_file_that_is_no_state_dict_is_told(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="is no state dict"):
        resnet50_state(str(tmp_path / "w.pth"))


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


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def resnet_file(tmp_path: Path) -> bytes:
    """A state dict as a .pth file."""
    torch.save({"conv1.weight": torch.arange(4.0)}, tmp_path / "w.pth")
    return (tmp_path / "w.pth").read_bytes()


@pytest.fixture
def server(unreachable: None, resnet_file: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Serves the weights of ResNet50, which are small here, with the hash that goes with them."""
    del unreachable
    monkeypatch.setattr(weights, "_RESNET50_SHA256", sha256(resnet_file))
    files = FileServer(resnet_file)
    with files.running() as url:
        monkeypatch.setattr(weights, "_RESNET50_URL", f"{url}/resnet50.pth")
        yield files


def test_weights_are_downloaded_once_and_checked(server: FileServer) -> None:
    assert RESNET50.obtainable
    for _ in range(2):
        state, source = resnet50_state("pretrained")
        assert state is not None
        assert state["conv1.weight"].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert source == "torchvision ResNet50_Weights.IMAGENET1K_V2"
    assert server.ranges == [None]
    assert {path.name for path in RESNET50.stored().parent.iterdir()} == {".lock", "resnet50.pth"}


def test_a_download_cut_midway_is_said_and_goes_on_next_time(
    server: FileServer, resnet_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.download._FIRST_PAUSE_S", 0)
    server.break_after = [100] + [0] * 4
    with pytest.raises(WeightsError, match=r"ResNet50 .*broke off 5 times.* Start the training again to go on"):
        resnet50_state("auto")
    assert not RESNET50.stored().exists()
    assert RESNET50.fetch().read_bytes() == resnet_file
    assert server.ranges[-1] == "bytes=100-"


def test_weights_with_another_hash_are_refused_and_removed(server: FileServer) -> None:
    server.data = b"a page of a captive portal"
    with pytest.raises(WeightsError, match=r"sent as resnet50\.pth is not the known file, and was removed"):
        resnet50_state("auto")
    assert {path.name for path in RESNET50.stored().parent.iterdir()} == {".lock"}
    RESNET50.stored().write_bytes(b"written by somebody else")
    with pytest.raises(WeightsError, match=r"resnet50\.pth is not the file that is known; remove it"):
        resnet50_state("auto")
    assert RESNET50.stored().read_bytes() == b"written by somebody else"


def test_a_full_disk_is_said(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "download", full)
    with pytest.raises(WeightsError, match=r"No space left on device\. Make room there, or set XDG_CACHE_HOME"):
        RESNET50.fetch()
    assert not server.ranges


def test_clip_is_kept_as_safetensors_and_read_as_transformers_does(
    request: pytest.FixtureRequest, unreachable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The pinned revision of the hub has its weights as a pickle alone; it is read as tensors only."""
    del unreachable
    tiny: Path = request.getfixturevalue("clip_folder")
    state = load_file(tiny / "model.safetensors")
    torch.save(state | {"text_model.embeddings.position_ids": torch.arange(77)}, tmp_path / "pytorch_model.bin")
    files = {path.name: path.read_bytes() for path in tiny.iterdir() if path.suffix == ".json"}
    files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    monkeypatch.setattr(weights, "_CLIP_SHA256", {name: sha256(data) for name, data in files.items()})
    with FileServer(files).running() as url:
        monkeypatch.setattr(constants, "ENDPOINT", url.rpartition("/")[0])
        folder, source = clip_folder("pretrained")
    assert folder is not None
    assert folder == CLIP.stored()
    clip = load_pretrained_clip(folder, source)
    assert clip.source == "Hugging Face openai/clip-vit-base-patch32, revision 3d74acf9a28c"
    assert all(torch.equal(value, clip.towers.state_dict()[name]) for name, value in state.items())
    assert [path.name for path in CLIP.stored().parent.iterdir() if path.is_dir()] == [CLIP.stored().name]
    # The server is gone: what is here is used.
    assert clip_folder("auto")[0] == CLIP.stored()


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """transformers would make up the weights that are not there."""
    folder = shutil.copytree(request.getfixturevalue("clip_folder"), tmp_path / "other")
    save_file({"encoder.weight": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"other holds no usable CLIP model: .* weights are missing"):
        load_pretrained_clip(folder, "a test")
