import shutil
from pathlib import Path

import numpy as np
import pytest
from pymongo.database import Database
from sklearn.svm import SVC

from ml.models.base import InputError, softmax
from ml.models.texture_svm import WEIGHTS_FILE, CnnSvmFusion, RbfSvm, SumWeights, add, choose_weights, shrink
from ml.registry.artifacts import DamagedFileError
from ml.registry.registry import Registry
from ml.training.train import train_model
from tests.ml.conftest import Document


def test_the_margin_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    raw = random.normal(3.0, 2.0, (80, 5))
    classes = (np.abs(raw[:, 0] - 3.0) > 1.5).astype(np.int64)
    svm = RbfSvm.fit(raw, classes)
    scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    reference = SVC(C=10.0, gamma=0.2).fit(scaled, classes)
    other = random.normal(3.0, 2.0, (40, 5))
    expected = reference.decision_function((other - raw.mean(axis=0)) / raw.std(axis=0))
    assert svm.margin(other) == pytest.approx(expected, abs=1e-4)
    assert ((svm.margin(raw) > 0) == classes).mean() > 0.9


def test_an_image_shrinks_to_the_means_of_its_squares() -> None:
    pixels = np.array([[0, 2, 10, 10], [4, 6, 10, 10], [255, 255, 0, 0], [255, 255, 0, 1]], dtype=np.uint8)
    assert shrink(pixels[None, None], 2)[0, 0].tolist() == [[3, 10], [255, 0]]


def test_the_better_part_weighs_more() -> None:
    classes = np.array([0, 1] * 20)
    sign = np.where(classes, 1.0, -1.0)
    # Each value stands beside both classes: it says nothing.
    noise = np.repeat(np.random.default_rng(0).normal(0.0, 2.0, 20), 2)
    texture_knows = np.stack([noise, sign], axis=1).astype(np.float32)
    image_knows = np.stack([sign, noise], axis=1).astype(np.float32)
    assert choose_weights(texture_knows, classes) == SumWeights(0.4, 2.0)
    assert choose_weights(image_knows, classes).texture == 0.0
    assert softmax(add(np.array([[2.0, 1.0]], np.float32), SumWeights(1.0, 0.5)))[0, 1] == pytest.approx(
        0.924, abs=1e-3
    )


def test_it_learns_and_comes_back(
    ml_database: Database[Document], images_dir: Path, models_dir: Path, tmp_path: Path
) -> None:
    """Trained beside the compact model that is registered, whose files it keeps a copy of."""
    registry = Registry(ml_database, models_dir)
    card = train_model(
        "fused-modality", database=ml_database, images_dir=images_dir, models_dir=models_dir, device="cpu"
    )
    try:
        assert card.metrics["dev"]["modality"]["accuracy"] > 0.9
        model = registry.load("fused-modality")
        assert isinstance(model, CnnSvmFusion)
        assert model.preprocess is not None
        pixels = np.random.default_rng(0).integers(0, 256, (3, 1, model.preprocess.size, model.preprocess.size))
        outputs = model.encode_images(pixels.astype(np.uint8))
        assert model.combine(outputs, None)["modality"].sum(axis=1) == pytest.approx(1.0)
        with pytest.raises(InputError, match="fused-modality needs an image"):
            model.combine(None, None)
        former = model.card.model_copy(deep=True)
        shutil.copytree(models_dir / card.name / card.version, tmp_path / "former")
        (tmp_path / "former" / WEIGHTS_FILE).rename(tmp_path / "former" / "machine.safetensors")
        former.files = [
            file.model_copy(update={"name": "machine.safetensors"}) if file.name == WEIGHTS_FILE else file
            for file in former.files
        ]
        svm = CnnSvmFusion.load(tmp_path / "former", former).svm
        assert np.array_equal(svm.vectors, model.svm.vectors), "models of version 0.1 are read"
        model.save(tmp_path)
        cut = (tmp_path / WEIGHTS_FILE).read_bytes()[:-10]
        (tmp_path / WEIGHTS_FILE).write_bytes(cut)
        with pytest.raises(DamagedFileError):
            CnnSvmFusion.load(tmp_path, model.card)
    finally:
        ml_database["Models"].delete_one({"_id": "fused-modality"})
