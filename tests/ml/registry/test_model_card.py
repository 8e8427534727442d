import hashlib
from typing import Any

from ml.registry.model_card import ModelCard, ModelFile

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
