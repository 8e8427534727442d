import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
from pymongo.database import Database

from app.core.settings import Settings
from app.data.schema import CASES
from app.data.seed import seed
from tests.service import wait_for

Document = dict[str, Any]
Serve = Callable[[Settings], AbstractContextManager[httpx.Client]]


def test_a_kept_answer_is_the_same_answer(api: httpx.Client) -> None:
    for path in ("/cases/MPX1008", "/images?modality=CT&limit=7", "/facets?split=dev", "/search?q=ureter"):
        first, second = api.get(path), api.get(path)
        assert second.content == first.content
        for name in ("etag", "content-type", "x-dataset-version", "cache-control", "content-security-policy"):
            assert second.headers[name] == first.headers[name]
        assert second.headers["x-request-id"] != first.headers["x-request-id"]
        not_modified = api.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (not_modified.status_code, not_modified.content) == (304, b"")
        head = api.head(path)
        assert (head.content, head.headers["content-length"]) == (b"", first.headers["content-length"])


def test_errors_are_not_kept(api: httpx.Client) -> None:
    answers = [api.get("/cases/MPX9999") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert len({answer.json()["request_id"] for answer in answers}) == 2


def test_after_a_seeding_the_new_data_are_answered(
    settings: Settings, serve: Serve, database: Database[Document], dataset_copy: Path
) -> None:
    seed(database, dataset_copy)
    with serve(settings) as client:
        before = client.get("/cases/MPX1008").json()
        file = dataset_copy / "splitted_dataset" / "data_train.jsonl"
        lines = file.read_text().splitlines()
        changed = [json.loads(line) for line in lines]
        for record in changed:
            if record["U_id"] == "MPX1008":
                record["Case"]["Title"] = "Another title"
        file.write_text("".join(json.dumps(record) + "\n" for record in changed))
        seed(database, dataset_copy)
        assert database[CASES].find_one({"_id": "MPX1008", "norm.title": "Another title"})
        answer = wait_for(client, "/cases/MPX1008", lambda found: found.json()["title"] == "Another title")
        assert answer.json()["title"] == "Another title" != before["title"]


def test_kept_answers_are_counted_by_their_route(api: httpx.Client) -> None:
    def counted() -> float:
        lines = [line for line in api.get("/metrics").text.splitlines() if 'route="/cases/{u_id}"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines if "requests_total" in line)

    before = counted()
    for _ in range(3):
        api.get("/cases/MPX1009")
    assert counted() == before + 3
