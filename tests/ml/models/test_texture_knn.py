from pathlib import Path

import numpy as np
import pytest
from pymongo.database import Database

from ml.models.texture_knn import Neighbours, TextureModel, colour, describe, texture
from ml.registry.registry import Registry
from ml.training.train import train_model
from tests.ml.conftest import Document


def test_descriptors_have_their_size_and_tell_textures_apart() -> None:
    random = np.random.default_rng(0)
    rough = random.integers(0, 256, (1, 64, 64), dtype=np.uint8)
    smooth = np.full((1, 64, 64), 128, dtype=np.uint8)
    assert texture(rough).shape == (64,)
    assert colour(rough).shape == (64,)
    assert (colour(smooth) ** 2).sum() == pytest.approx(1.0)
    assert describe(np.stack([rough, smooth]), ["texture", "colour"]).shape == (2, 128)
    assert texture(rough)[0] > 100 * texture(smooth)[0] + 1


def test_votes_are_those_of_the_nearest() -> None:
    descriptors = np.array([[0.0], [1.0], [10.0]], dtype=np.float32)
    neighbours = Neighbours(descriptors, np.array([0, 0, 1]), np.zeros(1, np.float32), np.ones(1, np.float32))
    near = neighbours.vote(np.array([[0.4], [9.0]], dtype=np.float32), 1, 2)
    assert near.argmax(axis=1).tolist() == [0, 1]
    assert near[0].tolist() == pytest.approx([0.75, 0.25])
    assert neighbours.vote(np.array([[9.0]], dtype=np.float32), 3, 2)[0].tolist() == pytest.approx([2.5 / 4, 1.5 / 4])


@pytest.mark.parametrize("name", ["knn-texture", "knn-colour", "knn-texture-colour"])
def test_neighbours_learn_the_generated_modality(
    name: str, ml_database: Database[Document], images_dir: Path, tmp_path: Path
) -> None:
    card = train_model(name, database=ml_database, images_dir=images_dir, models_dir=tmp_path, device="cpu")
    assert card.metrics["dev"]["modality"]["accuracy"] > 0.9
    model = Registry(ml_database, tmp_path).load(name)
    assert isinstance(model, TextureModel)
    assert model.network is None
    assert card.parameters == model.neighbours.descriptors.size
    ml_database["Models"].delete_one({"_id": name})
