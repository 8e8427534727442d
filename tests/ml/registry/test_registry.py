import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymongo.database import Database

from app.data import schema
from ml.models.base import ServedModel
from ml.registry.artifacts import read_json, sha256_of
from ml.registry.registry import Registry, RegistryError, UnknownModelError, load_model, load_reference, parse_card
from tests.ml.conftest import Document

# Registers a model under the name "compact" and dies after the files were written, before the card.
_KILLED = """
import os, signal, sys
from pathlib import Path
from pymongo import MongoClient
from ml.registry import registry
from ml.registry.artifacts import read_json
uri, source, target = sys.argv[1:]
database = MongoClient(uri).get_default_database()
model = registry.load_model(registry.parse_card(read_json(Path(source, "card.json"))), Path(source).parents[1])
model.card.version = "killed"
registry.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
registry.Registry(database, Path(target)).register(model)
"""


@pytest.fixture
def trained(models_dir: Path, ml_database: Database[Document]) -> ServedModel:
    return Registry(ml_database, models_dir).load("compact")


@pytest.fixture
def registry(database: Database[Document], tmp_path: Path) -> Registry:
    return Registry(database, tmp_path / "models")


def again(registry: Registry, model: ServedModel, version: str) -> ServedModel:
    model.card = model.card.model_copy(update={"version": version})
    registry.register(model)
    return model


def test_a_registered_model_answers_as_before(registry: Registry, trained: ServedModel) -> None:
    registry.register(trained)
    loaded = registry.load("compact")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 1, 128, 128), dtype=np.uint8)
    before = trained.combine(trained.encode_images(pixels), None)
    after = loaded.combine(loaded.encode_images(pixels), None)
    for task, probabilities in before.items():
        assert np.array_equal(probabilities, after[task])
        assert after[task].sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_the_card_is_in_the_database_and_beside_the_files(registry: Registry, trained: ServedModel) -> None:
    card = registry.register(trained)
    folder = registry.models_dir / card.name / card.version
    assert parse_card(read_json(folder / "card.json")) == registry.get("compact") == card
    assert {file.name: file.sha256 for file in card.files} == {
        path.name: sha256_of(path) for path in folder.iterdir() if path.name != "card.json"
    }
    assert card.files[0].sha256 == sha256_of(folder / "network.safetensors")


def test_an_unknown_model_is_named_with_those_there(registry: Registry, trained: ServedModel) -> None:
    with pytest.raises(UnknownModelError, match="no model 'compact' is registered; registered are: none yet"):
        registry.load("compact")
    registry.register(trained)
    with pytest.raises(UnknownModelError, match="registered are: compact"):
        registry.load("resnet")


def test_changed_cut_and_missing_files_are_refused(registry: Registry, trained: ServedModel) -> None:
    card = registry.register(trained)
    path = registry.models_dir / card.name / card.version / "network.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RegistryError, match=r"network\.safetensors is not what was registered"):
        registry.load("compact")
    path.write_bytes(whole[:-100])
    with pytest.raises(RegistryError, match="it was cut; train it again"):
        registry.load("compact")
    path.unlink()
    with pytest.raises(RegistryError, match=r"network\.safetensors is missing"):
        registry.load("compact")


def test_a_card_from_another_version_is_refused(registry: Registry, trained: ServedModel) -> None:
    registry.register(trained)
    registry._models.update_one({}, {"$set": {"format_version": 7}})
    with pytest.raises(RegistryError, match="has format 7, this version reads 1; train compact again"):
        registry.get("compact")
    assert list(registry.cards()) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("preprocess.version", 9, "preprocessing of compact is of another version: preprocess version 9 is not known"),
        ("preprocess.sharpen", 1, "preprocessing of compact is of another version: .*sharpen"),
        ("preprocess.mean", 0.2, "preprocessing of compact is of another version"),
    ],
)
def test_preprocessing_of_another_version_is_refused(
    registry: Registry, trained: ServedModel, field: str, value: object, message: str
) -> None:
    registry.register(trained)
    registry._models.update_one({}, {"$set": {field: value}})
    with pytest.raises(RegistryError, match=f"{message}.*; train compact again"):
        registry.get("compact")
    assert list(registry.cards()) == []


@pytest.mark.parametrize(
    "settings", [{}, {"architecture": {"depth": 3}}, {"architecture": "ResNet18"}, {"architecture": None}]
)
def test_settings_of_another_version_are_refused(
    registry: Registry, trained: ServedModel, settings: dict[str, object]
) -> None:
    registry.register(trained)
    registry._models.update_one({}, {"$set": {"settings": settings}})
    with pytest.raises(RegistryError, match=r"card of compact is from another version.*train compact again"):
        registry.load("compact")


def test_a_card_with_a_wrong_field_is_refused(registry: Registry, trained: ServedModel) -> None:
    registry.register(trained)
    registry._models.update_one({}, {"$set": {"inputs": ["sound"]}})
    with pytest.raises(RegistryError, match="the card of compact is not valid"):
        registry.get("compact")


