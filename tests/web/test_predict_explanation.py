"""Explanations and similar cases on the predict page, in a real Chromium."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.web.predict_page import choose, png_file, shows_status

pytestmark = pytest.mark.browser

Document = dict[str, Any]


def test_the_map_fades_and_each_input_has_its_say(
    page: Page, predict_api: httpx.Client, png: bytes, shoot: Callable[[str], None]
) -> None:
    caption = "Axial CT shows a nodule in the right upper lobe of the lung."
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", png))
    shows_status(page, "1 image analysed.")
    page.get_by_label("Caption").fill(caption)
    page.get_by_role("button", name="Predict again").click()
    location = page.locator(".prediction[data-task=location]")
    expect(location.locator(".notes")).to_have_count(0)
    location.get_by_role("button", name="Explain").click()
    heat = location.locator(".heat")
    expect(heat).to_be_visible(timeout=20_000)
    expect(heat).to_have_js_property("complete", value=True)
    assert heat.evaluate("image => image.naturalWidth") > 0
    page.get_by_label("Opacity of the heatmap").fill("25")
    expect(heat).to_have_css("opacity", "0.25")
    answer = predict_api.post(
        "/explain/location", params={"format": "json"}, files={"image": png}, data={"caption": caption}
    ).json()
    for name in ("image", "caption"):
        alone = location.locator(".alone", has_text=re.compile(f"^{name} alone", re.IGNORECASE))
        expect(alone.locator("li").first).to_contain_text(answer["by_input"][name]["label"])
    # Any class can be asked for, not only the one that was answered.
    other = answer["prediction"]["probabilities"][3]["label"]
    location.get_by_label("Class of the location to explain").select_option(other)
    location.get_by_role("button", name="Explain").click()
    expect(location.get_by_text(f"Red areas contributed most to “{other}”")).to_be_visible(timeout=20_000)
    shoot("predict-explained")


def test_a_map_goes_with_the_answer_that_it_explains(page: Page, png: bytes) -> None:
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", png))
    shows_status(page, "1 image analysed.")
    for task in ("modality", "location"):
        view = page.locator(f".prediction[data-task={task}]")
        view.get_by_role("button", name="Explain").click()
        expect(view.locator(".heat")).to_be_visible(timeout=20_000)
        expect(view.locator("figcaption")).to_contain_text("Red areas contributed most to")
    page.get_by_label("Caption").fill("Stone in the left ureter.")
    page.keyboard.press("Enter")
    expect(page.locator("[data-task=location] .notes")).to_have_count(0)
    expect(page.locator(".heat")).to_have_count(0)
    expect(page.get_by_text("Red areas contributed most to")).to_have_count(0)
    expect(page.get_by_label("Opacity of the heatmap")).to_have_count(0)


def test_on_a_narrow_screen_the_map_is_beside_its_button(page: Page, png: bytes) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", png))
    shows_status(page, "1 image analysed.")
    expect(page.locator("#status")).to_be_in_viewport()
    page.locator(".prediction[data-task=location]").get_by_role("button", name="Explain").click()
    heat = page.locator("[data-task=location] .heat")
    expect(heat).to_be_visible(timeout=20_000)
    expect(heat).to_be_in_viewport()


def test_similar_cases_of_an_upload(page: Page, predict_api: httpx.Client, png: bytes) -> None:
    expected = predict_api.post("/search/similar", params={"limit": 8}, files={"image": png}).json()["items"]
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", png))
    shows_status(page, "1 image analysed.")
    page.get_by_role("button", name="Find visually similar cases").click()
    tiles = page.locator(".similar .tile")
    expect(tiles).to_have_count(len(expected), timeout=20_000)
    hashes = tiles.evaluate_all("tiles => tiles.map((tile) => tile.hash.slice(1))")
    assert hashes == [item["image"] for item in expected]
    expect(tiles.first).to_contain_text(f"{round(100 * expected[0]['similarity'])}% similar")
