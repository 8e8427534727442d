from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database

from app.api.errors import Problem
from app.api.schemas.records import CasePage, CaseSummary, CaseView
from app.core.settings import Settings
from app.data.schema import CASES
from app.data.seed import seed

Document = dict[str, Any]
Serve = Callable[[Settings], AbstractContextManager[httpx.Client]]


def test_a_case_comes_with_topic_and_images(api: httpx.Client) -> None:
    answer = api.get("/cases/MPX1008")
    assert answer.status_code == 200
    case = CaseView.model_validate_json(answer.content)
    assert case.topic.title == "Chest, Pulmonary lesion"
    assert case.image_count == len(case.images) == 4
    assert [image.image for image in case.images] == sorted(image.image for image in case.images)
    assert {image.modality for image in case.images} == set(case.modalities)
    assert api.get(case.images[0].links.thumbnail).status_code == 200


def test_any_letter_case_of_the_id_is_taken(api: httpx.Client) -> None:
    assert api.get("/cases/mpx1008").json() == api.get("/cases/MPX1008").json()


def test_what_was_not_recorded_is_null_and_raw_keeps_it(api: httpx.Client) -> None:
    case = api.get("/cases/MPX1001").json()
    assert case["title"] == "Broca's area\nlesion"
    assert case["exam"] is None
    assert (case["age"], case["sex"]) == (None, None)
    assert {"exam_placeholder", "html_entities", "line_ends"} <= set(case["quality_flags"])
    raw = api.get("/cases/MPX1001", params={"raw": "true"}).json()
    assert raw["Case"]["Title"] == "Broca&#39;s area\r\nlesion"
    assert raw["Case"]["Exam"] == "N/A"


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        ("/cases/MPX9999", 404, "not-found"),
        ("/cases/1007", 422, "unprocessable-content"),
        ("/cases/MPX1007%00", 422, "unprocessable-content"),
        ("/cases/..%2f..%2fetc%2fpasswd", 404, "not-found"),
        ("/cases?limit=101", 422, "unprocessable-content"),
        ("/cases?limit=many", 422, "unprocessable-content"),
        ("/cases?sex=unknown", 422, "unprocessable-content"),
        ("/cases?colour=red", 422, "unprocessable-content"),
        ("/cases?sort=colour", 422, "unprocessable-content"),
        ("/cases?cursor=abc", 422, "unprocessable-content"),
        ("/nothing", 404, "not-found"),
    ],
)
def test_errors_are_problem_documents(api: httpx.Client, path: str, status: int, slug: str) -> None:
    answer = api.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.type == f"urn:medpix:problem:{slug}"
    assert problem.status == status
    assert problem.request_id == answer.headers["x-request-id"]


def test_a_wrong_method_is_told_the_right_one(api: httpx.Client) -> None:
    for method, path, allowed in (
        ("POST", "/cases", "GET, HEAD"),
        ("PATCH", "/annotations/0f8fad5b", "GET, HEAD, PUT, DELETE"),
        ("PUT", "/views", "GET, HEAD, POST"),
        ("PATCH", "/cases/bulk", "GET, HEAD, POST"),
    ):
        answer = api.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allowed
        assert allowed in answer.json()["detail"]


def test_a_post_is_not_conditional(api: httpx.Client) -> None:
    answer = api.post("/cases/bulk", json={"ids": ["MPX1008"]}, headers={"If-None-Match": "*"})
    assert answer.status_code == 200
    assert answer.json()["items"]


def test_head_has_the_headers_of_get_and_no_body(api: httpx.Client) -> None:
    head, get = api.head("/cases/MPX1008"), api.get("/cases/MPX1008")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize("sort", ["", "-age", "sex,-image_count", "location_category", "-topic.category,age,-u_id"])
