"""Images that are found by words, with a tiny dual encoder under the real server."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from app.api.routes.similar import FoundImages, SimilarImages
from app.core.progress import Progress
from app.core.settings import Settings, load_settings
from app.data.schema import MODELS, TRAINING_RUNS
from app.data.seed import seed
from ml.registry.model_card import now
from ml.registry.registry import Registry, load_reference
from tests.api.predict_client import is_problem
from tests.conftest import database_address
from tests.service import is_ok, running_service, wait_for

Document = dict[str, Any]
TEXT = "axial CT of the abdomen"


def test_images_are_ranked_by_the_embedding_of_the_text(
    text_api: httpx.Client, text_settings: Settings, mongo_client: MongoClient[Document]
) -> None:
    answer = text_api.get("/search/images", params={"q": f"  {TEXT} ", "limit": 100})
    assert answer.status_code == 200, answer.text
    page = FoundImages.model_validate(answer.json())
    assert page.model.name == "clip-location"
    assert page.total == text_api.get("/images").json()["total"]
    registry = Registry(mongo_client["generated_text_search"], text_settings.model_files_dir)
    card, model = registry.get("clip-location"), registry.load("clip-location")
    reference = load_reference(card, text_settings.model_files_dir)
    assert card.version == page.model.version
    assert reference is not None
    encoded = model.embed_captions([TEXT])
    assert encoded is not None
    expected = dict(zip(reference.images, (reference.embeddings @ encoded[0]).tolist(), strict=True))
    scores = [item.score for item in page.items]
    assert scores == pytest.approx(sorted(expected.values(), reverse=True)[: len(scores)], abs=1e-5)
    assert [item.score for item in page.items] == pytest.approx(
        [expected[item.image.image] for item in page.items], abs=1e-5
    )
    (view,) = text_api.get("/models").json()["items"]
    assert view["finds_images"]
    assert view["card"]["retrieval"]["dev"]["images"] > 0
    other = text_api.get("/search/images", params={"q": "MR of the knee", "limit": 100}).json()["items"]
    assert not np.allclose([item["score"] for item in other], [item.score for item in page.items], atol=1e-4)


def test_filters_apply_and_pages_follow_one_another(text_api: httpx.Client) -> None:
    whole = text_api.get("/search/images", params={"q": TEXT, "modality": "MR", "limit": 100}).json()
    assert whole["total"] == text_api.get("/images?modality=MR").json()["total"] > 4
    assert {item["image"]["modality"] for item in whole["items"]} == {"MR"}
    parts = [
        text_api.get("/search/images", params={"q": TEXT, "modality": "MR", "limit": 2, "offset": at}).json()["items"]
        for at in (0, 2)
    ]
    assert [*parts[0], *parts[1]] == whole["items"][:4]
    nothing = text_api.get("/search/images", params={"q": TEXT, "modality": "MR", "offset": whole["total"]}).json()
    assert (nothing["items"], nothing["total"]) == ([], whole["total"])


def test_a_text_can_be_posted_in_place_of_an_image(text_api: httpx.Client) -> None:
    by_query = text_api.get("/search/images", params={"q": TEXT, "modality": "CT", "limit": 5}).json()["items"]
    answer = text_api.post("/search/similar", params={"modality": "CT", "limit": 5}, json={"text": TEXT})
    assert answer.status_code == 200, answer.text
    body = SimilarImages.model_validate(answer.json())
    assert [item.image for item in body.items] == [item["image"]["image"] for item in by_query]
    assert [item.similarity for item in body.items] == [item["score"] for item in by_query]
    assert (body.text, body.image, body.in_dataset) == (TEXT, None, None)


def test_filters_apply_to_an_uploaded_image_too(predict_api: httpx.Client, generated_dataset: Path) -> None:
    data = min((generated_dataset / "images").glob("*.png")).read_bytes()
    files = {"image": ("x.png", data, "image/png")}
    items = predict_api.post("/search/similar?limit=50&modality=MR", files=files).json()["items"]
    assert items
    assert {item["modality"] for item in items} == {"MR"}


@pytest.mark.parametrize("q", ["", "   ", "\u00a0", "x" * 301])
def test_a_text_that_cannot_be_used_is_refused(text_api: httpx.Client, q: str) -> None:
    is_problem(text_api.get("/search/images", params={"q": q}), 422)
    is_problem(text_api.post("/search/similar", json={"text": q}), 422)


def test_a_body_that_is_no_text_is_refused(text_api: httpx.Client) -> None:
    kind = {"Content-Type": "application/json"}
    for body in (b"{", b"[]", b'{"text": 3}', b'{"q": "x"}', b'{"text": "x", "limit": 3}', b"\xff", b""):
        problem = text_api.post("/search/similar", content=body, headers=kind)
        is_problem(problem, 422)
        assert "text" in problem.json()["detail"]
    is_problem(text_api.post("/search/similar", content=b'{"text": "' + b"x" * 20_000 + b'"}', headers=kind), 413)
    is_problem(text_api.get("/search/images"), 422)
    for query in ("limit=0", "limit=101", "offset=-1", "mood=good", "sort=age"):
        is_problem(text_api.get(f"/search/images?q=x&{query}"), 422)


def test_without_a_model_the_answer_says_which_and_how(api: httpx.Client) -> None:
    wait_for(api, "/health/ready", lambda answer: "loading" not in answer.text)
    for answer in (api.get("/search/images?q=x"), api.post("/search/similar", json={"text": "x"})):
        is_problem(answer, 503)
        assert "medpix train clip-location" in answer.json()["detail"]
        assert int(answer.headers["Retry-After"]) > 0


def test_while_the_model_is_trained_the_answer_says_so(
    generated_dataset: Path, database: Database[Document], mongo_server: str, tmp_path: Path
) -> None:
    seed(database, generated_dataset)
    run = Progress("clip-location", ("location",), "running", 0.4, updated_at=now())
    database[TRAINING_RUNS].replace_one({"_id": "clip-location"}, run.to_document(), upsert=True)
    settings = load_settings(
        home=tmp_path, mongo_uri=database_address(mongo_server, database.name), data_dir=generated_dataset
    )
    with running_service(settings) as client:
        answer = wait_for(client, "/search/images?q=x", lambda answer: "being loaded" not in answer.text)
    is_problem(answer, 503)
    assert answer.json()["training"]["state"] == "running"
    assert "40" in answer.json()["detail"]


def test_a_model_whose_files_are_gone_is_named(
    text_api: httpx.Client,
    mongo_client: MongoClient[Document],
    generated_dataset: Path,
    database: Database[Document],
    mongo_server: str,
    tmp_path: Path,
) -> None:
    assert is_ok(text_api.get("/search/images?q=x"))
    seed(database, generated_dataset)
    database[MODELS].insert_many(mongo_client["generated_text_search"][MODELS].find())
    settings = load_settings(
        home=tmp_path, mongo_uri=database_address(mongo_server, database.name), data_dir=generated_dataset
    )
    with running_service(settings) as client:
        answer = wait_for(client, "/search/images?q=x", lambda answer: "being loaded" not in answer.text)
    is_problem(answer, 503)
    assert "towers.safetensors is missing" in answer.json()["detail"]
