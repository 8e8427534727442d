"""What holds for every page: a screen reader can use it, it is light, it asks nobody else, it does not jump."""

import os
import re
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Response

pytestmark = pytest.mark.browser

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
PAGES = ("/", "/?q=lesion", "/pages/case/{u_id}", "/pages/predict", "/pages/models", "/pages/about")
MAX_BYTES = 60_000


@pytest.fixture(scope="session")
def u_id(predict_api: httpx.Client) -> str:
    """A case of the dataset."""
    found: str = predict_api.get("/cases?limit=1").json()["items"][0]["u_id"]
    return found


def _settle(page: Page, path: str) -> None:
    page.goto(path)
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1600, "dark")])
def test_no_serious_barrier(browser: Browser, site: str, u_id: str, path: str, width: int, scheme: Any) -> None:
    """Judged by axe-core, against WCAG 2.2 at levels A and AA and its own best practice."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, base_url=site)
    page = context.new_page()
    _settle(page, path.format(u_id=u_id))
    if folder := os.environ.get("MEDPIX_SCREENSHOTS"):
        name = re.sub(r"\W+", "-", f"all{path.format(u_id='case')}-{width}-{scheme}")
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")
    serious = [
        f"{fault['id']}: {fault['help']}: {[node['target'] for node in fault['nodes']][:3]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert not serious
    assert wide <= 0, "the page can be scrolled sideways"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_light_and_asks_nobody_else(page: Page, site: str, u_id: str, path: str) -> None:
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))  # noqa: PLW0108 - Playwright marks what it is given
    _settle(page, path.format(u_id=u_id))
    own = {answer.url: len(answer.body()) for answer in answers if "/static/" in answer.url}
    assert sum(own.values()) < MAX_BYTES, own
    hosts = {urlsplit(answer.url).netloc for answer in answers if not answer.url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(site).netloc}


@pytest.mark.parametrize("path", PAGES)
def test_the_layout_does_not_jump(page: Page, u_id: str, path: str) -> None:
    """The sum of Chromium's layout-shift entries; up to 0.1 counts as good."""
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => { for (const entry of list.getEntries()) "
        "if (!entry.hadRecentInput) window.shift += entry.value; }).observe({type: 'layout-shift', buffered: true});"
    )
    _settle(page, path.format(u_id=u_id))
    assert page.evaluate("window.shift") < 0.1


@pytest.mark.parametrize("path", PAGES)
def test_security_headers(predict_api: httpx.Client, u_id: str, path: str) -> None:
    headers = predict_api.get(path.format(u_id=u_id)).headers
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
