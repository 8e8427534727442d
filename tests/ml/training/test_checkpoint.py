import logging
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.core.progress import Progress
from ml.models.dual_encoder import DualEncoder
from ml.registry.artifacts import read_tensors, write_tensors
from ml.training.checkpoint import Checkpoint, CheckpointError, CheckpointPath, TrainState
from ml.training.device import Team
from ml.training.loop import Examples, contents, fit, make_examples
from ml.training.progress import Run, silent
from tests.ml.small_options import CPU, RECIPE, network

ONE = replace(RECIPE, epochs=1)


def make(seed: int = 0, *, first_label: int = 0) -> Examples:
    random = np.random.default_rng(seed)
    targets = np.arange(32) % 2
    targets[0] = first_label
    pixels = random.integers(0, 255, (32, 1, 32, 32), dtype=np.uint8)
    return make_examples(pixels, {"modality": targets}, np.arange(32).astype(str), 0.0)


def epochs_trained(checkpoint: Path, **changed: Any) -> list[int]:
    """Train and say which epochs were not taken from the checkpoint."""
    done: list[int] = []
    options: dict[str, Any] = {"mean": (0.3,), "std": (0.3,), "seed": 1, "device": CPU, "recipe": ONE}
    options |= {"network": network(), "examples": make()} | deepcopy(changed)
    fit(checkpoint=checkpoint, on_epoch=lambda epoch, _: done.append(epoch), **options)
    return done


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("recipe", {"recipe": replace(ONE, learning_rate=1e-3)}),
        ("seed", {"seed": 2}),
        ("rates", {"rates": {"backbone": 0.5}}),
        ("mean and deviation", {"mean": (0.2,)}),
        ("images", {"examples": make(1)}),
        ("labels", {"examples": make(first_label=1)}),
        ("starting weights", {"network": network(seed=7)}),
        ("architecture", {"network": network(dropout=0.3)}),
    ],
)
def test_the_checkpoint_of_another_run_is_not_taken_up(
    named: str, changed: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.safetensors"
    assert epochs_trained(path) == [1]
    assert epochs_trained(path) == [], "the same run has nothing left to do"
    assert not caplog.messages
    caplog.set_level(logging.WARNING)
    assert epochs_trained(path, **changed) == [1]
    assert f"of a run with other {named}: this part is trained from the start, as with --fresh" in caplog.text
    assert epochs_trained(path, **changed) == [], "its own checkpoint has taken the place"


def test_the_checkpoint_of_another_number_of_processes_is_not_taken_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them draws its own augmentations, so the run would end as neither a run of two nor of one."""
    # This process trains its share alone; nothing is exchanged.
    monkeypatch.setattr(Team, "wrap", lambda _, network: network)
    monkeypatch.setattr(Team, "mean", lambda _, value: value)
    path = tmp_path / "state.safetensors"
    assert epochs_trained(path, team=Team(0, 2)) == [1]
    assert epochs_trained(path, team=Team(0, 2)) == []
    assert epochs_trained(path) == [1]
    assert "of a run with other number of processes: this part is trained from the start" in caplog.text


def test_what_no_weight_holds_is_in_the_identity() -> None:
    def identity(case_positive: float) -> str:
        torch.manual_seed(0)
        return contents(DualEncoder(8, 8, 0.1, case_positive), make())["architecture"]

    assert identity(0.5) == identity(0.5)
    assert identity(0.5) != identity(0.25)


def test_a_damaged_checkpoint_and_one_of_another_version_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.safetensors"
    epochs_trained(path)
    path.write_bytes(path.read_bytes()[:200])
    assert epochs_trained(path) == [1]
    assert "state.safetensors is cut" in caplog.text
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {"epochs": metadata["epochs"], "settings": "0123"})
    assert epochs_trained(path) == [1]
    assert "with other recipe" in caplog.text


def test_history_and_time_are_kept_with_the_weights(tmp_path: Path) -> None:
    path, reports = tmp_path / "state.safetensors", list[Progress]()
    recipe = replace(RECIPE, epochs=2)
    first = Run("m", (), silent)
    first.load_state_dict({"seconds": 100.0, "history": []})

    def stop(epoch: int, loss: float) -> None:
        first.epoch("network", epoch, 2, loss)
        if epoch == 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"mean": (0.3,), "std": (0.3,), "seed": 1, "device": CPU}
    with pytest.raises(KeyboardInterrupt):
        fit(network(), make(), recipe, checkpoint=CheckpointPath(path, first), on_epoch=stop, **options)
    second = Run("m", (), reports.append)
    fit(
        network(), make(), recipe, checkpoint=CheckpointPath(path, second),
        on_epoch=lambda epoch, loss: second.epoch("network", epoch, 2, loss), **options,
    )  # fmt: skip
    assert [(epoch.part, epoch.epoch) for epoch in second.history] == [("network", 1), ("network", 2)]
    assert second.history[0] == first.history[0]
    assert second.seconds > 100.0
    assert reports[0].message == "resumes after epoch 1"
    assert reports[0].fraction == 0.5
    assert reports[0].eta_s == pytest.approx(second.seconds, rel=0.1), "half of it took what is left"


def test_float16_scaling_goes_on_where_it_was(tmp_path: Path) -> None:
    def learner(scale: float) -> TrainState:
        plain = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(1))
        return TrainState(plain, {}, torch.optim.AdamW(plain.parameters()), scaler)

    path = CheckpointPath(tmp_path / "state.safetensors")
    Checkpoint(path, learner(64.0), {}, 2).save(1)
    restored = learner(1024.0)
    assert Checkpoint(path, restored, {}, 2).restore() == 1
    assert restored.scaler is not None
    assert restored.scaler.get_scale() == 64.0


# The child may write no file larger than 1 MB: the system refuses the rest, as a full disk would.
_FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from ml.training.checkpoint import Checkpoint, CheckpointError, TrainState, CheckpointPath
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
network = torch.nn.Linear(1000, 1000)
learner = TrainState(network, {}, torch.optim.AdamW(network.parameters()))
checkpoint = Checkpoint(CheckpointPath(Path(sys.argv[1])), learner, {}, 3)
for epoch in (1, 2):
    try:
        checkpoint.save(epoch)
    except CheckpointError as error:
        sys.exit(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
"""


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    done = subprocess.run([sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"could not be written to {tmp_path}: File too large (os error 27). Make room there" in done.stderr
    assert "it goes on from epoch 1" in done.stderr
    assert read_tensors(path)[1]["epochs"] == 1
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be written to .*file"):
        epochs_trained(tmp_path / "file" / "state.safetensors")
