"""The case page in a real Chromium."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.web.layout import fits
from tests.web.network import hold

pytestmark = pytest.mark.browser

Document = dict[str, Any]


def _walk(page: Page, text: str) -> None:
    expect(page.locator("#case-place")).to_have_text(text)


def _stack(page: Page, position: int, count: int) -> None:
    expect(page.locator("#place")).to_have_text(f"Image {position} of {count}")


def _image(page: Page) -> str:
    return str(page.evaluate("decodeURIComponent(location.hash.slice(1))"))


def _shown(page: Page) -> str:
    source = page.locator("#picture").get_attribute("src") or ""
    return source.split("/")[2]


@pytest.fixture
def many(predict_api: httpx.Client) -> Document:
    """A case of the training split with several images and a history."""
    cases = predict_api.get("/cases", params={"image_count__gte": 3, "split": "train", "limit": 50}).json()["items"]
    chosen = next(case for case in cases if case["history"])
    case: Document = predict_api.get(chosen["links"]["self"]).json()
    return case


def test_shows_the_image_and_all_that_is_said_of_the_case(
    page: Page, many: Document, shoot: Callable[[str], None]
) -> None:
    page.goto(f"/pages/case/{many['u_id'].lower()}")
    expect(page.get_by_role("heading", level=1)).to_have_text(many["title"])
    for name in ("history", "findings", "diagnosis", "discussion"):
        if many[name]:
            expect(page.locator(f"[data-field={name}]")).to_contain_text(many[name])
    # A field without a place of its own, as one has that was just added.
    expect(page.locator("[data-field=modality_details]")).to_contain_text(", ".join(many["modality_details"]))
    expect(page.locator("#text")).to_contain_text(many["topic"]["disease_discussion"])
    picture = page.locator("#picture")
    expect(picture).to_have_js_property("complete", value=True)
    assert picture.evaluate("image => image.naturalWidth") == many["images"][0]["width"]
    expect(page.locator("#strip a")).to_have_count(len(many["images"]))
    expect(page).to_have_title(re.compile(re.escape(many["title"])))
    shoot("case")


def _covers(client: httpx.Client, **params: str) -> list[str]:
    """The first image of each case of a result."""
    images = client.get("/images", params={**params, "limit": 100}).json()["items"]
    first: dict[str, str] = {}
    for image in images:
        first.setdefault(image["u_id"], image["image"])
    return list(first.values())


def test_arrows_walk_the_cases_and_back_leaves_them(page: Page, predict_api: httpx.Client) -> None:
    covers = _covers(predict_api, modality="MR", sort="-age")
    page.goto("/?modality=MR&sort=-age")
    expect(page.locator(".case-tile").nth(3)).to_be_visible()
    page.locator(".case-tile").nth(3).click()
    _walk(page, f"Case 4 of {len(covers)}")
    assert _shown(page) == covers[3]
    entries = page.evaluate("history.length")
    page.keyboard.press("ArrowRight")
    _walk(page, f"Case 5 of {len(covers)}")
    assert (_image(page), _shown(page)) == (covers[4], covers[4])
    page.keyboard.press("ArrowLeft")
    _walk(page, f"Case 4 of {len(covers)}")
    page.get_by_role("link", name="Previous case").click()
    _walk(page, f"Case 3 of {len(covers)}")
    assert page.url.split("#")[0].endswith(f"/pages/case/{covers[2].split('_')[0]}?modality=MR&sort=-age")
    page.reload()
    _walk(page, f"Case 3 of {len(covers)}")
    page.get_by_role("link", name="Next case").click()
    _walk(page, f"Case 4 of {len(covers)}")
    # Walking adds no entries to the history: Back leads to the results at once.
    assert page.evaluate("history.length") == entries
    page.go_back()
    expect(page.locator("#chips")).to_contain_text("Modality: MR")


def test_the_stack_is_walked_without_entries_in_the_history(page: Page, many: Document) -> None:
    names = [image["image"] for image in many["images"]]
    page.goto("/")
    page.goto(f"/pages/case/{many['u_id']}")
    _stack(page, 1, len(names))
    entries = page.evaluate("history.length")
    for position in range(2, len(names) + 1):
        page.keyboard.press("ArrowDown")
        _stack(page, position, len(names))
    assert _shown(page) == names[-1]
    page.wait_for_function("name => location.hash === `#${name}`", arg=names[-1])
    page.get_by_role("button", name="Previous image").click()
    _stack(page, len(names) - 1, len(names))
    assert page.evaluate("history.length") == entries
    page.go_back()
    expect(page.locator(".case-tile").first).to_be_visible()


def test_positions_are_of_the_case_and_of_the_result(page: Page, predict_api: httpx.Client, many: Document) -> None:
    page.goto(f"/pages/case/{many['u_id']}#{many['images'][1]['image']}")
    _stack(page, 2, len(many["images"]))
    covers = _covers(predict_api)
    index = next(at for at, name in enumerate(covers, 1) if name.startswith(f"{many['u_id']}_"))
    _walk(page, f"Case {index} of {predict_api.get('/facets').json()['cases']}")


def test_a_case_without_results_before_it_knows_its_place_in_few_requests(
    page: Page, predict_api: httpx.Client
) -> None:
    cases = predict_api.get("/facets").json()["cases"]
    before, last = [each["u_id"] for each in predict_api.get("/cases?sort=-u_id&limit=2").json()["items"][::-1]]
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    page.goto(f"/pages/case/{last}")
    _walk(page, f"Case {cases} of {cases}")
    expect(page.get_by_role("link", name="Next case")).to_be_hidden()
    # A walk through all images would take a request for each hundred.
    assert asked.count("/images") == 0
    assert asked.count("/cases") <= 2
    page.keyboard.press("ArrowLeft")
    _walk(page, f"Case {cases - 1} of {cases}")
    expect(page).to_have_url(re.compile(f"/pages/case/{before}$"))
    page.get_by_role("link", name="Next case").click()
    _walk(page, f"Case {cases} of {cases}")


def test_a_walk_ends_at_both_ends(page: Page, predict_api: httpx.Client) -> None:
    covers = _covers(predict_api, location="Spine")
    assert len(covers) > 1
    page.goto(f"/pages/case/{covers[0].split('_')[0]}?location=Spine#{covers[0]}")
    _walk(page, f"Case 1 of {len(covers)}")
    expect(page.get_by_role("link", name="Previous case")).to_be_hidden()
    for position in range(2, len(covers) + 1):
        page.get_by_role("link", name="Next case").click()
        _walk(page, f"Case {position} of {len(covers)}")
    expect(page.get_by_role("link", name="Next case")).to_be_hidden()
    assert _shown(page) == covers[-1]


def test_a_case_outside_of_the_result_has_no_place_in_it(page: Page, many: Document) -> None:
    page.goto(f"/pages/case/{many['u_id']}?location=Nowhere#{many['images'][1]['image']}")
    _stack(page, 2, len(many["images"]))
    _walk(page, "")
    expect(page.get_by_role("link", name="Next case")).to_be_hidden()
    page.locator("#strip a").first.click()
    _stack(page, 1, len(many["images"]))
    assert _shown(page) == many["images"][0]["image"]


@pytest.mark.parametrize("width", [390, 1440])
def test_a_case_opens_at_its_top(page: Page, many: Document, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"/pages/case/{many['u_id']}#{many['images'][-1]['image']}")
    _stack(page, len(many["images"]), len(many["images"]))
    expect(page.locator("#strip [aria-current]")).to_have_attribute("data-image", many["images"][-1]["image"])
    assert page.evaluate("scrollY") == 0
    expect(page.get_by_role("heading", level=1)).to_be_in_viewport()
    expect(page.get_by_role("navigation", name="Pages")).to_be_in_viewport()


def test_zoom_and_full_screen_by_keys_and_buttons(page: Page, many: Document) -> None:
    page.goto(f"/pages/case/{many['u_id']}")
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    picture = page.locator("#picture")
    before = picture.bounding_box()
    page.get_by_role("button", name="Zoom in").click()
    page.keyboard.press("+")
    after = picture.bounding_box()
    assert before
    assert after
    assert after["width"] == pytest.approx(before["width"] * 1.4**2, rel=0.01)
    page.keyboard.press("Shift+ArrowRight")
    moved = picture.bounding_box()
    assert moved
    assert moved["x"] < after["x"]
    page.keyboard.press("0")
    assert picture.bounding_box() == before

    page.keyboard.press("f")
    full = page.get_by_role("button", name="Full screen")
    expect(full).to_have_attribute("aria-pressed", "true")
    box = page.locator("#viewer").bounding_box()
    assert box
    assert (box["width"], box["height"]) == tuple(page.evaluate("[innerWidth, innerHeight]"))
    # The caption goes with the image.
    expect(page.locator("#caption")).to_be_in_viewport()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#strip a").nth(1)).to_have_attribute("aria-current", "true")
    full.click()
    expect(full).to_have_attribute("aria-pressed", "false")

    page.keyboard.press("f")
    expect(full).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(full).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#place")).to_contain_text("of")
    assert "/pages/case/" in page.url


def test_a_placeholder_has_a_badge_that_explains_itself(page: Page, predict_api: httpx.Client) -> None:
    image = predict_api.get("/images", params={"quality_flags": "caption_placeholder"}).json()["items"][0]
    raw = predict_api.get(image["links"]["self"], params={"raw": "true"}).json()
    page.goto(f"/pages/case/{image['u_id']}#{image['image']}")
    badge = page.locator("#caption .flag")
    badge.locator("summary").click()
    expect(badge).to_contain_text("placeholder here instead of a text")
    expect(badge.locator("q")).to_have_text(raw["Description"]["Caption"])
    # The value ends with its own full stop.
    assert not badge.inner_text().endswith("..")


def test_every_flag_of_the_data_is_explained(page: Page, predict_api: httpx.Client) -> None:
    for kind in ("images", "cases"):
        items = predict_api.get(f"/{kind}", params={"limit": 100, "fields": "u_id,quality_flags"}).json()["items"]
        for u_id in {flag: item["u_id"] for item in items for flag in item["quality_flags"]}.values():
            page.goto(f"/pages/case/{u_id}")
            expect(page.locator("#case")).to_have_attribute("aria-busy", "false")
            assert "marks this value as doubtful" not in page.locator("main").inner_text()


def test_a_prediction_stands_beside_the_true_label(
    page: Page, predict_api: httpx.Client, many: Document, shoot: Callable[[str], None]
) -> None:
    image = many["images"][0]
    expected = predict_api.get(f"{image['links']['self']}/predict").json()
    page.goto(f"/pages/case/{many['u_id']}#{image['image']}")
    page.get_by_role("button", name="Predict this image").click()
    for task in ("modality", "location"):
        view = page.locator(f".prediction[data-task={task}]")
        expect(view.locator(".verdict strong")).to_have_text(expected[task]["prediction"]["label"])
        expect(view).to_contain_text(f"True label: {expected[task]['truth']}")
        expect(view).to_contain_text("trained on this image")
        verdict = {True: "correct", False: "wrong"}[expected[task]["correct"]]
        expect(view.get_by_text(verdict, exact=True)).to_be_visible()
        best = expected[task]["prediction"]["probabilities"][0]["probability"]
        expect(view.locator(".verdict")).to_contain_text(f"{100 * best:.1f}%")
    shoot("case-predicted")


def test_similar_images_of_other_cases_are_shown(page: Page, predict_api: httpx.Client, many: Document) -> None:
    image = many["images"][0]
    expected = predict_api.get(f"{image['links']['self']}/similar", params={"limit": 8}).json()["items"]
    page.goto(f"/pages/case/{many['u_id']}#{image['image']}")
    page.locator("#similar").scroll_into_view_if_needed()
    tiles = page.locator("#similar .tile")
    expect(tiles).to_have_count(len(expected))
    assert tiles.evaluate_all("tiles => tiles.map((tile) => tile.hash.slice(1))") == [
        item["image"] for item in expected
    ]
    tiles.first.click()
    expect(page).to_have_url(re.compile(f"#{expected[0]['image']}$"))


@pytest.mark.parametrize("u_id", ["MPX9999", "nothing", "mpx1"])
def test_an_unknown_case_is_not_found(page: Page, u_id: str) -> None:
    answer = page.goto(f"/pages/case/{u_id}")
    assert answer
    assert answer.status == 404
    expect(page.get_by_role("heading", level=1)).to_have_text(f"There is no case {u_id}")
    page.get_by_role("link", name="Browse all cases").click()
    expect(page.locator(".tile").first).to_be_visible()


def test_a_failing_api_is_said_and_can_be_asked_again(page: Page, many: Document) -> None:
    page.route("**/cases/*", lambda route: route.fulfill(status=500, body="{}"))
    page.goto(f"/pages/case/{many['u_id']}")
    expect(page.locator("#problem")).to_contain_text("failed (status 500)")
    page.unroute("**/cases/*")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(many["title"])
    expect(page.locator("#problem")).to_be_empty()


def test_missing_files_and_models_leave_the_texts(page: Page, many: Document) -> None:
    page.route("**/file", lambda route: route.abort())
    page.route("**/predict?*", lambda route: route.abort())
    page.route("**/similar?*", lambda route: route.abort())
    page.goto(f"/pages/case/{many['u_id']}")
    expect(page.locator("#stage").get_by_text("could not be loaded")).to_be_visible()
    page.get_by_role("button", name="Predict this image").click()
    expect(page.locator("#prediction")).to_contain_text("cannot be reached")
    page.locator("#similar").scroll_into_view_if_needed()
    expect(page.locator("#similar")).to_contain_text("cannot be reached")
    expect(page.locator("[data-field=history]")).to_contain_text(many["history"])


def test_on_a_slow_network_the_last_image_wins(page: Page, many: Document) -> None:
    predictions = hold(page, "**/images/*/predict?*")
    page.goto(f"/pages/case/{many['u_id']}")
    page.get_by_role("button", name="Predict this image").click()
    expect(page.locator("#prediction")).to_contain_text("Predicting")
    page.locator("#strip a").nth(1).click()
    expect(page.locator("#prediction")).to_be_empty()
    for route in predictions:
        route.fulfill(response=route.fetch())
    page.evaluate("fetch('/health/live').then((answer) => answer.text())")  # its answer comes after those
    expect(page.locator("#prediction")).to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_without_scrolling_sideways(
    page: Page, many: Document, scheme: str, shoot: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
    page.goto(f"/pages/case/{many['u_id']}")
    page.get_by_role("button", name="Predict this image").click()
    expect(page.locator(".prediction")).to_have_count(2)
    assert fits(page)
    middles = "parts => parts.map((part) => part.offsetTop + part.offsetHeight / 2)"
    tops = page.locator(".tools").first.locator("> :visible").evaluate_all(middles)
    assert max(tops) - min(tops) < 4, "the first tools stand in more than one row"
    assert page.locator("#place").evaluate("place => place.scrollWidth <= place.clientWidth")
    shoot(f"case-narrow-{scheme}")


def test_markup_in_data_and_address_stays_text(page: Page, hostile_site: str) -> None:
    page.goto(f"{hostile_site}/pages/case/MPX1001")
    expect(page.get_by_role("heading", level=1)).to_contain_text("<img src=x")
    expect(page.locator("[data-field=history]")).to_contain_text("<script>")
    expect(page.locator("#caption")).to_contain_text("<img src=x")
    assert page.locator("a[href^='javascript']").count() == 0
    page.goto(f'{hostile_site}/pages/case/"><script>window.hit=1<%2Fscript>#<img src=x onerror=window.hit=1>')
    assert page.evaluate("window.hit") is None


@pytest.mark.medpix
def test_a_real_case_with_many_images_is_walked(page: Page, medpix_api: httpx.Client) -> None:
    page.goto(f"{medpix_api.base_url}/pages/case/MPX2175")
    expect(page.locator("#strip a")).to_have_count(31)
    assert fits(page)
    page.locator("#strip a").last.click()
    _stack(page, 31, 31)
    expect(page.locator("#case-place")).to_have_text(re.compile(r"^Case \d+ of 671$"))
    # Without a model the page says so, and how to get one.
    page.get_by_role("button", name="Predict this image").click()
    expect(page.locator("#prediction")).to_contain_text("medpix train modality")
