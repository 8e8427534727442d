from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from ml.dataset.labels import LOCATION
from ml.models.base import EMBEDDING, InputError
from ml.models.clip import ClipHead, ClipImageNetwork, ClipModel
from ml.models.clip_examples import show
from ml.models.clip_towers import start_from
from ml.models.clip_train import ClipSettings, train, train_caption, train_image
from ml.models.clip_tune import Tuner
from ml.registry.artifacts import DamagedFileError
from ml.training.context import Context
from ml.training.pretrained import WeightsError
from ml.training.train import calibrate
from tests.ml.conftest import MakeContext
from tests.ml.exported import run_openvino
from tests.ml.train_until_killed import TOWERS

CAPTIONS = ["Axial CT shows a nodule in the right upper lobe of the lung", None, ""]


@pytest.fixture
def settings() -> ClipSettings:
    return replace(ClipSettings(), small=TOWERS)


def answer(
    model: ClipModel, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    captions = [*CAPTIONS, "knee"][: len(pixels)]
    return model.combine(model.encode_images(pixels), model.encode_captions(captions))[LOCATION]


def make_tuner(context: Context, settings: ClipSettings) -> Tuner:
    start = start_from(context.options.weights, settings.small, [])
    torch.manual_seed(0)
    head = ClipHead(start.towers.visual_projection.out_features, settings.head.hidden, settings.head.dropout)
    network = ClipImageNetwork(start.towers, head, start.preprocess.mean, start.preprocess.std)
    return Tuner(context, network, start, settings.scratch, settings.head)


def test_pretrained_towers_get_a_head_and_are_served(
    make_context: MakeContext, clip_folder: Path, settings: ClipSettings, tmp_path: Path
) -> None:
    context = make_context(weights=str(clip_folder), epochs=2)
    model = train(context, settings)
    assert model.card.init == "pretrained"
    assert model.card.weights_source == "local folder tiny-clip"
    assert model.preprocess is not None
    assert model.preprocess.mean == (0.5, 0.4, 0.3)
    assert model.preprocess.interpolation == "bicubic"
    start = start_from(str(clip_folder), TOWERS, []).towers.state_dict()
    after = model.towers.state_dict()
    assert all(torch.equal(value, after[name].cpu()) for name, value in start.items())
    folder = tmp_path / "saved"
    folder.mkdir()
    model.save(folder)
    loaded = ClipModel.load(folder, model.card)
    pixels = context.images(context.dev, model.preprocess)[:3]
    assert np.allclose(answer(model, pixels), answer(loaded, pixels), atol=1e-6)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DamagedFileError, match=r"tokenizer\.json is no tokenizer of CLIP"):
        ClipModel.load(folder, model.card)