def test_a_field_of_an_earlier_version_does_not_outlive_a_new_registration(
    registry: Registry, trained: ServedModel
) -> None:
    registry.register(trained)
    registry._models.update_one({}, {"$set": {"sharpness": 0.5}})
    with pytest.raises(RegistryError, match="the card of compact is not valid"):
        registry.get("compact")
    again(registry, trained, "later")
    assert registry.get("compact") == trained.card
    document = registry._models.find_one({"_id": "compact"}) or {}
    assert document.keys() == trained.card.model_dump().keys() | {"_id"}


def test_an_unknown_family_is_refused(registry: Registry, trained: ServedModel) -> None:
    card = registry.register(trained).model_copy(update={"family": "quantum"})
    with pytest.raises(RegistryError, match="unknown model family 'quantum'"):
        load_model(card, registry.models_dir)


def test_a_kill_while_registering_leaves_the_former_model(
    registry: Registry, trained: ServedModel, models_dir: Path, mongo_server: str, database: Database[Document]
) -> None:
    former = registry.register(trained)
    uri = mongo_server.partition("?")
    address = f"{uri[0].rpartition('/')[0]}/{database.name}?{uri[2]}"
    source = models_dir / "compact" / former.version
    command = [sys.executable, "-c", _KILLED, address, str(source), str(registry.models_dir)]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert registry.get("compact").version == former.version
    registry.load("compact")
    again(registry, trained, "later")
    assert sorted(path.name for path in (registry.models_dir / "compact").iterdir()) == [former.version, "later"]


def test_a_folder_that_cannot_be_written_leaves_the_former_model(registry: Registry, trained: ServedModel) -> None:
    former = registry.register(trained).version
    blocked = registry.models_dir / "compact" / "blocked"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(RegistryError, match=r"could not be written .* stays in use"):
        again(registry, trained, "blocked")
    assert registry.load("compact").card.version == former


def test_old_versions_go_but_the_last_two_stay(registry: Registry, trained: ServedModel) -> None:
    for version in ("v1", "v2", "v3"):
        again(registry, trained, version)
    assert sorted(path.name for path in (registry.models_dir / "compact").iterdir()) == ["v2", "v3"]


def test_the_best_dev_score_ranks_first(registry: Registry, trained: ServedModel) -> None:
    for name, accuracy in (("weak", 0.5), ("strong", 0.9), ("middling", 0.7)):
        card = trained.card.model_copy(deep=True, update={"name": name, "version": name})
        card.metrics = {"dev": {"modality": {"accuracy": accuracy}}}
        trained.card = card
        registry.register(trained)
    assert [card.name for card in registry.ranked("modality", registry.cards())] == ["strong", "middling", "weak"]
    assert registry.ranked("colour", registry.cards()) == []


def test_a_model_without_image_never_serves(
    registry: Registry, models_dir: Path, ml_database: Database[Document]
) -> None:
    trained = Registry(ml_database, models_dir)
    for name, accuracy, serving in (("caption-location", 0.9, []), ("compact", 0.1, ["compact"])):
        model = trained.load(name)
        model.card.metrics = {"dev": {"location": {"accuracy": accuracy}}}
        registry.register(model)
        assert [card.name for card in registry.ranked("location", registry.cards())] == serving


def test_metrics_of_a_split_are_replaced_in_both_cards(registry: Registry, trained: ServedModel) -> None:
    card = registry.register(trained)
    registry.set_metrics(card, "test", {"modality": {"accuracy": 0.5}, "location": {"accuracy": 0.4}})
    registry.set_metrics(card, "test", {"modality": {"accuracy": 0.75}})
    beside = parse_card(read_json(registry.models_dir / "compact" / card.version / "card.json"))
    for stored in (registry.get("compact"), beside):
        assert stored.metrics["test"] == {"modality": {"accuracy": 0.75}}
        assert stored.metrics["dev"] == card.metrics["dev"]
    registry.load("compact")


def test_metrics_of_a_replaced_version_are_refused(registry: Registry, trained: ServedModel) -> None:
    former = registry.register(trained).model_copy()
    again(registry, trained, "later")
    with pytest.raises(RegistryError, match="compact was retrained while"):
        registry.set_metrics(former, "test", {"modality": {"accuracy": 0.75}})
    assert "test" not in registry.get("compact").metrics


def test_the_reference_covers_every_image(models_dir: Path, ml_database: Database[Document]) -> None:
    card = Registry(ml_database, models_dir).get("compact")
    reference = load_reference(card, models_dir)
    assert reference is not None
    assert len(reference.images) == ml_database[schema.IMAGES].count_documents({})
    assert reference.training.sum() == ml_database[schema.IMAGES].count_documents({"split": "train"})
    assert card.ood_threshold is not None
    own = reference.embeddings[reference.training][:1]
    assert reference.distance(own)[0] < 1e-3
    assert load_reference(Registry(ml_database, models_dir).get("caption-location"), models_dir) is None
