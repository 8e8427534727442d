"""Fixtures of the tests of the pages: a real Chromium and pages that may not complain."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from pymongo.database import Database

from app.config import Settings
from app.data.seed import seed
from ml.evaluate import Results, evaluate

Document = dict[str, Any]

MARKUP = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'

# What Chromium says of every answer that is no success; the tests look at what the page makes of it.
_REFUSED = "Failed to load resource"


# Not for the session: while it runs, this thread has an event loop, and other tests start their own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A real Chromium without a window."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on PATH; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program)
        yield chromium
        chromium.close()


@pytest.fixture
def complaints() -> list[str]:
    """What a page wrote to the console as an error; a test empties it of what it provoked."""
    return []


@pytest.fixture
def page(browser: Browser, site: str, complaints: list[str]) -> Iterator[Page]:
    """A page of a fresh context; fails the test on an error in the console, a violated CSP among them."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=site)
    context.grant_permissions(["clipboard-read", "clipboard-write"])

    def heard(message: ConsoleMessage) -> None:
        is_own_file = "/static/" in message.location.get("url", "")
        if message.type == "error" and (is_own_file or not message.text.startswith(_REFUSED)):
            complaints.append(f"{message.text} ({message.location.get('url')})")

    context.on("console", heard)
    context.on("weberror", lambda failure: complaints.append(str(failure.error)))
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    context.close()
    assert not complaints


@pytest.fixture
def shoot(page: Page) -> Callable[[str], None]:
    """Saves what the page shows as NAME.png in the folder $MEDPIX_SCREENSHOTS, if that is set."""
    folder = os.environ.get("MEDPIX_SCREENSHOTS")

    def save(name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return save


@pytest.fixture(scope="session")
def site(predict_api: httpx.Client) -> str:
    """The address of the running service with models."""
    return str(predict_api.base_url).rstrip("/")


@pytest.fixture(scope="session")
def web_results(ml_database: Database[Document], generated_dataset: Path, models_dir: Path) -> Results:
    """An evaluation of the models that the service answers with."""
    names = ("compact", "caption-location", "fused-location")
    return evaluate(ml_database, generated_dataset / "images", models_dir, names, device="cpu", register=False)


@pytest.fixture
def hostile_site(
    dataset_copy: Path,
    settings: Settings,
    database: Database[Document],
    serve: Callable[[Settings], AbstractContextManager[httpx.Client]],
) -> Iterator[str]:
    """The address of a service whose data try to become markup."""
    for file in dataset_copy.glob("splitted_dataset/*.jsonl"):
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for record in records:
            if "Case" in record:
                record["Case"] |= {"Title": f"{MARKUP} lesion", "History": MARKUP}
                record["Topic"] |= {"External Links": "javascript:window.hit=1", "Category": MARKUP}
            else:
                record["Description"]["Caption"] = f"{MARKUP} of a lesion"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    seed(database, dataset_copy)
    with serve(settings.model_copy(update={"data_dir": dataset_copy})) as client:
        yield str(client.base_url).rstrip("/")
