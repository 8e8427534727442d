"""The pages by keyboard alone."""

import re

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("path", ["/", "/pages/case/MPX1001", "/pages/predict", "/pages/models", "/pages/about"])
def test_a_slash_leads_to_the_search_box(page: Page, path: str) -> None:
    page.goto(path)
    page.wait_for_load_state("networkidle")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("ureter")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/\?q=ureter$"))


def test_a_slash_on_a_case_keeps_the_result(page: Page) -> None:
    page.goto("/pages/case/MPX1001?modality=CT")
    expect(page.locator("#case")).to_have_attribute("aria-busy", "false")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(page.locator("#chips")).to_contain_text("Modality: CT")


def test_a_slash_after_a_box_was_checked_leads_to_the_search_box(page: Page) -> None:
    page.goto("/")
    page.get_by_role("checkbox", name=re.compile("^CT ")).check()
    expect(page.locator("#chips")).to_contain_text("Modality: CT")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()


@pytest.mark.parametrize("select", ["#sort", "#filter-field"])
def test_a_slash_on_a_select_leads_to_the_search_box(page: Page, select: str) -> None:
    page.goto("/")
    expect(page.locator("#filter-field option").first).to_be_attached()
    page.locator(select).focus()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_arrows_on_a_slider_or_a_choice_are_its_own(page: Page) -> None:
    page.goto("/pages/case/MPX1001?quiz=1")
    expect(page.get_by_label("Location")).to_be_visible()
    place = page.locator("#place").inner_text()
    page.get_by_role("radio", name="CT").focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="MR")).to_be_checked()
    page.get_by_role("button", name="Contrast").click()
    page.get_by_role("slider", name="Contrast").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("slider", name="Contrast")).to_have_value("101")
    assert page.locator("#place").inner_text() == place
    assert "/MPX1001?" in page.url


@pytest.mark.parametrize("path", ["/", "/pages/case/MPX1001", "/pages/predict", "/docs", "/pages/nothing"])
def test_a_question_mark_shows_the_keys(page: Page, path: str) -> None:
    page.goto(path)
    page.wait_for_load_state("networkidle")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text("previous and next image of the case")
    # The keys of the page are not taken meanwhile.
    page.keyboard.press("q")
    assert "quiz" not in page.url
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Keys").click()
    expect(dialog).to_be_visible()


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto("/")
    body = page.locator("body")
    light = body.evaluate("body => getComputedStyle(body).backgroundColor")
    theme = page.locator("#theme")
    expect(theme).to_have_text("Theme: auto")
    theme.click()
    expect(theme).to_have_text("Theme: light")
    theme.click()
    expect(theme).to_have_text("Theme: dark")
    dark = body.evaluate("body => getComputedStyle(body).backgroundColor")
    assert dark != light
    for path in ("/pages/models", "/docs"):
        page.goto(path)
        assert body.evaluate("body => getComputedStyle(body).backgroundColor") == dark
    page.locator("#theme").click()
    expect(body).to_have_css("background-color", light)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_viewer_is_dark_in_every_theme(page: Page, theme: str) -> None:
    page.add_init_script(f"localStorage.setItem('medpix-theme', '{theme}')")
    page.goto("/pages/case/MPX1001")
    for part in ("#viewer", ".tools", "#caption"):
        colour = page.locator(part).first.evaluate("part => getComputedStyle(part).backgroundColor")
        assert all(int(value) < 40 for value in re.findall(r"\d+", colour)[:3]), (part, colour)


def test_escape_leaves_the_box_as_the_result_is(page: Page) -> None:
    page.goto("/?q=ureter")
    expect(page.locator(".hit").first).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("something else")
    page.keyboard.press("Escape")
    box = page.get_by_role("searchbox")
    expect(box).not_to_be_focused()
    expect(box).to_have_value("ureter")
    expect(page.locator("#status")).to_contain_text("for “ureter”")
    assert page.url.endswith("/?q=ureter")


def test_arrows_enter_the_grid(page: Page) -> None:
    page.goto("/")
    tiles = page.locator(".tile")
    expect(tiles).to_have_count(30)
    page.keyboard.press("ArrowRight")
    expect(tiles.first).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    expect(tiles.first).to_be_focused()


def test_who_removes_a_filter_goes_on_with_the_next(page: Page) -> None:
    page.goto("/?modality=CT&split=train")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    page.get_by_role("button", name="Remove the filter Modality: CT").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#chips button")).to_have_count(1)
    expect(page.get_by_role("button", name="Remove the filter Split: train")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#chips button")).to_have_count(0)
    expect(page.locator("#status")).to_be_focused()


def test_the_filters_can_be_skipped(page: Page) -> None:
    page.goto("/")
    expect(page.locator(".tile")).to_have_count(30)
    page.get_by_role("link", name="Skip the filters").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Quiz mode")).to_be_focused()
    # The result is not asked for again: the address only names a place in the page.
    expect(page.locator(".tile")).to_have_count(30)
