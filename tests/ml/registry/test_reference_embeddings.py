from pathlib import Path

import numpy as np
import pytest
import torch

from ml.models.base import EMBEDDING, STAGES
from ml.registry.artifacts import DamagedFileError, write_tensors
from ml.registry.reference_embeddings import REFERENCE_FILE, Reference


@pytest.fixture
def reference() -> Reference:
    embeddings = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=np.float32)
    return Reference.build(["a", "b", "c"], np.array([True, True, False]), embeddings)


def test_nearest_are_sorted_by_angle(reference: Reference) -> None:
    nearest = reference.nearest(np.array([10.0, 1.0], dtype=np.float32), 2)
    assert [name for name, _ in nearest] == ["a", "c"]
    assert nearest[0][1] == pytest.approx(10 / np.sqrt(101), abs=1e-6)


def test_distance_counts_training_images_only(reference: Reference) -> None:
    distances = reference.distance(np.array([[1.0, 1.0], [5.0, 0.0]], dtype=np.float32))
    assert distances == pytest.approx([1 - np.sqrt(0.5), 0.0], abs=1e-6)


def test_the_density_counts_a_direction_by_how_much_the_training_images_differ_in_it() -> None:
    generator = np.random.default_rng(0)
    spread = np.array([0.0, 0.3, 0.1, 0.0])
    embeddings = (np.array([1.0, 0.0, 0.0, 0.0]) + generator.normal(size=(500, 4)) * spread).astype(np.float32)
    reference = Reference.build([str(n) for n in range(500)], np.arange(500) < 400, embeddings)
    distance = reference.density().distance
    along, across, beside = (np.array([[1.0, *step]], dtype=np.float32) for step in np.eye(3) * 0.3)
    assert distance(10 * along) == pytest.approx(distance(along))
    assert 2 * float(distance(along)[0]) < float(distance(across)[0])
    # Nearest neighbours cannot tell these two directions apart: all training images are as far from either.
    assert float(distance(beside)[0]) > float(distance(across)[0])
    assert np.quantile(distance(reference.embeddings[400:]), 0.99) < 4


def test_the_density_of_equal_images_is_finite() -> None:
    embeddings = np.ones((3, 2), dtype=np.float32)
    density = Reference.build(["a", "b", "c"], np.array([True, True, False]), embeddings).density()
    assert density.distance(embeddings)[0] == pytest.approx(0, abs=1e-3)
    assert np.isfinite(density.distance(-embeddings)).all()


def test_a_reference_comes_back(reference: Reference, tmp_path: Path) -> None:
    assert reference.save(tmp_path) == REFERENCE_FILE
    loaded = Reference.load(tmp_path)
    assert loaded.images == reference.images
    assert loaded.training.tolist() == [True, True, False]
    assert loaded.embeddings == pytest.approx(reference.embeddings, abs=1e-3)


def test_distances_are_the_same_before_and_after_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    embeddings, stages = (random.normal(size=(60, size)).astype(np.float32) for size in (256, 5))
    built = Reference.build([str(n) for n in range(60)], np.arange(60) < 50, embeddings, stages)
    built.save(tmp_path)
    loaded = Reference.load(tmp_path)
    asked = {EMBEDDING: random.normal(size=(20, 256)).astype(np.float32), STAGES: stages[:20] + 0.1}
    for kind in ("nearest", "mahalanobis", "stages"):
        before, after = (each.distance_by(kind)(asked) for each in (built, loaded))
        assert np.array_equal(before, after), kind
    loaded.save(tmp_path)
    assert np.array_equal(Reference.load(tmp_path).embeddings, loaded.embeddings), "written again, as by a fused model"
    assert np.linalg.norm(built.embeddings, axis=1) == pytest.approx(np.ones(60), abs=1e-6)


def test_another_file_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / REFERENCE_FILE, {"weights": torch.zeros(2)})
    with pytest.raises(DamagedFileError, match="no embeddings"):
        Reference.load(tmp_path)


def test_the_stages_tell_what_the_embedding_does_not(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    stages = random.normal(3.0, [0.1, 2.0], (200, 2)).astype(np.float32)
    embeddings = random.normal(size=(200, 4)).astype(np.float32)
    names = [f"image-{number}" for number in range(200)]
    built = Reference.build(names, np.ones(200, dtype=np.bool_), embeddings, stages)
    built.save(tmp_path)
    for reference in (built, Reference.load(tmp_path)):
        distance = reference.distance_by("stages")
        # Both are 1 away from the mean: ten standard deviations of the first channel and half of the second's.
        asked = {STAGES: np.array([[4.0, 3.0], [3.0, 4.0]], dtype=np.float32), EMBEDDING: embeddings[:2]}
        assert distance(asked) == pytest.approx([10.0, 0.5], rel=0.15)


def test_a_reference_without_stages_cannot_measure_them(reference: Reference) -> None:
    with pytest.raises(DamagedFileError, match="no statistics of stages"):
        reference.distance_by("stages")


def test_the_distance_of_an_older_card_is_that_of_the_embedding(reference: Reference) -> None:
    embedding = np.ones((1, reference.embeddings.shape[1]), dtype=np.float32)
    for kind, distance in (("nearest", reference.distance), ("mahalanobis", reference.density().distance)):
        distances = reference.distance_by(kind)({EMBEDDING: embedding})  # type: ignore[arg-type]  # names of distances
        assert distances == pytest.approx(distance(embedding))
