from pathlib import Path

import numpy as np
import pytest
import torch

from ml.files import DamagedFileError, write_tensors
from ml.reference import REFERENCE_FILE, Reference


@pytest.fixture
def reference() -> Reference:
    embeddings = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=np.float32)
    return Reference.build(["a", "b", "c"], np.array([True, True, False]), embeddings)


def test_nearest_are_sorted_by_angle(reference: Reference) -> None:
    found = reference.nearest(np.array([10.0, 1.0], dtype=np.float32), 2)
    assert [name for name, _ in found] == ["a", "c"]
    assert found[0][1] == pytest.approx(10 / np.sqrt(101), abs=1e-6)


def test_distance_counts_training_images_only(reference: Reference) -> None:
    distances = reference.distance(np.array([[1.0, 1.0], [5.0, 0.0]], dtype=np.float32))
    assert distances == pytest.approx([1 - np.sqrt(0.5), 0.0], abs=1e-6)


def test_a_reference_comes_back(reference: Reference, tmp_path: Path) -> None:
    assert reference.save(tmp_path) == REFERENCE_FILE
    loaded = Reference.load(tmp_path)
    assert loaded.images == reference.images
    assert loaded.training.tolist() == [True, True, False]
    assert loaded.embeddings == pytest.approx(reference.embeddings, abs=1e-3)


def test_another_file_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / REFERENCE_FILE, {"weights": torch.zeros(2)})
    with pytest.raises(DamagedFileError, match="no embeddings"):
        Reference.load(tmp_path)