@pytest.mark.parametrize("limit", [1, 7, 40])
def test_all_pages_together_hold_each_case_once(api: httpx.Client, sort: str, limit: int) -> None:
    seen: list[str] = []
    address = f"/cases?limit={limit}&sort={sort}"
    while address:
        answer = api.get(address)
        page = CasePage.model_validate_json(answer.content)
        assert page.total == 40
        seen += [CaseSummary.model_validate(case.model_dump()).u_id for case in page.items]
        address = answer.links.get("next", {}).get("url", "")
        assert bool(address) == (page.next_cursor is not None)
    assert len(seen) == 40
    assert len(set(seen)) == 40


def test_pages_are_in_the_asked_order(api: httpx.Client) -> None:
    ages = [case["age"] for case in api.get("/cases", params={"sort": "-age", "limit": 100}).json()["items"]]
    recorded = [age for age in ages if age is not None]
    assert recorded == sorted(recorded, reverse=True)
    assert ages == recorded + [None] * 3


def test_a_cursor_of_another_filter_is_refused(api: httpx.Client) -> None:
    cursor = api.get("/cases", params={"limit": 2, "split": "train"}).json()["next_cursor"]
    assert api.get("/cases", params={"limit": 2, "split": "train", "cursor": cursor}).status_code == 200
    assert api.get("/cases", params={"limit": 2, "split": "dev", "cursor": cursor}).status_code == 422


def test_a_case_is_found_by_the_sequences_of_its_images(api: httpx.Client) -> None:
    cases = {each["u_id"]: each for each in api.get("/cases?limit=100").json()["items"]}
    images = api.get("/images?limit=100").json()["items"]
    for u_id, case in cases.items():
        assert case["modality_details"] == sorted({i["modality_detail"] for i in images if i["u_id"] == u_id})
    [detail, *_] = [detail for case in cases.values() for detail in case["modality_details"]]
    body = api.get("/cases", params={"modality_details": detail, "limit": 100}).json()["items"]
    assert {each["u_id"] for each in body} == {u for u, case in cases.items() if detail in case["modality_details"]}


def test_filters_by_what_the_images_are(api: httpx.Client) -> None:
    both = api.get("/cases?modalities=CT&modality__in=MR&limit=100").json()
    assert both["total"] == len(both["items"]) > 0
    assert all(case["modalities"] == ["CT", "MR"] for case in both["items"])


@pytest.mark.medpix
def test_the_first_case_of_the_real_data(medpix_api: httpx.Client) -> None:
    case = CaseView.model_validate_json(medpix_api.get("/cases/mpx1007").content)
    assert case.title == "Posterior Cerebral Artery Infarction"
    assert case.images[0].image == "MPX1007_synpic46719"


@pytest.mark.medpix
@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("", 671),
        ("split=train", 535),
        ("split=dev", 67),
        ("split=test", 69),
        ("modality=CT&modalities__in=MR", 77),
        ("image_count=31", 1),
        ("image_count__gte=20", 3),
        ("topic.external_links__isnull=false", 101),
    ],
)
def test_real_cases_counted(medpix_api: httpx.Client, query: str, total: int) -> None:
    assert medpix_api.get(f"/cases?{query}").json()["total"] == total


def test_walking_while_cases_are_added_yields_each_old_case_once(
    settings: Settings, serve: Serve, database: Database[Document], generated_dataset: Path
) -> None:
    seed(database, generated_dataset)
    with serve(settings) as client:
        seen: list[str] = []
        address, added = "/cases?limit=3&sort=-age", 0
        while address:
            answer = client.get(address)
            seen += [case["u_id"] for case in answer.json()["items"]]
            address = answer.links.get("next", {}).get("url", "")
            twin = database[CASES].find_one({"_id": seen[-1]})
            assert twin is not None
            added += 1
            database[CASES].insert_one(twin | {"_id": f"MPX9{added:03d}", "U_id": f"MPX9{added:03d}"})
    old = [u_id for u_id in seen if not u_id.startswith("MPX9")]
    assert len(old) == len(set(old)) == 40
    assert len(seen) == len(set(seen))
