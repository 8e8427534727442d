from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from pymongo.database import Database

from app.core.settings import Settings
from app.core.telemetry import Metrics
from app.data.schema import MODELS
from app.serving.daemon_pool import DaemonThreadPool
from app.serving.prediction_cache import PredictionCache
from app.serving.prediction_context import PredictionContext
from app.serving.predictor import Predictor
from ml.dataset import labels
from ml.dataset.image_loading import load_images
from ml.dataset.records import Record
from ml.models.predict_records import captions_of, run_captions, run_images
from ml.registry.model_card import ModelCard
from ml.registry.registry import Registry, load_model
from tests.api.predict_client import CAPTION, ask, is_problem, stages
from tests.conftest import database_address
from tests.service import wait_for
from tests.serving.decode.dicom_files import PATIENT, dicom
from tests.serving.hostile_files import accepted, refused
from tests.serving.ood_images import ood_images

Document = dict[str, Any]
Serve = Callable[[Settings], AbstractContextManager[httpx.Client]]


def test_a_modality_comes_with_all_that_traces_it(predict_api: httpx.Client, records: list[Record]) -> None:
    record = next(record for record in records if record.split == "test")
    answer = ask(predict_api, "/predict/modality", record.path.read_bytes())
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["task"] == "modality"
    assert body["inputs_used"] == ["image"]
    ranked = body["probabilities"]
    assert {entry["label"] for entry in ranked} == {"CT", "MR"}
    assert ranked == sorted(ranked, key=lambda entry: -entry["probability"])
    assert sum(entry["probability"] for entry in ranked) == pytest.approx(1, abs=1e-5)
    assert body["label"] == ranked[0]["label"]
    assert body["decision"] in ("confident", "uncertain")
    assert body["in_dataset"] == {"image": record.image, "u_id": record.u_id, "split": "test"}
    assert body["notes"] == []
    assert body["request_id"] == answer.headers["x-request-id"]
    served = predict_api.get("/models/compact").json()
    assert served["serves"] == ["modality"]
    assert body["model"] == {
        "name": "compact",
        "version": served["card"]["version"],
        "sha256": ModelCard.model_validate(served["card"]).sha256,
        "init": "scratch",
    }


def test_the_same_question_is_answered_from_the_cache(predict_api: httpx.Client) -> None:
    data = accepted()["rgb"] + b"a comment that makes this file one of its own"
    first = ask(predict_api, "/predict/location", data, CAPTION)
    assert first.headers["x-cache"] == "miss"
    assert stages(first) == ["wait", "decode", "queue", "run", "postprocess"]
    again = ask(predict_api, "/predict/location", data, f" {CAPTION}\n")
    assert again.headers["x-cache"] == "hit"
    assert stages(again) == ["wait", "cache"]
    ids = ("request_id",)
    assert {k: v for k, v in again.json().items() if k not in ids} == {
        k: v for k, v in first.json().items() if k not in ids
    }
    assert again.json()["request_id"] == again.headers["x-request-id"] != first.headers["x-request-id"]
    for path, content, caption in (
        ("/predict/location", data, "another caption"),
        ("/predict/location", data, None),
        ("/predict/modality", data, None),
        ("/predict/location", data + b".", CAPTION),
    ):
        assert ask(predict_api, path, content, caption).headers["x-cache"] == "miss"


def test_a_caller_can_ask_for_less_time(predict_api: httpx.Client, png: bytes) -> None:
    answer = ask(predict_api, "/predict/modality", png + b"late", headers={"X-Request-Timeout": "0.000001"})
    is_problem(answer, 504)
    assert "X-Request-Timeout" in answer.json()["detail"]
    assert ask(predict_api, "/predict/modality", png + b"late", headers={"X-Request-Timeout": "500"}).status_code == 200
    for wrong in ("0", "-1", "soon", "nan", "inf", "601"):
        is_problem(ask(predict_api, "/predict/modality", png, headers={"X-Request-Timeout": wrong}), 422)


def test_a_location_uses_image_and_caption(predict_api: httpx.Client, png: bytes) -> None:
    with_caption = ask(predict_api, "/predict/location", png, CAPTION).json()
    assert with_caption["inputs_used"] == ["image", "caption"]
    assert {entry["label"] for entry in with_caption["probabilities"]} == set(labels.LOCATIONS)
    category = with_caption["location_category"]
    assert {entry["label"] for entry in category["probabilities"]} == set(labels.LOCATION_CATEGORIES)
    assert category["label"] == category["probabilities"][0]["label"]
    other = ask(predict_api, "/predict/location", png, "MRI of the brain: mass in the left temporal lobe").json()
    assert other["probabilities"] != with_caption["probabilities"]


