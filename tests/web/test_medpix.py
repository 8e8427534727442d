"""The pages on the real dataset, with models that learned from the generated one."""

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.layout import SCREENS, fits, jumps, shoot, watch_layout

pytestmark = [pytest.mark.browser, pytest.mark.medpix]

# A case of one image with a short title, and one of 31 images with a title of several lines.
CASES = ("MPX1007", "MPX2175")
PATHS = ("/", "/?q=ureter+stone", *(f"/pages/case/{u_id}" for u_id in CASES), "/pages/predict", "/pages/models")


@pytest.mark.parametrize(
    "path", [*PATHS, "/pages/case/MPX2175?quiz=1", "/pages/predict?image=MPX1007_synpic46719", "/docs"]
)
@pytest.mark.parametrize("width", [360, 1280])
def test_the_layout_does_not_jump(page: Page, medpix_site: str, path: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    watch_layout(page)
    page.goto(f"{medpix_site}{path}")
    page.wait_for_load_state("networkidle")
    assert jumps(page) < 0.1
    assert fits(page)


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_every_page_is_looked_at(browser: Browser, medpix_site: str, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, base_url=medpix_site)
    page = context.new_page()
    for path in (*PATHS, "/?q=ureter+stone&sort=-age", "/pages/about"):
        page.goto(path)
        page.wait_for_load_state("networkidle")
        name = re.sub(r"\W+", "-", path).strip("-") or "browse"
        shoot(page, f"medpix-{name}-{width}-{scheme}")
        assert fits(page), path
    context.close()


def test_an_example_is_predicted_and_explained(page: Page, medpix_site: str) -> None:
    page.goto(f"{medpix_site}/pages/predict")
    expect(page.locator("#examples a")).to_have_count(6)
    page.locator("#examples a").first.click()
    expect(page.locator("#status")).to_have_text("1 image analysed.", timeout=20_000)
    expect(page.locator(".item")).to_contain_text("This image is in the test split of the dataset")
    for task in ("modality", "location"):
        expect(page.locator(f".verdict-slot[data-task={task}]")).to_contain_text("True label:")
        view = page.locator(f".prediction[data-task={task}]")
        view.get_by_role("button", name="Explain").click()
        expect(view.locator(".heat")).to_be_visible(timeout=20_000)
    assert fits(page)


def test_the_models_are_listed_and_the_data_counted(page: Page, medpix_site: str) -> None:
    page.goto(f"{medpix_site}/pages/models")
    expect(page.get_by_role("table", name="Location (21 classes)").get_by_role("row")).to_have_count(4)
    page.goto(f"{medpix_site}/pages/about")
    expect(page.locator("#counts")).to_contain_text("2,050 images of 671 cases")
    expect(page.locator("#counts")).to_contain_text("1,062 CT images and 988 MR images")


def test_the_image_with_a_label_that_is_no_class_is_not_called_wrong(page: Page, medpix_site: str) -> None:
    page.goto(f"{medpix_site}/?quality_flags=location_left_blank")
    page.locator(".tile").first.click()
    page.get_by_role("button", name="Predict this image").click()
    location = page.locator(".prediction[data-task=location]")
    expect(location).to_contain_text("The dataset gives no true label.", timeout=20_000)
