import csv
import io

import httpx
import pytest

from app.api.routes.predict_batch import BatchAnswer
from app.core.settings import load_settings
from ml.dataset.records import Record
from tests.api.predict_client import CAPTION, ask, ask_many, is_problem, stages
from tests.serving.hostile_files import accepted, refused

HOSTILE = refused()


@pytest.mark.parametrize("task", ["modality", "location"])
def test_many_images_get_the_answers_that_each_gets_alone(
    predict_api: httpx.Client, records: list[Record], task: str
) -> None:
    images = [record.path.read_bytes() for record in records[:12]]
    captions = [record.caption or "" for record in records[:12]] if task == "location" else None
    answer = ask_many(predict_api, f"/predict/{task}/batch", images, captions)
    assert answer.status_code == 200, answer.text
    assert set(stages(answer)) <= {"wait", "decode", "queue", "run", "postprocess", "cache"}
    body = BatchAnswer.model_validate(answer.json())
    assert (body.succeeded, body.failed) == (12, 0)
    assert [item.index for item in body.items] == list(range(12))
    for place, item in enumerate(body.items):
        alone = ask(predict_api, f"/predict/{task}", images[place], captions[place] if captions else None).json()
        assert item.prediction is not None
        assert item.prediction.image.sha256 == alone["image"]["sha256"]
        assert item.prediction.inputs_used == alone["inputs_used"]
        for got, wanted in zip(item.prediction.probabilities, alone["probabilities"], strict=True):
            assert got.label == wanted["label"]
            assert got.probability == pytest.approx(wanted["probability"], abs=1e-5)


def test_bad_images_do_not_spoil_the_good_ones(predict_api: httpx.Client) -> None:
    good = list(accepted().values())
    names = [name for name in HOSTILE if name != "over the byte limit"]
    images = [part for pair in zip(good, [HOSTILE[name][0] for name in names], strict=False) for part in pair]
    body = ask_many(predict_api, "/predict/modality/batch", images).json()
    assert (body["succeeded"], body["failed"]) == (len(good), len(images) - len(good))
    for place, item in enumerate(body["items"]):
        if place % 2 == 0:
            assert (item["status"], item["problem"]) == (200, None)
            alone = ask(predict_api, "/predict/modality", images[place]).json()
            assert item["prediction"]["label"] == alone["label"]
        else:
            _, status, words = HOSTILE[names[place // 2]]
            assert (item["status"], item["prediction"]) == (status, None)
            assert item["problem"]["status"] == status
            assert words in item["problem"]["detail"]


def test_an_image_over_the_byte_limit_fails_alone(predict_api: httpx.Client) -> None:
    items = ask_many(
        predict_api, "/predict/modality/batch", [accepted()["grey"], HOSTILE["over the byte limit"][0]]
    ).json()["items"]
    assert [item["status"] for item in items] == [200, 413]


def test_an_empty_caption_counts_as_none(predict_api: httpx.Client) -> None:
    grey = accepted()["grey"]
    items = ask_many(predict_api, "/predict/location/batch", [grey, grey, grey], [CAPTION, "", " "]).json()["items"]
    assert [item["prediction"]["inputs_used"] for item in items] == [["image", "caption"], ["image"], ["image"]]
    items = ask_many(predict_api, "/predict/location/batch", [grey, grey]).json()["items"]
    assert [item["prediction"]["inputs_used"] for item in items] == [["image"], ["image"]]


def test_a_caption_that_is_too_long_fails_alone(predict_api: httpx.Client) -> None:
    grey = accepted()["grey"]
    items = ask_many(predict_api, "/predict/location/batch", [grey, grey], ["x" * 6000, "knee"]).json()["items"]
    assert [item["status"] for item in items] == [413, 200]
    assert "5000" in items[0]["problem"]["detail"]


def test_a_batch_that_cannot_be_used_says_what_to_send(predict_api: httpx.Client) -> None:
    grey = accepted()["grey"]
    answer = ask_many(predict_api, "/predict/location/batch", [grey, grey], ["one"])
    is_problem(answer, 422)
    assert "2 images and 1 captions" in answer.json()["detail"]
    limit = load_settings().max_images_per_request
    answer = ask_many(predict_api, "/predict/modality/batch", [grey] * (limit + 1))
    is_problem(answer, 413)
    assert f"the limit is {limit}" in answer.json()["detail"]
    assert ask_many(predict_api, "/predict/modality/batch", [grey] * limit).json()["succeeded"] == limit
    is_problem(predict_api.post("/predict/modality/batch", files={"image": grey}), 422)
    is_problem(predict_api.post("/predict/modality/batch", files={"images": (None, "text")}), 422)
    is_problem(predict_api.post("/predict/modality/batch", json={"images": []}), 415)


@pytest.mark.parametrize("accept", ["text/csv", "text/csv, application/json;q=0.5", "Text/CSV;q=0.9,*/*"])
def test_the_results_as_csv(predict_api: httpx.Client, accept: str) -> None:
    files = [("images", ("=1+1.png", accepted()["grey"])), ("images", ("notes.txt", b"no image" * 100))]
    body = predict_api.post("/predict/location/batch", files=files).json()
    answer = predict_api.post("/predict/location/batch", files=files, headers={"Accept": accept})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "Accept" in answer.headers["vary"]
    first, second = csv.DictReader(io.StringIO(answer.text))
    prediction = body["items"][0]["prediction"]
    assert (first["index"], first["file"], first["status"], first["problem"]) == ("0", "'=1+1.png", "200", "")
    assert first["label"] == prediction["label"]
    assert float(first["probability"]) == pytest.approx(prediction["probabilities"][0]["probability"], abs=1e-5)
    assert first["sha256"] == prediction["image"]["sha256"]
    assert first["notes"] == " ".join(prediction["notes"])
    assert (second["file"], second["status"], second["label"]) == ("notes.txt", "415", "")
    assert second["problem"] == body["items"][1]["problem"]["detail"]


@pytest.mark.parametrize(
    "accept",
    ["*/*", "application/json", "application/json, text/csv", "", "text/csv;q=0", "text/csv;q=0.1, application/json"],
)
def test_the_results_are_json_otherwise(predict_api: httpx.Client, accept: str) -> None:
    files = [("images", ("any.png", accepted()["grey"]))]
    answer = predict_api.post("/predict/modality/batch", files=files, headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["succeeded"] == 1
