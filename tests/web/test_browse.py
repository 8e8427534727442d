"""The browse page in a real Chromium."""

import re
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.web.browse_page import image_names, shows_images
from tests.web.layout import fits, is_inside
from tests.web.network import hold

pytestmark = pytest.mark.browser


def test_shows_the_first_images_and_how_many_there_are(
    page: Page, predict_api: httpx.Client, shoot: Callable[[str], None]
) -> None:
    total = predict_api.get("/facets").json()["total"]
    page.goto("/?view=images")
    expect(page.locator("#status")).to_have_text(f"{total} images of 40 cases.")
    first = predict_api.get("/images", params={"limit": 40}).json()["items"]
    assert image_names(page) == [image["image"] for image in first]
    expect(page.locator(".tile img").first).to_have_js_property("complete", value=True)
    assert page.locator(".tile img").first.evaluate("image => image.naturalWidth") > 0
    shoot("browse")


def test_cases_come_first_each_with_its_first_image(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    facets = predict_api.get("/facets").json()
    expect(page.locator("#status")).to_have_text(f"{facets['cases']} cases with {facets['total']} images.")
    cases = predict_api.get("/cases", params={"limit": 30, "sort": "u_id"}).json()["items"]
    cards = page.locator(".case-tile")
    ids = cards.evaluate_all("cards => cards.map((card) => card.dataset.case)")
    assert ids[:30] == [case["u_id"] for case in cases]
    for index, case in enumerate(cases[:6]):
        first = predict_api.get(case["links"]["self"]).json()["images"][0]["image"]
        expect(cards.nth(index)).to_have_attribute("href", re.compile(rf"#{first}$"))
        expect(cards.nth(index).locator(".name")).to_have_text(case["title"] or case["u_id"])
        expect(cards.nth(index)).to_contain_text(" and ".join(case["modalities"]))
        count = case["image_count"]
        expect(cards.nth(index)).to_contain_text(f"{count} image{'' if count == 1 else 's'}")


def test_the_switch_between_cases_and_images_keeps_the_filters(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?modality=MR")
    expect(page.locator(".case-tile").first).to_be_visible()
    page.get_by_role("button", name="Images", exact=True).click()
    expect(page).to_have_url(re.compile(r"/\?modality=MR&view=images$"))
    expected = predict_api.get("/images", params={"modality": "MR", "limit": 40}).json()["items"]
    expect(page.locator(".tile")).to_have_count(len(expected))
    assert image_names(page) == [image["image"] for image in expected]
    page.get_by_role("button", name="Cases", exact=True).click()
    expect(page.locator(".case-tile").first).to_be_visible()
    # The card of a case with both modalities leads to the image that was filtered for.
    covers = {image["u_id"]: image["image"] for image in reversed(expected)}
    first = page.locator(".case-tile").first
    assert image_names(page)[0] == covers[first.get_attribute("data-case") or ""]


def test_an_order_that_only_cases_have(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/")
    expect(page.get_by_label("Sort").locator("option")).to_have_count(6)
    page.get_by_label("Sort").select_option("Most images first")
    expect(page).to_have_url(re.compile("sort=-image_count"))
    cases = predict_api.get("/cases", params={"sort": "-image_count", "limit": 30}).json()["items"]
    expect(page.locator(".case-tile").first).to_have_attribute("data-case", cases[0]["u_id"])
    ids = page.locator(".case-tile").evaluate_all("cards => cards.map((card) => card.dataset.case)")
    assert ids[:24] == [case["u_id"] for case in cases[:24]]


def test_a_tile_shows_that_its_image_is_loading(page: Page) -> None:
    thumbnails = hold(page, "**/thumbnail?*")
    page.goto("/", wait_until="commit")
    frame = page.locator(".tile .frame").first
    expect(frame).to_have_class(re.compile("loading"))
    expect(page.locator(".tile")).to_have_count(30)
    while thumbnails:
        thumbnails.pop().continue_()
    expect(frame).not_to_have_class(re.compile("loading"))


def test_a_sort_order_holds(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?view=images")
    page.get_by_label("Sort").select_option("-age")
    expect(page).to_have_url(re.compile("sort=-age"))
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expected = predict_api.get("/images", params={"sort": "-age", "limit": 40}).json()["items"]
    assert image_names(page) == [image["image"] for image in expected]


def test_show_more_goes_on_and_is_kept(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/?view=images")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".tile")).to_have_count(80)
    page.reload()
    expect(page.locator(".tile")).to_have_count(80)
    page.get_by_role("button", name="Show more").click()
    total = predict_api.get("/facets").json()["total"]
    expect(page.locator(".tile")).to_have_count(total)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert len(set(image_names(page))) == total


def test_back_from_a_case_finds_the_place_that_was_left(page: Page) -> None:
    page.goto("/?view=images")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".tile")).to_have_count(80)
    tile = page.locator(".tile").nth(70)
    tile.click()
    expect(page).to_have_url(re.compile("/pages/case/"))
    expect(page.locator("#case")).to_have_attribute("aria-busy", "false")
    page.go_back()
    expect(page.locator(".tile")).to_have_count(80)
    expect(tile).to_be_in_viewport()


@pytest.mark.parametrize("way", ["link", "Escape", "Back"])
def test_the_way_back_from_a_case_leads_to_its_place(page: Page, way: str) -> None:
    page.goto("/?sort=-age")
    expect(page.locator(".tile")).to_have_count(30)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".tile")).to_have_count(40)
    names = image_names(page)
    page.locator(".tile").nth(36).click()
    expect(page.locator("#case-place")).to_have_text("Case 37 of 40")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#case-place")).to_have_text("Case 38 of 40")
    if way == "link":
        page.get_by_role("link", name="Back to results").click()
    elif way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.go_back()
    expect(page.locator(".tile").nth(37)).to_be_visible()
    assert image_names(page)[:38] == names[:38]
    if way != "Back":
        expect(page.locator(".tile").nth(37)).to_be_in_viewport()
        expect(page.locator(".tile").nth(37)).to_be_focused()


def test_on_a_phone_all_actions_stand_in_one_row(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/")
    expect(page.locator(".case-tile").first).to_be_visible()
    buttons = page.locator(".actions").locator("button, summary")
    assert buttons.count() == 4
    assert len(set(buttons.evaluate_all("all => all.map((each) => each.getBoundingClientRect().top)"))) == 1
    assert is_inside(page, buttons.last)


def test_an_empty_result_says_what_to_do(page: Page) -> None:
    page.goto('/?q="nothing+like+this"&modality=CT')
    expect(page.locator("#status")).to_have_text("No results.")
    for hint in ("No cases match.", "Use fewer or other words", "Leave out the quotation marks", "Remove one of"):
        expect(page.locator("#results")).to_contain_text(hint)
    expect(page.locator("#export")).to_be_hidden()
    page.get_by_role("button", name="Remove all filters").click()
    expect(page.locator("#chips button")).to_have_count(0)
    page.get_by_role("button", name="Clear the search").click()
    expect(page.locator(".tile").first).to_be_visible()


@pytest.mark.parametrize("address", ["/?sort=nothing", "/?age__gte=old&modality=CT"])
def test_what_cannot_be_asked_can_be_left(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Clear the search and the filters").click()
    expect(page.locator(".tile")).to_have_count(30)
    assert page.url.endswith("/")


def test_a_condition_that_cannot_be_used_is_explained(page: Page) -> None:
    page.goto("/?age__gte=old")
    expect(page.get_by_role("alert")).to_contain_text("age__gte")
    page.get_by_role("button", name="Clear the search and the filters").click()
    expect(page.locator(".tile")).to_have_count(30)


@pytest.mark.parametrize("fault", ["broken", "unreachable", "not JSON"])
def test_a_failing_api_is_said_and_can_be_asked_again(page: Page, fault: str) -> None:
    def answer(route: Route) -> None:
        if fault == "unreachable":
            route.abort()
        elif fault == "broken":
            route.fulfill(status=500, content_type="application/json", body="{}")
        else:
            route.fulfill(status=200, content_type="application/json", body='{"items": [')

    page.route("**/images?*", answer)
    page.goto("/")
    words = {"broken": "failed (status 500)", "unreachable": "cannot be reached", "not JSON": "incomplete"}[fault]
    expect(page.get_by_role("alert")).to_contain_text(words)
    page.unroute("**/images?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".tile")).to_have_count(30)
    expect(page.get_by_role("alert")).to_be_empty()


def test_on_a_slow_network_the_last_choice_wins(page: Page, predict_api: httpx.Client) -> None:
    lists: list[Route] = []
    page.route("**/images?*", lambda route: lists.append(route) if not lists else route.continue_())
    page.goto("/")
    expect(page.locator(".skeleton")).to_be_visible()
    expect(page.get_by_role("checkbox", name=re.compile("^MR "))).to_be_visible()
    page.get_by_role("checkbox", name=re.compile("^MR ")).check()
    shows_images(page, predict_api.get("/facets", params={"modality": "MR"}).json()["total"])
    names = image_names(page)
    for route in lists:
        route.fulfill(response=route.fetch())
    page.evaluate("fetch('/health/live').then((answer) => answer.text())")  # its answer comes after those
    assert image_names(page) == names


def test_the_keyboard_walks_the_grid(page: Page) -> None:
    page.goto("/")
    tiles = page.locator(".tile")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert below > tiles.nth(1).evaluate("tile => tile.getBoundingClientRect().top")
    page.keyboard.press("ArrowUp")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("searchbox")).not_to_be_focused()
    tiles.nth(1).focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/pages/case/MPX"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_without_scrolling_sideways(
    page: Page, scheme: str, shoot: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
    page.goto("/?q=ureter")
    expect(page.locator(".tile").first).to_be_visible()
    assert fits(page)
    toggle = page.get_by_role("button", name="Filters", exact=True)
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_hidden()
    toggle.click()
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_visible()
    assert fits(page)
    shoot(f"browse-narrow-{scheme}")
    # One heading is enough, the count of the filters stands on the toggle, and there is a way back to the images.
    expect(page.get_by_role("heading", name=re.compile("^Filters"))).to_be_hidden()
    page.get_by_role("checkbox", name=re.compile("^CT ")).check()
    expect(page.get_by_role("button", name="Filters (1)")).to_be_visible()
    done = page.locator("#filters-done")
    expect(done).to_be_in_viewport()
    expect(done).to_have_text(re.compile(r"^Show \d+ cases?$"))
    done.click()
    expect(page.get_by_role("checkbox", name=re.compile("^CT "))).to_be_hidden()
    expect(page.locator("#status")).to_be_in_viewport()


def test_an_image_that_cannot_be_had_is_said_in_its_place(page: Page) -> None:
    page.route("**/thumbnail?*", lambda route: route.abort())
    page.goto("/")
    expect(page.locator(".tile").first).to_contain_text("no image")
    page.mouse.wheel(0, 20_000)
    expect(page.locator(".tile img")).to_have_count(0)


def test_markup_in_data_and_address_stays_text(page: Page, hostile_site: str) -> None:
    page.goto(f'{hostile_site}/?q=lesion&title__contains=<img src=x onerror="window.hit=1">')
    expect(page.locator(".hit .name").first).to_contain_text("<img src=x")
    expect(page.locator(".chips")).to_contain_text("<img src=x")
    page.goto(f'{hostile_site}/?image=<script>window.hit=1</script>&sort="><script>window.hit=1</script>')
    expect(page.get_by_role("alert")).not_to_be_empty()
    assert page.evaluate("window.hit") is None


@pytest.mark.medpix
def test_the_real_dataset_can_be_browsed(page: Page, medpix_api: httpx.Client) -> None:
    page.goto(str(medpix_api.base_url))
    expect(page.locator("#status")).to_have_text("671 cases with 2,050 images.")
    page.get_by_role("checkbox", name="CT 1,062").click()
    expect(page.locator("#status")).to_have_text(re.compile(r"^\d+ cases with 1,062 images\.$"))
    page.get_by_role("searchbox").fill("ureter stone")
    page.keyboard.press("Enter")
    expect(page.locator(".hit mark").first).to_be_visible()
    # Who is faster than the counts sees only "Case 1" on the page of the case.
    expect(page.locator("#status")).to_have_text(re.compile(r"^\d+ cases with \d+ images for "))
    page.locator(".hit").first.click()
    expect(page.locator("#case-place")).to_have_text(re.compile(r"^Case 1 of \d+$"))
