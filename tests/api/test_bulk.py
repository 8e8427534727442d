"""Bulk reads by ids."""

import httpx
import pytest

from tests.api.predict_client import is_problem


def test_many_cases_are_read_in_the_order_of_the_request(api: httpx.Client) -> None:
    existing = [case["u_id"] for case in api.get("/cases?limit=5").json()["items"]]
    ids = [existing[3], "mpx9999", existing[0].lower(), existing[3], "MPX9998"]
    answer = api.post("/cases/bulk", json={"ids": ids})
    assert answer.status_code == 200, answer.text
    wanted = [existing[3], existing[0], existing[3]]
    assert answer.json()["items"] == [api.get(f"/cases/{key}").json() for key in wanted]
    assert answer.json()["unknown"] == ["MPX9999", "MPX9998"]
    assert answer.headers["etag"]
    assert answer.headers["x-dataset-version"]


def test_many_images_are_read_and_fields_chosen(api: httpx.Client) -> None:
    items = api.get("/images?limit=100").json()["items"]
    ids = [item["image"] for item in reversed(items)]
    assert api.post("/images/bulk", json={"ids": ids}).json() == {"items": items[::-1], "unknown": []}
    chosen = api.post("/images/bulk?fields=modality", json={"ids": [ids[0].upper()]}).json()
    assert chosen["items"] == [{"image": ids[0], "modality": items[-1]["modality"]}]


@pytest.mark.parametrize("path", ["/cases/bulk", "/images/bulk"])
@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"ids": []}, "ids"),
        ({"ids": ["MPX1007"] * 501}, "ids"),
        ({"ids": ["x", "y"]}, "ids.0"),
        ({}, "ids"),
        ({"ids": [1]}, "ids.0"),
        ({"ids": ["MPX1007"], "fields": ["title"]}, "fields"),
    ],
)
def test_a_bulk_read_that_cannot_be_answered_says_why(api: httpx.Client, path: str, body: object, named: str) -> None:
    answer = api.post(path, json=body)
    is_problem(answer, 422)
    assert answer.json()["errors"][0]["parameter"] == named


def test_links_of_bulk_reads_lead_through_a_proxy(api: httpx.Client) -> None:
    key = api.get("/cases?limit=1").json()["items"][0]["u_id"]
    [case] = api.post("/cases/bulk", json={"ids": [key]}, headers={"X-Forwarded-Prefix": "/medpix"}).json()["items"]
    assert case["links"]["self"] == f"/medpix/cases/{key}"
    assert case["images"][0]["links"]["file"].startswith("/medpix/images/")