@pytest.mark.parametrize("caption", [None, "", " \r\n\t"])
def test_a_location_without_caption_says_that_the_image_alone_was_used(
    predict_api: httpx.Client, png: bytes, caption: str | None
) -> None:
    body = ask(predict_api, "/predict/location", png, caption).json()
    assert body["inputs_used"] == ["image"]
    assert "image alone" in body["notes"][0]


def test_the_service_answers_what_the_training_package_computes(
    predict_api: httpx.Client,
    predict_settings: Settings,
    ml_database: Database[Document],
    records: list[Record],
) -> None:
    chosen = records[:6]
    folder = predict_settings.model_files_dir
    for task, name in (("modality", "compact"), ("location", "fused-location")):
        card = next(card for card in Registry(ml_database, folder).cards() if card.name == name)
        model = load_model(card, folder)
        assert model.preprocess is not None
        outputs, captions = (
            run_images(model, load_images(chosen, model.preprocess)),
            run_captions(model, captions_of(chosen)),
        )
        expected = model.combine(outputs, captions)[task]
        for row, record in enumerate(chosen):
            body = ask(predict_api, f"/predict/{task}", record.path.read_bytes(), record.caption or None).json()
            got = {entry["label"]: entry["probability"] for entry in body["probabilities"]}
            assert [got[label] for label in labels.TASKS[task]] == pytest.approx(expected[row].tolist(), abs=1e-4)


def test_a_training_image_is_named_as_such(predict_api: httpx.Client, records: list[Record]) -> None:
    record = next(record for record in records if record.split == "train")
    body = ask(predict_api, "/predict/modality", record.path.read_bytes()).json()
    assert body["in_dataset"]["split"] == "train"
    assert any("trained on this image" in note for note in body["notes"])


def test_an_image_from_elsewhere_is_not_in_the_dataset(predict_api: httpx.Client) -> None:
    assert ask(predict_api, "/predict/modality", accepted()["rgb"]).json()["in_dataset"] is None


@pytest.mark.parametrize("name", accepted())
@pytest.mark.parametrize("task", ["modality", "location"])
def test_every_readable_file_is_answered(predict_api: httpx.Client, task: str, name: str) -> None:
    answer = ask(predict_api, f"/predict/{task}", accepted()[name], CAPTION)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["chart", "white", "black", "photo"])
def test_an_image_that_is_no_scan_is_uncertain_whatever_the_model_says(predict_api: httpx.Client, name: str) -> None:
    body = ask(predict_api, "/predict/modality", ood_images()[name]).json()
    assert body["decision"] == "uncertain"
    assert any("out of distribution" in note for note in body["notes"])


@pytest.mark.parametrize("distance", ["mahalanobis", "nearest"])  # older models have the second
def test_an_image_beyond_the_distance_of_the_training_images_is_uncertain(
    predict_settings: Settings,
    serve: Serve,
    mongo_server: str,
    ml_database: Database[Document],
    database: Database[Document],
    distance: str,
) -> None:
    document = ml_database[MODELS].find_one({"_id": "compact"})
    assert document is not None
    decisions = []
    settings = predict_settings.model_copy(update={"mongo_uri": database_address(mongo_server, database.name)})
    largest = {"mahalanobis": 1e6, "nearest": 2.0}[distance]
    for limit in (largest, -1.0):  # every distance is below the one and above the other
        changed = {"ood_threshold": limit, "ood_distance": distance, "thresholds": {}}
        database[MODELS].replace_one({"_id": "compact"}, document | changed, upsert=True)
        with serve(settings) as client:
            wait_for(client, "/models", lambda answer: answer.json()["tasks"]["modality"]["state"] == "serving")
            decisions.append(ask(client, "/predict/modality", accepted()["grey"]).json()["decision"])
    assert decisions == ["confident", "uncertain"]


@pytest.mark.parametrize("name", refused())
@pytest.mark.parametrize("task", ["modality", "location"])
def test_every_hostile_file_is_refused_with_a_reason(predict_api: httpx.Client, task: str, name: str) -> None:
    data, status, words = refused()[name]
    answer = ask(predict_api, f"/predict/{task}", data, CAPTION)
    is_problem(answer, status)
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("name", refused())
def test_a_hostile_file_disturbs_nobody(predict_api: httpx.Client, records: list[Record], name: str) -> None:
    data, status, _ = refused()[name]
    good = [record.path.read_bytes() for record in records[:10]]
    alone = [ask(predict_api, "/predict/modality", each).json()["probabilities"] for each in good]
    with ThreadPoolExecutor(12) as pool:
        # Bytes after the end of the image keep the cache out of it.
        files = [good[i % len(good)] + f"{name} {i}".encode() for i in range(50)]
        jobs = [pool.submit(ask, predict_api, "/predict/modality", file) for file in files[:25]]
        hostile = pool.submit(ask, predict_api, "/predict/modality", data)
        jobs += [pool.submit(ask, predict_api, "/predict/modality", file) for file in files[25:]]
    assert hostile.result().status_code == status
    for number, job in enumerate(jobs):
        got = [entry["probability"] for entry in job.result().json()["probabilities"]]
        expected = [entry["probability"] for entry in alone[number % len(good)]]
        assert got == pytest.approx(expected, abs=1e-5)


