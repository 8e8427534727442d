from pathlib import Path

import numpy as np
import pytest
import torch

from app.core.progress import Progress
from ml.dataset.records import Record
from ml.evaluation.retrain import Surroundings
from ml.evaluation.seeds import FIGURES, repeat
from ml.training.context import Options


def test_mean_and_deviation_are_over_trainings_that_differ(
    train_records: list[Record], dev_records: list[Record], test_records: list[Record], tmp_path: Path
) -> None:
    heard: list[Progress] = []
    around = Surroundings(
        torch.device("cpu"), tmp_path / "seeds", heard.append, {"compact": Options(epochs=1, members=1, seed=9)}
    )
    splits = {"train": train_records, "dev": dev_records, "test": test_records}
    card, tasks = repeat(["compact"], splits, "test", [3, 4], around)["compact"]
    assert card.seed == 3
    found = tasks["modality"]
    assert (found["seeds"], found["n"], list(found["figures"])) == ([3, 4], len(test_records), list(FIGURES))
    for name, figure in found["figures"].items():
        assert figure["mean"] == pytest.approx(np.mean(figure["values"])), name
        assert figure["sd"] == pytest.approx(np.std(figure["values"], ddof=1)), name
    first, second = found["figures"]["nll"]["values"]
    assert first != second
    assert {progress.name for progress in heard} == {"compact, seed 3", "compact, seed 4"}
    assert list((tmp_path / "seeds").rglob("*.safetensors")), "what hours made stays until the report is written"
    assert len([progress for progress in heard if "epoch 1/1" in progress.message]) == 2
    # Killed before the report was written and started again, it ends the same without training.
    heard.clear()
    again = repeat(["compact"], splits, "test", [3, 4], around)["compact"][1]["modality"]
    assert again["figures"] == found["figures"]
    assert not [progress for progress in heard if "epoch 1/1" in progress.message]
