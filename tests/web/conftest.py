"""Fixtures of the tests of the pages: a real Chromium and pages that may not complain."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from pymongo.database import Database

from ml.evaluate import Results, evaluate
from tests.conftest import Document

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
