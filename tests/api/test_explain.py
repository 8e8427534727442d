import io

import httpx
import pytest
from PIL import Image

from app.api.routes.explain import ExplanationView
from ml.dataset import labels
from tests.api.predict_client import CAPTION, ask, is_problem, stages
from tests.serving.hostile_files import accepted, refused


@pytest.mark.parametrize("task", ["modality", "location"])
def test_an_overlay_is_an_image_of_the_same_size(predict_api: httpx.Client, png: bytes, task: str) -> None:
    answer = ask(predict_api, f"/explain/{task}", png, CAPTION)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == Image.open(io.BytesIO(png)).size
    assert answer.headers["x-explained-label"] == ask(predict_api, f"/predict/{task}", png, CAPTION).json()["label"]
    assert answer.headers["x-explanation-method"] == "grad-cam"
    assert stages(answer) == ["wait", "decode", "queue", "run", "postprocess", "explain"]


def test_the_map_comes_with_the_prediction_and_what_each_input_says(predict_api: httpx.Client, png: bytes) -> None:
    answer = ask(predict_api, "/explain/location?format=json", png, CAPTION)
    body = ExplanationView.model_validate(answer.json())
    assert body.explanation.label == body.prediction.label
    assert max(max(row) for row in body.explanation.map) == pytest.approx(1)
    assert body.by_input.image is not None
    assert body.by_input.caption is not None
    alone = ask(predict_api, "/predict/location", png).json()
    assert body.by_input.image.label == alone["label"]
    assert body.by_input.image.probabilities[0].probability == pytest.approx(
        alone["probabilities"][0]["probability"], abs=1e-5
    )
    assert body.by_input.caption.probabilities != body.by_input.image.probabilities
    assert set(labels.LOCATIONS) == {each.label for each in body.by_input.caption.probabilities}
    without = ExplanationView.model_validate(ask(predict_api, "/explain/location?format=json", png).json())
    assert without.by_input.caption is None
    assert without.prediction.inputs_used == ["image"]


def test_any_class_can_be_explained(predict_api: httpx.Client, png: bytes) -> None:
    for label in ("CT", "MR"):
        answer = ask(predict_api, f"/explain/modality?format=json&label={label}", png)
        assert answer.json()["explanation"]["label"] == label
    answer = ask(predict_api, "/explain/modality?label=PET", png)
    is_problem(answer, 422)
    assert "CT; MR" in answer.json()["detail"]
    is_problem(ask(predict_api, "/explain/modality?format=gif", png), 422)


@pytest.mark.parametrize("name", accepted())
def test_every_readable_file_is_explained(predict_api: httpx.Client, name: str) -> None:
    answer = ask(predict_api, "/explain/modality", accepted()[name])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["empty", "text", "truncated", "bomb"])
def test_what_cannot_be_predicted_cannot_be_explained(predict_api: httpx.Client, name: str) -> None:
    data, status, words = refused()[name]
    answer = ask(predict_api, "/explain/modality", data)
    is_problem(answer, status)
    assert words in answer.json()["detail"]
