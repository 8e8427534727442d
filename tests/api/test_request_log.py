"""One line of JSON per request, with its id, and nothing that a caller sent."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymongo.database import Database

from app.core.logs import configure_logging
from app.core.settings import Settings
from app.data.seed import seed
from tests.conftest import Document
from tests.service import running_service


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The handlers of pytest stand again after the test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_a_request_is_logged_without_what_was_sent(
    settings: Settings, database: Database[Document], generated_dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seed(database, generated_dataset)
    own = settings.model_copy(update={"log_format": "json", "data_dir": generated_dataset})
    configure_logging(own)
    with running_service(own) as client:
        client.get("/cases/MPX1001", headers={"X-Request-ID": "an-id-of-mine"})
        client.get("/search", params={"q": "secret words"})
        client.post(
            "/predict/location",
            files={"image": ("patient-name.png", b"no image", "image/png")},
            data={"caption": "secret caption"},
        )
        client.post("/images/MPX1001_synpic1/annotations", json={"comment": "secret comment"})
    # The client of this test logs the addresses that it asks for.
    log = "\n".join(line for line in capfd.readouterr().err.splitlines() if '"logger": "httpx"' not in line)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["logger"] == "medpix.requests"]
    assert [(line["method"], line["route"]) for line in requests] == [
        ("GET", "/cases/{u_id}"),
        ("GET", "/search"),
        ("POST", "/predict/location"),
        ("POST", "/images/{image}/annotations"),
    ]
    first = requests[0]
    assert (first["status"], first["request_id"], first["level"]) == (200, "an-id-of-mine", "info")
    assert 0 < first["seconds"] < 30
    assert len({line["request_id"] for line in requests}) == 4
    for secret in ("secret", "patient-name", "MPX1001"):
        assert secret not in log


def test_text_lines_carry_the_request_id(
    settings: Settings,
    database: Database[Document],
    generated_dataset: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    seed(database, generated_dataset)
    own = settings.model_copy(update={"data_dir": tmp_path / "nowhere"})
    configure_logging(own)
    with running_service(own) as client:
        image = client.get("/images?limit=1").json()["items"][0]
        answer = client.get(image["links"]["file"])
        assert answer.status_code == 503
    log = capfd.readouterr().err
    assert "medpix.requests" not in log
    with_id = [line for line in log.splitlines() if line.endswith(f"[{answer.json()['request_id']}]")]
    assert with_id
    assert all(line.startswith("ERROR ") for line in with_id)
