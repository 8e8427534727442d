import httpx
import pytest

from app.api.routes.similar import SimilarImages
from app.serving.prediction_context import PredictionContext
from app.serving.predictor import Predictor
from ml.dataset.records import Record
from tests.api.predict_client import ask, is_problem, stages
from tests.serving.hostile_files import accepted, refused


@pytest.mark.parametrize("task", ["modality", "location"])
def test_similar_images_come_from_other_cases(predict_api: httpx.Client, records: list[Record], task: str) -> None:
    record = records[0]
    by_name = predict_api.get(f"/images/{record.image}/similar?limit=7&task={task}")
    assert by_name.status_code == 200, by_name.text
    assert stages(by_name) == ["wait", "decode", "queue", "run", "postprocess"]
    body = SimilarImages.model_validate(by_name.json())
    assert len(body.items) == 7
    assert all(item.u_id != record.u_id for item in body.items)
    assert [item.similarity for item in body.items] == sorted((i.similarity for i in body.items), reverse=True)
    assert body.in_dataset is not None
    assert body.in_dataset.image == record.image
    assert body.model.name == predict_api.get("/models").json()["tasks"][task]["model"]
    for item in body.items:
        case = predict_api.get(f"/cases/{item.u_id}").json()
        image = predict_api.get(f"/images/{item.image}").json()
        assert (item.title, item.diagnosis) == (case["title"], case["diagnosis"])
        assert (item.caption, item.split, item.modality) == (image["caption"], image["split"], image["modality"])
        assert predict_api.get(item.links.thumbnail).status_code == 200
    prefixed = predict_api.get(f"/images/{record.image}/similar", headers={"X-Forwarded-Prefix": "/medpix"}).json()
    assert prefixed["items"][0]["links"]["self"].startswith("/medpix/images/")
    by_upload = ask(predict_api, f"/search/similar?limit=7&task={task}", record.path.read_bytes())
    assert by_upload.json()["items"] == by_name.json()["items"]


def test_an_unchanged_image_in_another_file_finds_itself(predict_api: httpx.Client, records: list[Record]) -> None:
    for record in records[:5]:
        first = ask(predict_api, "/search/similar", record.path.read_bytes() + b"!").json()["items"][0]
        assert first["similarity"] == pytest.approx(1, abs=1e-3)


def test_a_model_that_knows_no_image_of_the_dataset_is_unavailable(
    predict_api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = Predictor.nearest

    async def find_none(predictor: Predictor, context: PredictionContext, count: int) -> None:
        await nearest(predictor, context, count)
        context.neighbours = []

    monkeypatch.setattr(Predictor, "nearest", find_none)
    answer = ask(predict_api, "/search/similar", accepted()["grey"])
    is_problem(answer, 503)
    assert answer.headers["retry-after"] == "60"
    assert "Train it again" in answer.json()["detail"]


def test_a_search_that_cannot_be_used_is_refused(predict_api: httpx.Client) -> None:
    grey = accepted()["grey"]
    assert ask(predict_api, "/search/similar?limit=50", grey).status_code == 200
    for query in ("limit=0", "limit=51", "task=plane"):
        is_problem(ask(predict_api, f"/search/similar?{query}", grey), 422)
    data, status, _ = refused()["text"]
    is_problem(ask(predict_api, "/search/similar", data), status)
    is_problem(predict_api.get("/images/MPX9999_synpic11/similar"), 404)