def test_a_caption_is_limited(predict_api: httpx.Client, png: bytes) -> None:
    assert ask(predict_api, "/predict/location", png, "ureter " * 700).status_code == 200
    answer = ask(predict_api, "/predict/location", png, "x" * 100_000)
    is_problem(answer, 413)
    assert "5000" in answer.json()["detail"]


def test_a_form_that_cannot_be_used_is_refused(predict_api: httpx.Client, png: bytes) -> None:
    post = predict_api.post
    is_problem(post("/predict/modality", files={"picture": png}), 422)
    is_problem(post("/predict/modality", files={"image": (None, "text")}), 422)
    answer = post("/predict/location", files={"image": png, "caption": ("caption.txt", b"ureter")})
    is_problem(answer, 422)
    assert answer.json()["detail"] == "The field caption must be text, not a file."
    answer = post("/predict/modality", files=[("image", png), ("image", png)])
    is_problem(answer, 422)
    assert "There are 2 fields image; send one" in answer.json()["detail"]
    is_problem(post("/predict/modality", files=[("image", png)] * 9), 400)
    is_problem(post("/predict/modality", content=png, headers={"content-type": "image/png"}), 415)
    is_problem(post("/predict/modality", json={"image": "…"}), 415)
    is_problem(post("/predict/modality"), 415)
    broken = {"content-type": "multipart/form-data"}
    is_problem(post("/predict/modality", content=b"--x\r\n", headers=broken), 400)


def test_only_post_predicts(predict_api: httpx.Client) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = predict_api.request(method, "/predict/modality")
        is_problem(answer, 405)
        assert answer.headers["allow"] == "POST"


def test_a_dicom_file_is_predicted_and_what_was_done_to_it_is_said(predict_api: httpx.Client) -> None:
    frames = np.random.default_rng(0).integers(0, 4096, (3, 64, 80), dtype=np.int16)
    data = dicom(frames, WindowCenter=1000, WindowWidth=2000)
    answer = ask(predict_api, "/predict/modality", data)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["image"]["width"], body["image"]["height"], body["image"]["mode"]) == (80, 64, "DICOM MONOCHROME2")
    assert "frame 2, the middle one" in body["notes"][0]
    assert "centre 1000, width 2000" in body["notes"][1]
    assert PATIENT not in answer.text
    is_problem(ask(predict_api, "/predict/modality", data[:-2000]), 422)
    assert ask(predict_api, "/explain/modality", data).headers["content-type"] == "image/png"


def test_a_caption_without_a_known_word_counts_as_none(predict_api: httpx.Client, png: bytes) -> None:
    without = ask(predict_api, "/predict/location", png).json()
    for caption in ("image 3", "\U0001f600", "肝脏"):
        body = ask(predict_api, "/predict/location", png, caption).json()
        assert body["inputs_used"] == ["image"]
        assert body["probabilities"] == without["probabilities"]
        assert "no word that the model knows" in body["notes"][0]
    explained = ask(predict_api, "/explain/location?format=json", png, "image 3").json()
    assert explained["by_input"]["caption"] is None
    assert explained["caption_effect"] is None


@pytest.mark.parametrize(
    ("header", "task", "words"),
    [
        ("CR", "modality", "trained on CT and MR images only"),
        ("CR", "location", "trained on CT and MR images only"),
        ("other", "modality", "contradicts the prediction"),
        ("same", "modality", None),
        ("other", "location", None),
        (None, "modality", None),
    ],
)
def test_the_modality_of_a_header_can_only_take_confidence(
    predict_settings: Settings,
    ml_database: Database[Document],
    png: bytes,
    header: str | None,
    task: str,
    words: str | None,
) -> None:
    folder = predict_settings.model_files_dir
    card = next(card for card in Registry(ml_database, folder).cards() if card.name == "compact")
    model = load_model(card.model_copy(update={"thresholds": {}}), folder)
    predictor = Predictor(model, None, predict_settings, DaemonThreadPool(1, "test"), PredictionCache(0), Metrics())
    context = PredictionContext(png, task=task)
    predictor.image_encoder.decode(context, None, 0.0)
    assert context.pixels is not None
    context.outputs = model.encode_images(context.pixels[None])
    predictor.postprocess(context)
    if header in ("same", "other"):
        header = {"same": context.label, "other": "MR" if context.label == "CT" else "CT"}[header]
    context.info = replace(context.info, header_modality=header)
    predictor.postprocess(context)
    assert context.confident == (words is None)
    assert (words is None) == (not any("DICOM header" in note for note in context.notes))
    assert words is None or words in context.notes[-1]
