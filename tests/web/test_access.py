"""What holds for every page: a screen reader can use it, it is light, it asks nobody else, it does not jump."""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Page, Response, expect

from tests.serving.hostile_files import accepted
from tests.web.layout import SCREENS, fits, jumps, shoot, watch_layout

pytestmark = pytest.mark.browser

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
PAGES = (
    "/",
    "/?view=images",
    "/?q=lesion",
    "/pages/case/{u_id}",
    "/pages/case/{u_id}?quiz=1",
    "/pages/predict",
    "/pages/models",
    "/pages/about",
    "/docs",
)
# Of its own CSS and JavaScript, before compression; quiz mode on the page of a case has the most.
MAX_BYTES = 80_000


@pytest.fixture(scope="session")
def u_id(predict_api: httpx.Client) -> str:
    """A case of the dataset."""
    first: str = predict_api.get("/cases?limit=1").json()["items"][0]["u_id"]
    return first


def _settle(page: Page, path: str) -> None:
    page.goto(path)
    page.wait_for_load_state("networkidle")


def _filters(page: Page) -> None:
    _settle(page, "/?modality=CT&age__gte=20")
    if page.locator("#filters-toggle").is_visible():
        page.locator("#filters-toggle").click()
    expect(page.get_by_role("radio", name="Any")).to_be_visible()


def _failing(page: Page) -> None:
    page.route(re.compile(r"/(images|facets)\?"), lambda route: route.fulfill(status=500, body="no JSON"))
    _settle(page, "/?modality=CT")
    expect(page.get_by_role("alert")).to_contain_text("status 500")


def _predicted_case(page: Page) -> None:
    _settle(page, "/pages/case/MPX1001")
    page.get_by_role("button", name="Predict this image").click()
    expect(page.locator(".prediction")).to_have_count(2, timeout=20_000)
    page.locator("#similar").scroll_into_view_if_needed()
    expect(page.locator("#similar .tile").first).to_be_visible(timeout=20_000)
    for badge in page.locator(".flag summary").all():
        badge.click()


def _menus(page: Page) -> None:
    _settle(page, "/?modality=CT")
    page.get_by_text("Saved", exact=True).click()
    page.get_by_role("button", name="Save this view").click()
    page.keyboard.press("Escape")
    page.get_by_text("Export", exact=True).click()
    expect(page.get_by_role("link", name="Download")).to_have_attribute("href", re.compile("^/export"))


def _compared(page: Page) -> None:
    _settle(page, "/pages/case/MPX1004")
    for name in ("Contrast", "Compare"):
        page.locator(".more-tools").get_by_role("button", name=name).click()
    expect(page.locator("#stage-2")).to_have_attribute("aria-busy", "false")
    page.get_by_text("Annotations of this image").click()
    page.get_by_text("Correct a label or add a comment").click()
    expect(page.get_by_label("Comment")).to_be_visible()


def _quiz(page: Page) -> None:
    _settle(page, "/pages/case/MPX1004?quiz=1")
    page.get_by_role("radio", name="CT").check()
    page.get_by_label("Location").select_option("Spine")
    page.get_by_role("button", name="Check my answer").click()
    expect(page.locator(".quiz table")).to_be_visible(timeout=20_000)


def _keys(page: Page) -> None:
    _settle(page, "/")
    page.get_by_role("button", name="Keys").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def _many(page: Page) -> None:
    _settle(page, "/pages/predict")
    files: list[FilePayload] = [
        {"name": f"{name}.png", "mimeType": "image/png", "buffer": data} for name, data in accepted().items()
    ]
    page.get_by_label("Choose images").set_input_files(files)
    expect(page.locator("#status")).to_have_text(f"{len(files)} images analysed.", timeout=20_000)


def _explained(page: Page) -> None:
    _settle(page, "/pages/predict")
    page.locator("#examples a").first.click()
    expect(page.locator("#status")).to_have_text("1 image analysed.", timeout=20_000)
    for task in ("modality", "location"):
        view = page.locator(f".prediction[data-task={task}]")
        view.get_by_role("button", name="Explain").click()
        expect(view.locator(".heat")).to_be_visible(timeout=20_000)
        for summary in view.locator("summary").all():
            summary.click()


def _refused(page: Page) -> None:
    _settle(page, "/pages/predict")
    page.get_by_label("Choose images").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"text"})
    expect(page.locator("#status")).to_have_text("1 image failed.")


def _models(page: Page) -> None:
    _settle(page, "/pages/models?model=fused-location&task=location")
    expect(page.locator("#detail .card")).to_be_visible()
    for summary in page.locator("#detail summary").all():
        summary.click()


