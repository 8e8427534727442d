"""Images by words: the choice beside the search by words, in a real Chromium."""

import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.web.layout import fits

pytestmark = pytest.mark.browser
TEXT = "axial CT of the abdomen"


def _images(page: Page) -> list[str]:
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    return [
        str(name) for name in page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.dataset.image)")
    ]


def _ranked(api: httpx.Client, **parameters: str) -> list[str]:
    items = api.get("/search/images", params={"q": TEXT, "limit": "40", **parameters}).json()["items"]
    return [item["image"]["image"] for item in items]


def test_images_are_found_by_words(page: Page, text_api: httpx.Client) -> None:
    page.goto(f"{text_api.base_url}/")
    page.get_by_role("searchbox").fill(TEXT)
    page.locator("#mode").select_option(label="images by words")
    expect(page).to_have_url(re.compile(r"q=axial\+CT\+of\+the\+abdomen&mode=images&view=images"))
    expect(page.locator("#search-notes")).to_contain_text("by clip-location")
    assert _images(page) == _ranked(text_api)
    expect(page.locator("#sort")).to_be_disabled()
    page.locator("#more").click()
    expect(page.locator(".tile")).to_have_count(80)
    page.get_by_label("MR").check()
    expect(page).to_have_url(re.compile("modality=MR"))
    expect(page.locator("#chips")).to_contain_text("MR")
    expect(page.locator(".tile b").first).to_have_text("MR")
    assert _images(page)[:40] == _ranked(text_api, modality="MR")
    page.set_viewport_size({"width": 390, "height": 800})
    assert fits(page)


def test_an_export_does_not_say_that_it_has_their_order(page: Page, text_api: httpx.Client) -> None:
    page.goto(f"{text_api.base_url}/?q={TEXT}&mode=images&view=images&sort=-age")
    page.get_by_text("Export", exact=True).click()
    expect(page.locator("#export")).to_contain_text("Sorted by case id.")
    expect(page.get_by_role("link", name="Download")).not_to_have_attribute("href", re.compile("sort="))


def test_cases_are_in_the_order_of_their_best_image(page: Page, text_api: httpx.Client) -> None:
    page.goto(f"{text_api.base_url}/?q={TEXT}&mode=images")
    images = _images(page)
    best: dict[str, str] = {}
    for image in _ranked(text_api, limit="100"):
        best.setdefault(image.partition("_")[0], image)
    assert images[:10] == list(best.values())[:10]
    page.locator(".tile").nth(1).click()
    expect(page.locator("h1")).to_be_visible()
    expect(page).to_have_url(re.compile("mode=images"))


def test_what_is_missing_is_said(page: Page, api: httpx.Client) -> None:
    page.goto(f"{api.base_url}/?q=brain&mode=images&view=images")
    expect(page.locator("#problem")).to_contain_text("medpix train clip-location")
