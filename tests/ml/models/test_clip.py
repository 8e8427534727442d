from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ml.dataset.labels import LOCATION
from ml.models import dual_encoder_train
from ml.models.base import EMBEDDING, InputError, ServedModel
from ml.models.clip import ClipModel, HeadSettings
from ml.models.clip_train import load_pretrained_clip, modality_mask, train
from ml.registry.artifacts import DamagedFileError
from ml.training.pretrained import WeightsError
from ml.training.train import calibrate
from tests.conftest import small_dual_encoder
from tests.ml.conftest import MakeContext
from tests.ml.exported import run_openvino

CAPTIONS = ["Axial CT shows a nodule in the right upper lobe of the lung", None, ""]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_encoder_train, "DualEncoderSettings", small_dual_encoder)


def answer(
    model: ServedModel, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    captions = [*CAPTIONS, "knee"][: len(pixels)]
    return model.combine(model.encode_images(pixels), model.encode_captions(captions))[LOCATION]


def test_pretrained_towers_get_a_head_and_are_served(
    make_context: MakeContext, clip_folder: Path, tmp_path: Path
) -> None:
    context = make_context(weights=str(clip_folder), epochs=2)
    model = train(context)
    assert isinstance(model, ClipModel)
    assert model.card.init == "pretrained"
    assert model.card.weights_source == "local folder tiny-clip"
    assert model.preprocess is not None
    assert model.preprocess.mean == (0.5, 0.4, 0.3)
    assert model.preprocess.interpolation == "bicubic"
    start = load_pretrained_clip(clip_folder, "").towers.state_dict()
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


def test_text_finds_images_of_pretrained_towers(make_context: MakeContext, clip_folder: Path) -> None:
    context = make_context(weights=str(clip_folder), epochs=1)
    model = train(context)
    assert model.card.shared_embedding
    assert model.preprocess is not None
    images, captions = model.encode_images(context.images(context.dev, model.preprocess)), model.embed_captions(["CT"])
    assert images is not None
    assert captions is not None
    assert images[EMBEDDING].shape[1] == captions.shape[1]
    assert model.card.retrieval["dev"]["images"] == len(context.dev)


@pytest.mark.parametrize("kind", ["clip", "dual encoder"])
def test_openvino_gives_what_torch_gives(make_context: MakeContext, clip_folder: Path, kind: str) -> None:
    model = train(make_context(weights=str(clip_folder) if kind == "clip" else "scratch", epochs=1))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert model.network is not None
    answers = run_openvino(model.network.eval(), pixels)
    expected = model.encode_images(pixels.numpy())
    assert expected is not None
    assert answers[EMBEDDING] == pytest.approx(expected[EMBEDDING], abs=1e-3)


def test_the_head_learns_at_its_rate_from_the_first_epoch_on(make_context: MakeContext, clip_folder: Path) -> None:
    """The rate changes with every step: that of an epoch's first step is next to nothing in the first epoch."""
    settings, rates = HeadSettings(batch_size=8), list[float]()
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        train(make_context(weights=str(clip_folder), epochs=1), settings=settings)
    finally:
        hook.remove()
    assert rates[0] == pytest.approx(0.02 * settings.learning_rate)
    assert max(rates) > 0.95 * settings.learning_rate
    assert rates[-1] < 0.2 * settings.learning_rate, "and falls to nothing"


def test_modality_dropout_never_hides_both() -> None:
    has_text = torch.ones(2000)
    has_text[:50] = 0.0
    kept = modality_mask(HeadSettings(), has_text, torch.Generator().manual_seed(0))
    assert kept.sum(dim=1).min() == 1.0
    assert (1 - kept[50:]).mean(dim=0).tolist() == pytest.approx([0.2, 0.2], abs=0.04)
    assert kept[:50].mean(dim=0).tolist() == [1.0, 0.0], "where there is no caption the image shows"


@pytest.mark.parametrize(("weights", "epochs"), [("scratch", 1), ("tiny", 2)])
def test_a_model_of_one_input_never_sees_the_other(
    make_context: MakeContext, clip_folder: Path, weights: str, epochs: int, tmp_path: Path
) -> None:
    start = str(clip_folder) if weights == "tiny" else weights
    context = make_context(weights=start, epochs=epochs)
    image_model = train(context, "clip-location-image", ["image"])
    assert (image_model.card.name, image_model.card.inputs) == ("clip-location-image", ["image"])
    assert image_model.preprocess is not None
    pixels = context.images(context.dev, image_model.preprocess)[:3]
    image_out, encoded = image_model.encode_images(pixels), image_model.encode_captions(CAPTIONS)
    assert encoded is not None
    answers = image_model.combine(image_out, encoded)[LOCATION]
    assert np.array_equal(answers, image_model.combine(image_out, None)[LOCATION])
    with pytest.raises(InputError, match="clip-location-image needs an image for every item"):
        image_model.combine(None, encoded[:1])

    context = make_context(weights=start, epochs=epochs)
    context.checkpoint_dir = tmp_path / "other"
    text_model = train(context, "clip-location-caption", ["caption"])
    assert (text_model.card.name, text_model.card.inputs) == ("clip-location-caption", ["caption"])
    assert text_model.preprocess is None
    assert text_model.network is None
    assert text_model.encode_images(pixels) is None
    encoded = text_model.encode_captions(CAPTIONS)
    assert encoded is not None
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
    loaded = type(text_model).load(tmp_path / "saved", text_model.card)
    assert np.allclose(loaded.combine(None, encoded)[LOCATION], text_model.combine(None, encoded)[LOCATION], atol=1e-6)


def test_a_broken_folder_is_named(clip_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes()[:200])
    with pytest.raises(WeightsError, match="holds no usable CLIP model"):
        load_pretrained_clip(tmp_path, "")
