"""The dual encoder that is trained where the weights of CLIP are not at hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ml.dataset import labels
from ml.dataset.labels import LOCATION
from ml.dataset.records import Record
from ml.models.base import EMBEDDING, InputError
from ml.models.dual_encoder import CAPTION_HEADS, DualEncoderModel, contrastive_loss
from ml.models.dual_encoder_train import embed_captions, pairs, train
from ml.registry.artifacts import DamagedFileError
from ml.training.context import Context
from ml.training.train import calibrate
from tests.conftest import small_dual_encoder
from tests.ml.conftest import MakeContext

SETTINGS = small_dual_encoder()
CAPTIONS = ["Axial CT shows a nodule in the right upper lobe of the lung", None, "", "MR of the knee"]


@pytest.fixture
def context(make_context: MakeContext) -> Context:
    return make_context(epochs=1)


@pytest.fixture
def model(context: Context) -> DualEncoderModel:
    model = train(context, "clip-location", settings=SETTINGS)
    calibrate(model, context)
    return model


def test_the_loss_is_that_of_clip_where_every_pair_is_alone() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    target = torch.arange(6)
    expected = 0.5 * sum(torch.nn.functional.cross_entropy(each, target) for each in (logits, logits.T))
    assert contrastive_loss(logits, target, target, 0.5) == pytest.approx(float(expected), abs=1e-5)


def test_equal_captions_are_positives_and_images_without_one_are_left_out() -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    captions, cases = torch.tensor([7, 7, -1, 3]), torch.tensor([0, 0, 0, 1])
    kept = logits[[0, 1, 3]][:, [0, 1, 3]]
    target = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    expected = 0.5 * sum(torch.nn.functional.cross_entropy(each, target) for each in (kept, kept.T))
    assert contrastive_loss(logits, captions, cases, 0.5) == pytest.approx(float(expected), abs=1e-5)
    # Another caption of the same case counts half as much as the same caption.
    captions = torch.tensor([7, 8, -1, 3])
    target = torch.tensor([[2 / 3, 1 / 3, 0.0], [1 / 3, 2 / 3, 0.0], [0.0, 0.0, 1.0]])
    expected = 0.5 * sum(torch.nn.functional.cross_entropy(each, target) for each in (kept, kept.T))
    assert contrastive_loss(logits, captions, cases, 0.5) == pytest.approx(float(expected), abs=1e-5)
    nothing = contrastive_loss(logits, torch.full((4,), -1), cases, 0.5)
    assert float(nothing) == 0.0


def test_an_image_without_caption_teaches_the_image_tower_alone(train_records: list[Record]) -> None:
    records = [*train_records[:3], replace(train_records[3], caption="")]
    pixels = np.zeros((4, 3, 32, 32), dtype=np.uint8)
    examples = pairs(records, pixels, embed_captions(records, lambda _: None), SETTINGS.recipe)
    assert examples.loss_inputs["captions"].tolist().index(-1) == 3
    assert examples.inputs["sentences"].shape == (4, 384)
    assert examples.targets[CAPTION_HEADS[LOCATION]][3] == labels.IGNORED
    assert examples.targets[CAPTION_HEADS[LOCATION]][:3].tolist() == examples.targets[LOCATION][:3].tolist()
    assert examples.targets.keys() == SETTINGS.recipe.task_weights.keys()


def test_the_first_stages_stay_those_of_imagenet(model: DualEncoderModel) -> None:
    from ml.models.efficientnet import EfficientNetBackbone
    from ml.training.pretrained import efficientnet_state

    state, _ = efficientnet_state("auto")
    assert state is not None
    imagenet = EfficientNetBackbone()
    imagenet.load_pretrained(state)
    trained = model.towers.image.backbone.state_dict()
    same = {name for name, value in imagenet.state_dict().items() if torch.equal(value, trained[name])}
    assert {name for name in trained if name.startswith(("body.conv_stem", "body.bn1", "body.blocks.2"))} <= same
    assert "body.blocks.3.0.conv_pw.weight" not in same
    assert model.card.init == "pretrained"
    assert model.card.weights_source.startswith("EfficientNet-Lite0 + MiniLM, trained on the dataset's pairs")


def test_it_answers_from_either_input_or_both(model: DualEncoderModel, context: Context) -> None:
    assert model.preprocess is not None
    pixels = context.images(context.dev, model.preprocess)[:4]
    images, captions = model.encode_images(pixels), model.encode_captions(CAPTIONS)
    assert images is not None
    assert np.isnan(captions).all(axis=1).tolist() == [False, True, True, False]
    embedded = model.embed_captions(CAPTIONS)
    assert np.isnan(embedded).all(axis=1).tolist() == [False, True, True, False]
    assert np.allclose(np.linalg.norm(embedded[[0, 3]], axis=1), 1.0, atol=1e-5)
    assert images[EMBEDDING].shape == embedded.shape
    both, image_only = model.combine(images, captions)[LOCATION], model.combine(images, None)[LOCATION]
    assert np.allclose(both[[1, 2]], image_only[[1, 2]], atol=1e-6)
    assert not np.allclose(both[[0, 3]], image_only[[0, 3]], atol=1e-6)
    caption_only = model.combine(None, captions[[0, 3]])[LOCATION]
    assert caption_only.sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
    with pytest.raises(InputError, match="clip-location needs an image or a caption for every item"):
        model.combine(None, captions)


def test_it_is_loaded_as_it_was_saved(model: DualEncoderModel, context: Context, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    assert model.save(folder) == ["towers.safetensors", "caption.safetensors", "vocabulary.json"]
    loaded = DualEncoderModel.load(folder, model.card)
    assert model.preprocess is not None
    pixels = context.images(context.dev, model.preprocess)[:4]
    answers = [each.combine(each.encode_images(pixels), each.encode_captions(CAPTIONS)) for each in (model, loaded)]
    assert np.allclose(answers[0][LOCATION], answers[1][LOCATION], atol=1e-4)  # its regressions are kept in half
    other = model.card.model_copy(deep=True)
    other.settings["sentence_encoder"]["sha256"] = "0" * 64
    with pytest.raises(DamagedFileError, match="another sentence encoder"):
        DualEncoderModel.load(folder, other)
    other = model.card.model_copy(deep=True)
    other.settings["architecture"]["size"] = 8
    with pytest.raises(DamagedFileError, match="does not fit the architecture"):
        DualEncoderModel.load(folder, other)


def test_the_card_says_how_well_text_finds_images(model: DualEncoderModel, context: Context) -> None:
    assert model.card.shared_embedding
    figures = model.card.retrieval["dev"]
    assert figures["images"] == len(context.dev)
    assert model.card.retrieval_score == figures["image"]["recall_at"]["10"]