STATES: Final[dict[str, Callable[[Page], None]]] = {
    "browse": lambda page: _settle(page, "/"),
    "search": lambda page: _settle(page, "/?q=lesion"),
    "images": lambda page: _settle(page, "/?view=images"),
    "search-sorted": lambda page: _settle(page, "/?q=lesion&sort=-age"),
    "filters": _filters,
    "empty": lambda page: _settle(page, '/?q="nothing+like+this"&modality=CT'),
    "failing": _failing,
    "case": _predicted_case,
    "menus": _menus,
    "compared": _compared,
    "quiz": _quiz,
    "quiz-browse": lambda page: _settle(page, "/?quiz=1"),
    "keys": _keys,
    "many": _many,
    "predict": lambda page: _settle(page, "/pages/predict"),
    "explained": _explained,
    "refused": _refused,
    "models": _models,
    "about": lambda page: _settle(page, "/pages/about"),
    "missing": lambda page: _settle(page, "/pages/nothing"),
}


def _check_page(browser: Browser, site: str, state: str, width: int, scheme: Any, name: str) -> None:
    """A screenshot of a page, checked by axe-core: WCAG 2.2 at levels A and AA, and its own best practice."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, base_url=site)
    page = context.new_page()
    STATES[state](page)
    shoot(page, f"{name}-{width}-{scheme}")
    page.evaluate(AXE)
    report = page.evaluate("axe.run()")
    faults = [
        f"{fault['id']}: {fault['help']}: {[node['target'] for node in fault['nodes']][:3]}"
        for fault in report["violations"]
        if fault["impact"] in ("moderate", "serious", "critical")
    ]
    is_fitting = fits(page)
    context.close()
    assert not faults
    assert is_fitting, "the page can be scrolled sideways"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_no_barrier(browser: Browser, site: str, state: str, width: int, scheme: str) -> None:
    _check_page(browser, site, state, width, scheme, state)


@pytest.mark.parametrize("state", ["models", "about"])
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_no_barrier_with_an_evaluation(
    browser: Browser, site: str, evaluated: Path, state: str, width: int, scheme: str
) -> None:
    assert evaluated.is_dir()
    _check_page(browser, site, state, width, scheme, f"{state}-evaluated")


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
@pytest.mark.parametrize("width", [360, 1280])
def test_the_layout_does_not_jump(page: Page, u_id: str, path: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    watch_layout(page)
    _settle(page, path.format(u_id=u_id))
    assert jumps(page) < 0.1


def test_bars_are_seen_in_the_colours_of_the_system(page: Page) -> None:
    page.emulate_media(forced_colors="active")
    _predicted_case(page)
    bar = page.locator(".prediction .bar").first
    colours = [part.evaluate("part => getComputedStyle(part).backgroundColor") for part in (bar, bar.locator(".fill"))]
    assert colours[0] != colours[1]


@pytest.mark.parametrize("path", PAGES)
def test_security_headers(predict_api: httpx.Client, u_id: str, path: str) -> None:
    headers = predict_api.get(path.format(u_id=u_id)).headers
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_api_reference_can_be_read(page: Page, scheme: str, shoot: Callable[[str], None]) -> None:
    page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
    page.goto("/docs")
    operations = page.locator(".opblock-summary-control")
    expect(operations.first).to_be_visible(timeout=30_000)  # Swagger UI lays out a document of 400 kB
    # An answer in JSON, an upload, and an answer that is a file; a list has hundreds of filters, all drawn alike.
    for name in ("Read a case", "Location", "Read a thumbnail"):
        operations.filter(has_text=name).first.click()
    expect(page.locator(".opblock-body")).to_have_count(3)
    expect(page.locator(".opblock-tag small", has_text="Clinical cases: texts")).to_be_visible()
    expect(page.get_by_role("navigation", name="Pages").get_by_role("link", name="API")).to_have_attribute(
        "aria-current", "page"
    )
    page.evaluate(AXE)
    report = page.evaluate("axe.run({runOnly: ['color-contrast']})")
    faint = [(node["target"], node["any"][0]["data"]) for fault in report["violations"] for node in fault["nodes"]]
    shoot(f"docs-{scheme}")
    assert not faint
    page.get_by_role("link", name="Browse").click()
    expect(page.locator(".tile").first).to_be_visible()


def test_every_group_of_the_reference_is_described(predict_api: httpx.Client) -> None:
    document = predict_api.get("/openapi.json").json()
    used = {tag for path in document["paths"].values() for operation in path.values() for tag in operation["tags"]}
    assert {tag["name"] for tag in document["tags"]} == used
    assert all(tag["description"].endswith(".") for tag in document["tags"])
