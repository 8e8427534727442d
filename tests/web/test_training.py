"""What the pages show while a model is in training."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import Training
from tests.web.layout import jumps, shoot, watch_layout
from tests.web.network import hold

pytestmark = pytest.mark.browser


def _tell(page: Page, text: str) -> None:
    expect(page.locator("#training")).to_contain_text(text, timeout=20_000)


def test_the_predict_page_shows_it_live_and_then_uses_the_model(page: Page, training: Training, png: bytes) -> None:
    page.goto(f"{training.site}/pages/predict")
    _tell(page, "compact is being trained for modality and location. 40% done, about 30 s left.")
    # One training of one model is shown once.
    expect(page.locator("#training progress")).to_have_count(1)
    page.get_by_label("Choose images").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png})
    slot = page.locator(".verdict-slot[data-task=modality]")
    expect(slot).to_contain_text("The model for modality is not ready yet. This page retries automatically.")
    expect(slot.locator(".error, button")).to_have_count(0)
    expect(page.locator("#status")).to_have_text("1 image waiting for a model.")
    training.report(0.8, 10.0)
    _tell(page, "80% done")
    expect(page.locator("#training").get_by_role("progressbar")).to_have_js_property("value", 0.8)
    asked = hold(page, re.compile("/predict/(modality|location)$"))
    training.finish()
    # Two tasks of one image are one image that is not done.
    expect(page.locator("#status")).to_have_text("Analysing 1 image, 0 done …", timeout=30_000)
    while len(asked) < 2:
        page.wait_for_timeout(20)
    for route in asked:
        route.continue_()
    # Nobody presses anything: the page asks again as soon as there is a model.
    expect(page.locator(".prediction")).to_have_count(2, timeout=30_000)
    expect(page.locator("#training")).to_be_empty(timeout=30_000)


def test_the_models_page_shows_it_live_and_then_the_model(page: Page, training: Training) -> None:
    page.goto(f"{training.site}/pages/models")
    _tell(page, "compact is being trained for modality and location. 40% done, about 30 s left.")
    expect(page.locator("#training progress")).to_have_count(1)
    expect(page.locator("#board")).to_contain_text("appears here when its training finishes")
    # Who waits for a training need not start one.
    expect(page.locator("#board")).not_to_contain_text("medpix train")
    training.report(0.8, 10.0)
    _tell(page, "80% done")
    training.finish()
    expect(page.get_by_role("table", name="Modality (2 classes)")).to_be_visible(timeout=30_000)
    expect(page.locator("#training")).to_be_empty(timeout=30_000)


def test_a_case_waits_for_its_model(page: Page, training: Training) -> None:
    page.goto(f"{training.site}/pages/case/MPX1001")
    page.get_by_role("button", name="Predict this image").click()
    expect(page.locator("#prediction")).to_contain_text("is 40% done")
    expect(page.locator("#prediction .error")).to_have_count(0)
    page.locator("#similar").scroll_into_view_if_needed()
    expect(page.locator("#similar")).to_contain_text("retries automatically")


@pytest.mark.parametrize("path", ["/pages/predict", "/pages/models", "/pages/case/MPX1001"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_layout_does_not_jump_meanwhile(page: Page, training: Training, path: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    watch_layout(page)
    page.goto(f"{training.site}{path}")
    page.wait_for_load_state("load")
    page.locator("#training .notice, #case[aria-busy=false]").first.wait_for()
    page.locator("#examples a, #board p, #similar").first.wait_for()
    assert jumps(page) < 0.1
    shoot(page, f"training-{path.split('/')[2]}-{width}")
