import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient, monitoring
from pymongo.database import Database

from app.core.settings import ConfigurationError, Settings, load_settings
from app.data.annotations import Annotations
from app.data.record import Annotation
from app.data.schema import ANNOTATIONS
from app.data.seed import seed
from tests.conftest import database_address
from tests.service import running_service

Document = dict[str, Any]
Serve = Callable[[Settings], AbstractContextManager[httpx.Client]]

READER, STUDENT = "reader-key-of-the-test", "student-key-of-the-test"


@pytest.fixture
def service(
    settings: Settings,
    serve: Serve,
    database: Database[Document],
    generated_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[httpx.Client]:
    seed(database, generated_dataset)
    monkeypatch.setenv("MEDPIX_API_KEYS", f"reader:{READER}, student:{STUDENT}")
    keys = load_settings().api_keys
    with serve(settings.model_copy(update={"api_keys": keys, "data_dir": generated_dataset})) as client:
        yield client


def _image(client: httpx.Client) -> Document:
    item: Document = client.get("/images", params={"limit": 1}).json()["items"][0]
    return item


def _annotate(client: httpx.Client, image: str, body: object, key: str | None = READER) -> httpx.Response:
    headers = {"X-API-Key": key} if key else {}
    return client.post(f"/images/{image}/annotations", json=body, headers=headers)


def test_an_annotation_is_kept_with_its_provenance(service: httpx.Client) -> None:
    image = _image(service)
    before = service.get(f"/images/{image['image']}", params={"raw": "true"}).json()
    answer = _annotate(service, image["image"], {"location": "Spine", "comment": " Sacrum. "})
    assert answer.status_code == 201, answer.text
    kept = Annotation.model_validate_json(answer.content)
    assert (kept.image, kept.u_id, kept.location, kept.modality) == (image["image"], image["u_id"], "Spine", None)
    assert (kept.by, kept.comment, kept.image_sha256) == ("reader", "Sacrum.", image["sha256"])
    assert kept.dataset_version == service.get("/cases/MPX1008").headers["x-dataset-version"]
    read = service.get(answer.headers["location"]).json()
    assert read["history"] == [answer.json()]
    assert answer.headers["location"] == f"/annotations/{answer.json()['id']}"
    assert service.get(f"/images/{image['image']}", params={"raw": "true"}).json() == before


def test_annotations_are_listed_paged_and_exported(service: httpx.Client) -> None:
    image = _image(service)["image"]
    for number in range(5):
        _annotate(service, image, {"comment": f"=note {number}"}, key=READER if number % 2 else STUDENT)
    page = service.get("/annotations", params={"sort": "-created_at", "limit": 3}).json()
    times = [item["created_at"] for item in page["items"]]
    assert times == sorted(times, reverse=True)
    following = service.get(
        "/annotations", params={"sort": "-created_at", "limit": 3, "cursor": page["next_cursor"]}
    ).json()
    comments = {item["comment"] for item in page["items"] + following["items"]}
    assert comments == {f"=note {number}" for number in range(5)}
    assert service.get("/annotations", params={"by": "reader"}).json()["total"] == 2
    since = {"created_at__gte": times[0]}
    assert service.get("/annotations", params=since).json()["total"] >= 1
    lines = service.get("/export", params={"of": "annotations", "format": "jsonl"}).text.splitlines()
    assert len(lines) == 5
    assert "'=note" in service.get("/export", params={"of": "annotations", "format": "csv"}).text
    sampled = {"of": "annotations", "format": "jsonl", "sample": "3", "sample_by": "case"}
    assert len(service.get("/export", params=sampled).text.splitlines()) == 1  # all are of one case


def test_annotations_are_filtered_by_location_as_images_are(service: httpx.Client) -> None:
    _annotate(service, _image(service)["image"], {"location": "Chest, Pulmonary"})
    assert service.get("/annotations", params={"location": "chest, pulmonary"}).json()["total"] == 1
    assert service.get("/annotations", params={"location__in": "Abdomen,Chest, Pulmonary"}).json()["total"] == 1
    assert service.get("/annotations", params={"location": "Nowhere"}).status_code == 422


@pytest.mark.parametrize("key", [None, "wrong", READER + "x", READER[:-1], "ключ"])
def test_only_a_known_key_writes(service: httpx.Client, key: str | None) -> None:
    headers = {b"X-API-Key": key.encode()} if key else {}
    answer = service.post(f"/images/{_image(service)['image']}/annotations", json={"comment": "x"}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert service.get("/annotations").json()["total"] == 0


def test_an_annotation_is_amended_and_retracted_and_its_history_kept(service: httpx.Client) -> None:
    image = _image(service)["image"]
    first = _annotate(service, image, {"comment": "left kidney"}).json()
    reader = {"X-API-Key": READER}
    amended = service.put(f"/annotations/{first['id']}", json={"comment": "right kidney"}, headers=reader)
    assert amended.status_code == 201, amended.text
    assert (amended.json()["action"], amended.json()["amends"]) == ("amend", first["id"])
    assert [item["comment"] for item in service.get("/annotations").json()["items"]] == ["right kidney"]
    assert [item["comment"] for item in service.get(f"/images/{image}").json()["annotations"]] == ["right kidney"]
    again = service.put(f"/annotations/{first['id']}", json={"comment": "both"}, headers=reader)
    assert again.status_code == 409, again.text
    assert amended.json()["id"] in again.json()["detail"]
    other = service.delete(f"/annotations/{amended.json()['id']}", headers={"X-API-Key": STUDENT})
    assert other.status_code == 403
    retracted = service.delete(f"/annotations/{amended.json()['id']}", headers=reader)
    assert (retracted.status_code, retracted.json()["action"]) == (201, "retract")
    assert service.get("/annotations").json()["total"] == 0
    assert service.get(f"/images/{image}").json()["annotations"] == []
    assert service.get("/annotations", params={"replaced": "true"}).json()["total"] == 3
    exported = {"of": "annotations", "format": "jsonl"}
    assert service.get("/export", params=exported).text == ""
    assert len(service.get("/export", params={**exported, "replaced": "true"}).text.splitlines()) == 3
    assert service.get("/export/annotations.jsonl").text == ""
    assert len(service.get("/export/annotations.jsonl", params={"replaced": "true"}).text.splitlines()) == 3
    assert service.get("/export", params={"replaced": "true"}).status_code == 422
    # The patient history is a filter of cases.
    assert service.get("/export", params={"of": "cases", "history": "of nobody"}).status_code == 200
    history = service.get(f"/annotations/{first['id']}").json()["history"]
    assert [(each["action"], each["comment"]) for each in history] == [
        ("create", "left kidney"),
        ("amend", "right kidney"),
        ("retract", None),
    ]
    assert service.delete(f"/annotations/{retracted.json()['id']}", headers=reader).status_code == 409
    assert service.put(f"/annotations/{'0' * 32}", json={"comment": "x"}, headers=reader).status_code == 404


def test_a_request_sent_again_with_its_idempotency_key_is_stored_once(service: httpx.Client) -> None:
    address = f"/images/{_image(service)['image']}/annotations"
    headers = {"X-API-Key": READER, "Idempotency-Key": "one"}
    answers = [service.post(address, json={"comment": "x"}, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201] * 3
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]
    assert service.post(address, json={"comment": "y"}, headers=headers).status_code == 409
    other = service.post(address, json={"comment": "y"}, headers=headers | {"X-API-Key": STUDENT})
    assert other.status_code == 201
    assert service.get("/annotations").json()["total"] == 2
    # An amendment too, even after a later one.
    first = f"/annotations/{answers[0].json()['id']}"
    keyed = {"X-API-Key": READER, "Idempotency-Key": "two"}
    second = service.put(first, json={"comment": "z"}, headers=keyed).json()
    assert service.delete(f"/annotations/{second['id']}", headers={"X-API-Key": READER}).status_code == 201
    again = service.put(first, json={"comment": "z"}, headers=keyed)
    assert (again.status_code, again.json(), again.headers["idempotent-replayed"]) == (201, second, "true")
    assert service.put(first, json={"comment": "other"}, headers=keyed).status_code == 409


def test_times_are_read_as_iso_8601(service: httpx.Client) -> None:
    written = _annotate(service, _image(service)["image"], {"comment": "x"}).json()["created_at"]

    def total(**parameters: str) -> int:
        count: int = service.get("/annotations", params=parameters).json()["total"]
        return count

    assert total(created_at=written[:10]) == 1
    assert total(created_at=written) == 1
    assert total(created_at__lte=written[:10]) == 1
    assert total(created_at__gte="9999-01-01") == 0
    assert total(created_at__lte="9999-12-31") == 1
    assert total(created_at__lte=written.replace("Z", "999999Z")) == 1
    east = datetime.fromisoformat(written).astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert total(created_at=east.isoformat(timespec="milliseconds")) == 1
    for text in ("yesterday", "2026-13-01", "2026-02-30", "20260101", "2026-01-01T25:00", "2026-01-01T09:00:00+25:00"):
        assert service.get("/annotations", params={"created_at": text}).status_code == 422, text


def test_a_bearer_token_is_a_key_too(service: httpx.Client) -> None:
    address = f"/images/{_image(service)['image']}/annotations"
    answer = service.post(address, json={"comment": "x"}, headers={"Authorization": f"Bearer {STUDENT}"})
    assert answer.json()["by"] == "student"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"comment": ""},
        {"comment": "   "},
        {"modality": "PET"},
        {"location": "Elbow"},
        {"location_category": "Tail"},
        {"comment": "x" * 5001},
        {"comment": 3},
        {"by": "somebody", "comment": "x"},
        {"comment": "x", "$set": {"a": 1}},
        [],
        "text",
    ],
)
def test_a_body_that_cannot_be_used_is_refused(service: httpx.Client, body: object) -> None:
    answer = _annotate(service, _image(service)["image"], body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_unknown_image_is_not_annotated(service: httpx.Client) -> None:
    assert _annotate(service, "MPX9999_synpic99999", {"comment": "x"}).status_code == 404
    assert _annotate(service, "nothing", {"comment": "x"}).status_code == 422


class _Commands(monitoring.CommandListener):
    """The queries that a client sends about annotations."""

    def __init__(self) -> None:
        self.queries: list[Document] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in ("find", "distinct"):
            self.queries.append(event.command.get("filter", event.command.get("query", {})))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def test_the_annotations_of_an_image_are_read_without_those_of_others(
    mongo_server: str, database: Database[Document]
) -> None:
    commands = _Commands()

    async def read() -> list[Document]:
        uri = database_address(mongo_server, database.name)
        async with AsyncMongoClient[Document](uri, event_listeners=[commands]) as client:
            return await Annotations(client.get_default_database()).of_image("MPX1007_synpic46719")

    for number, amends in enumerate((None, "0", None)):
        image = "MPX1007_synpic46719" if number < 2 else "MPX1008_synpic46720"
        database[ANNOTATIONS].insert_one(
            {"_id": str(number), "image": image, "amends": amends, "action": "create", "created_at": str(number)}
        )
    assert [each["_id"] for each in asyncio.run(read())] == ["1"]
    assert len(commands.queries) == 2
    assert all("MPX1007_synpic46719" in str(query) for query in commands.queries)


def test_seeding_again_keeps_annotations(
    service: httpx.Client, database: Database[Document], generated_dataset: Path
) -> None:
    _annotate(service, _image(service)["image"], {"comment": "x"})
    seed(database, generated_dataset)
    assert service.get("/annotations").json()["total"] == 1


def test_without_keys_everybody_writes(
    settings: Settings, serve: Serve, database: Database[Document], generated_dataset: Path
) -> None:
    seed(database, generated_dataset)
    with serve(settings) as client:
        assert _annotate(client, _image(client)["image"], {"comment": "x"}, key=None).json()["by"] == "anonymous"


def test_who_posts_too_often_waits(settings: Settings, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPIX_API_KEYS", f"reader:{READER}")
    update = {"api_keys": load_settings().api_keys, "rate_limit_per_minute": 3}
    with serve(settings.model_copy(update=update)) as client:
        image = "MPX1001_synpic20001"
        statuses = [_annotate(client, image, {"comment": "x"}, key=None).status_code for _ in range(4)]
        assert statuses == [401, 401, 401, 429]
        answer = _annotate(client, image, {"comment": "x"}, key=None)
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert answer.headers["content-type"] == "application/problem+json"
        assert _annotate(client, image, {"comment": "x"}).status_code == 404, "a key has a limit of its own"
        assert client.get("/health/live").status_code == 200, "reading is not limited"


@pytest.mark.parametrize(
    "text", ["reader", "reader:short", "a:0123456789abcdef,a:fedcba9876543210", "a b:0123456789abcdef"]
)
def test_unusable_keys_are_named_but_never_shown(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MEDPIX_API_KEYS", text)
    with pytest.raises(ConfigurationError, match=r"MEDPIX_API_KEYS=\*\*\*: .*entry \d") as caught:
        load_settings()
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "allowed", "status"),
    [
        ("127.0.0.1", False, 201),
        ("::1", False, 201),
        ("0.0.0.0", False, 403),
        ("::", False, 403),
        ("0.0.0.0", True, 201),
    ],
)
def test_without_keys_only_a_local_service_is_written_to(
    settings: Settings, database: Database[Document], generated_dataset: Path, host: str, allowed: bool, status: int
) -> None:
    seed(database, generated_dataset)
    own = settings.model_copy(update={"host": host, "anonymous_writes": allowed, "data_dir": generated_dataset})
    with running_service(own) as client:
        answer = client.post(f"/images/{_image(client)['image']}/annotations", json={"comment": "x"})
        assert answer.status_code == status, answer.text
        if status == 403:
            assert "MEDPIX_API_KEYS" in answer.json()["detail"]
