from typing import Literal

from ml.dataset import labels
from ml.dataset.records import Record
from ml.evaluation.leaderboard import presence, remarks, start, untrained
from ml.evaluation.published_baselines import ORIGINAL_WEIGHTS
from ml.models import dual_encoder_train
from ml.models.model_specs import MODEL_SPECS
from tests.conftest import small_dual_encoder
from tests.ml.conftest import MakeContext


def test_models_that_are_not_registered_have_a_command() -> None:
    rows = {row["name"]: row for row in untrained(labels.MODALITY, {"compact", "knn-colour"})}
    doing = {name for name, plan in MODEL_SPECS.items() if labels.MODALITY in plan.tasks}
    assert rows.keys() == doing - {"compact", "knn-colour"}
    assert rows["resnet50-modality"] == {
        "name": "resnet50-modality",
        "command": "medpix train resnet50-modality",
    }
    assert untrained(labels.MODALITY, MODEL_SPECS) == []


def test_a_scratch_row_is_not_comparable_with_a_fine_tuned_original(make_context: MakeContext) -> None:
    def remarks_on(name: str, init: Literal["pretrained", "scratch"]) -> list[str]:
        draft = make_context().draft_card(
            name, "resnet", tasks=("modality",), inputs=("image",), preprocess=None, settings={}, init=init
        )
        return remarks(draft)

    (remark,) = remarks_on("resnet50-modality", "scratch")
    assert ORIGINAL_WEIGHTS["resnet50-modality"] in remark
    assert "not comparable with the original" in remark
    assert remarks_on("compact", "scratch") == remarks_on("resnet50-modality", "pretrained") == []


def test_a_dual_encoder_says_whether_its_image_tower_was_pretrained(make_context: MakeContext) -> None:
    context = make_context(epochs=1, weights="scratch")
    card = dual_encoder_train.train(context, "clip-location", ("caption",), small_dual_encoder()).card
    began = "EfficientNet-Lite0 ({}) + MiniLM, trained on the dataset's pairs"
    assert start(card) == began.format("from scratch")
    assert start(card.model_copy(update={"init": "pretrained"})) == began.format("pretrained")
    (remark,) = remarks(card)
    assert remark.startswith(f"{start(card)}: not comparable with the original")


def test_classes_are_present_or_absent(test_records: list[Record]) -> None:
    present, absent = presence(test_records, labels.LOCATION)
    assert set(present) == {record.location for record in test_records} - {None}
    assert sorted(present + absent) == sorted(labels.LOCATIONS)
    assert presence([], labels.MODALITY) == ([], ["CT", "MR"])