def test_float16_is_scaled(
    make_context: MakeContext, clip_folder: Path, settings: ClipSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml.models.clip_tune.amp_dtype", lambda _: torch.float16)
    context = make_context(weights=str(clip_folder))
    tuner = make_tuner(context, replace(settings, scratch=replace(settings.scratch, epochs=1)))
    assert tuner.scaler.is_enabled()
    before = {name: value.clone() for name, value in tuner.network.state_dict().items()}
    tuner.run()
    assert tuner.scaler.get_scale() == 65536.0, "no step was skipped for a gradient that is not finite"
    assert context.run.precision == "float16"
    changed = [name for name, value in tuner.network.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("towers.vision_model") for name in changed)


def test_scratch_learns_tokens_and_answers_with_either_input(make_context: MakeContext, settings: ClipSettings) -> None:
    context = make_context(weights="scratch", epochs=1)
    model = train(context, settings)
    assert model.card.init == "scratch"
    assert model.preprocess is not None
    pixels = context.images(context.dev, model.preprocess)[:3]
    image_out, encoded = model.encode_images(pixels), model.encode_captions(CAPTIONS)
    assert image_out is not None
    assert np.isnan(encoded).all(axis=1).tolist() == [False, True, True]
    both, image_only = model.combine(image_out, encoded)[LOCATION], model.combine(image_out, None)[LOCATION]
    assert not np.allclose(both[0], image_only[0], atol=1e-6)
    assert np.allclose(both[1:], image_only[1:], atol=1e-6)
    caption_only = model.combine(None, encoded[:1])[LOCATION]
    assert caption_only.sum() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="an image or a caption for every item"):
        model.combine(None, encoded)
    expected = np.exp(image_out[LOCATION])
    assert np.allclose(image_only, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


def test_openvino_gives_what_torch_gives(make_context: MakeContext, settings: ClipSettings) -> None:
    model = train(make_context(weights="scratch", epochs=1), settings)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert model.network is not None
    answers = run_openvino(model.network.eval(), pixels)
    expected = model.encode_images(pixels.numpy())
    assert expected is not None
    assert answers[EMBEDDING] == pytest.approx(expected[EMBEDDING], abs=1e-3)


def test_modality_dropout_never_hides_both(settings: ClipSettings) -> None:
    has_text = torch.ones(2000)
    has_text[:50] = 0.0
    shown = show(settings.head, has_text, torch.Generator().manual_seed(0))
    assert shown.sum(dim=1).min() == 1.0
    assert (1 - shown[50:]).mean(dim=0).tolist() == pytest.approx([0.2, 0.2], abs=0.04)
    assert shown[:50].mean(dim=0).tolist() == [1.0, 0.0], "where there is no caption the image shows"


@pytest.mark.parametrize(("weights", "epochs"), [("scratch", 1), ("tiny", 2)])
def test_a_model_of_one_input_never_sees_the_other(
    make_context: MakeContext, clip_folder: Path, settings: ClipSettings, weights: str, epochs: int, tmp_path: Path
) -> None:
    start = str(clip_folder) if weights == "tiny" else weights
    context = make_context(weights=start, epochs=epochs)
    image_model = train_image(context, settings)
    assert (image_model.card.name, image_model.card.inputs) == ("clip-location-image", ["image"])
    assert image_model.preprocess is not None
    pixels = context.images(context.dev, image_model.preprocess)[:3]
    image_out, encoded = image_model.encode_images(pixels), image_model.encode_captions(CAPTIONS)
    answers = image_model.combine(image_out, encoded)[LOCATION]
    assert np.array_equal(answers, image_model.combine(image_out, None)[LOCATION])
    with pytest.raises(InputError, match="clip-location-image needs an image for every item"):
        image_model.combine(None, encoded[:1])

    context = make_context(weights=start, epochs=epochs)
    context.scratch = tmp_path / "other"
    text_model = train_caption(context, settings)
    assert (text_model.card.name, text_model.card.inputs) == ("clip-location-caption", ["caption"])
    assert text_model.preprocess is None
    assert text_model.network is None
    assert text_model.encode_images(pixels) is None
    encoded = text_model.encode_captions(CAPTIONS)
    answers = text_model.combine(image_out, encoded)[LOCATION]
    assert np.array_equal(answers, text_model.combine(None, encoded)[LOCATION])
    assert np.array_equal(answers[1], answers[2]), "without caption one and the same answer"
    assert not np.allclose(answers[0], answers[1], atol=1e-6)
    with pytest.raises(InputError, match="clip-location-caption needs a caption for every item"):
        text_model.combine(image_out, None)
    calibrate(text_model, context)
    assert text_model.card.score(LOCATION) is not None
    (tmp_path / "saved").mkdir()
    text_model.save(tmp_path / "saved")
    loaded = ClipModel.load(tmp_path / "saved", text_model.card)
    assert np.allclose(loaded.combine(None, encoded)[LOCATION], text_model.combine(None, encoded)[LOCATION], atol=1e-6)


@pytest.mark.parametrize(("name", "still"), [("image", "text_model"), ("caption", "vision_model")])
def test_the_tower_of_the_other_input_is_not_trained(
    make_context: MakeContext, clip_folder: Path, settings: ClipSettings, name: Literal["image", "caption"], still: str
) -> None:
    context = make_context(weights=str(clip_folder))
    quick = replace(settings.scratch, epochs=1, learning_rate=1e-2, ema_decay=0.1)
    alone = replace(settings, scratch=quick, head=replace(settings.head, inputs=(name,)))
    tuner = make_tuner(context, alone)
    before = {key: value.clone() for key, value in tuner.network.towers.state_dict().items()}
    tuner.run()
    after = tuner.network.towers.state_dict()
    changed = {key.partition(".")[0] for key, value in before.items() if not torch.equal(value, after[key])}
    assert still not in changed
    assert changed & {"text_model", "vision_model"}


def test_a_broken_folder_is_named(clip_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes()[:200])
    with pytest.raises(WeightsError, match="holds no usable CLIP model"):
        start_from(str(tmp_path), TOWERS, [])
