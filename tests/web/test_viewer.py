"""The viewer of the case page: stack, zoom, brightness and contrast, comparison."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

pytestmark = pytest.mark.browser

Document = dict[str, Any]


@pytest.fixture
def stack(predict_api: httpx.Client) -> Document:
    """A case with at least three images."""
    case = predict_api.get("/cases", params={"image_count__gte": 3, "limit": 1}).json()["items"][0]
    document: Document = predict_api.get(case["links"]["self"]).json()
    return document


@pytest.fixture
def touch(browser: Browser, site: str) -> Iterator[Page]:
    """A page on a phone."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, base_url=site)
    yield context.new_page()
    context.close()


def _open(page: Page, case: Document) -> None:
    page.goto(f"/pages/case/{case['u_id']}")
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")


def _stack(page: Page, position: int, case: Document) -> None:
    expect(page.locator("#place")).to_have_text(f"Image {position} of {len(case['images'])}")


def _transform(picture: Locator) -> str:
    return str(picture.evaluate("image => image.style.transform"))


def _drag(page: Page, x: int, y: int, part: str = "#stage") -> None:
    box = page.locator(part).bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y, steps=4)
    page.mouse.up()


def test_the_wheel_scrolls_the_stack_and_then_the_page(page: Page, stack: Document) -> None:
    _open(page, stack)
    page.locator("#stage").hover()
    for position in range(2, len(stack["images"]) + 1):
        page.mouse.wheel(0, 100)
        _stack(page, position, stack)
    assert page.evaluate("scrollY") == 0
    page.wait_for_timeout(500)
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => scrollY > 0")
    _stack(page, len(stack["images"]), stack)


def test_zoom_and_position_stay_in_the_stack_and_go_with_the_case(page: Page, stack: Document) -> None:
    _open(page, stack)
    picture = page.locator("#picture")
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowRight")
    zoomed = _transform(picture)
    assert re.search(r"translate\(-60px, 0px\) scale\(1\.96", zoomed)
    page.keyboard.press("ArrowDown")
    _stack(page, 2, stack)
    assert _transform(picture) == zoomed
    page.keyboard.press("ArrowRight")
    expect(page.locator("#zoom-level")).to_have_text("Fit")


def test_a_swipe_scrolls_the_stack(touch: Page, stack: Document) -> None:
    _open(touch, stack)
    box = touch.locator("#stage").bounding_box()
    assert box
    session = touch.context.new_cdp_session(touch)
    y = box["y"] + box["height"] / 2

    def swipe(xs: list[int]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": xs[0], "y": y}]})
        for x in xs[1:]:
            session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y}]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    swipe([250, 240, 225, 200, 195])
    _stack(touch, 2, stack)
    swipe([150, 160, 175, 200, 205])
    _stack(touch, 1, stack)


def test_on_a_phone_the_stage_has_the_shape_of_the_image_and_the_history_follows(
    touch: Page, predict_api: httpx.Client
) -> None:
    cases = predict_api.get("/cases", params={"history__isnull": "false", "limit": 20}).json()["items"]
    case = predict_api.get(cases[0]["links"]["self"]).json()
    _open(touch, case)
    stage, image = touch.locator("#stage").bounding_box(), case["images"][0]
    assert stage
    assert stage["width"] / stage["height"] == pytest.approx(image["width"] / image["height"], rel=0.02)
    history = touch.locator("[data-field=history]").bounding_box()
    assert history
    assert history["y"] < stage["y"] + stage["height"] + 844


def test_brightness_and_contrast_by_sliders_and_keys(page: Page, stack: Document) -> None:
    _open(page, stack)
    picture = page.locator("#picture")
    page.keyboard.press("a")
    page.get_by_role("slider", name="Brightness").fill("150")
    page.get_by_role("slider", name="Contrast").fill("80")
    expect(picture).to_have_css("filter", "brightness(1.5) contrast(0.8)")
    page.keyboard.press("i")
    expect(picture).to_have_css("filter", "invert(1) brightness(1.5) contrast(0.8)")
    expect(page.get_by_role("button", name="Invert")).to_have_attribute("aria-pressed", "true")
    # It stays in the stack, and is said to be of the image.
    page.locator("#stage").hover()
    page.mouse.wheel(0, 100)
    _stack(page, 2, stack)
    expect(picture).to_have_css("filter", "invert(1) brightness(1.5) contrast(0.8)")
    expect(page.locator("#tone")).to_contain_text("8-bit image")
    page.get_by_role("button", name="Reset").click()
    expect(picture).to_have_css("filter", "none")
    expect(page.get_by_role("slider", name="Brightness")).to_have_value("100")


def test_a_drag_changes_brightness_and_contrast_and_moves_what_is_zoomed(page: Page, stack: Document) -> None:
    _open(page, stack)
    picture = page.locator("#picture")
    _drag(page, 60, -40)
    expect(picture).to_have_css("filter", "brightness(1.2) contrast(1.3)")
    page.keyboard.press("r")
    expect(picture).to_have_css("filter", "none")
    page.keyboard.press("+")
    _drag(page, 20, 10)
    expect(picture).to_have_css("filter", "none")
    assert "translate(20px, 10px)" in _transform(picture)
    # With the sliders open a drag is meant for them.
    page.keyboard.press("a")
    _drag(page, 20, 0)
    expect(picture).to_have_css("filter", "brightness(1) contrast(1.1)")


def test_two_images_are_compared_under_one_zoom(page: Page, stack: Document) -> None:
    names = [image["image"] for image in stack["images"]]
    _open(page, stack)
    page.get_by_role("button", name="Compare").click()
    first, second = page.locator("#picture"), page.locator("#picture-2")
    expect(second).to_have_attribute("src", re.compile(names[1]))
    boxes = [page.locator(part).bounding_box() for part in ("#stage", "#stage-2")]
    assert boxes[0]
    assert boxes[1]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    page.locator("#stage-2").hover()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    assert "scale(1.6" in _transform(first)
    assert _transform(first) == _transform(second)
    page.keyboard.press("i")
    assert first.evaluate("image => image.style.filter") == second.evaluate("image => image.style.filter") != ""
    # The wheel is for the pane below it.
    page.mouse.wheel(0, 100)
    expect(second).to_have_attribute("src", re.compile(names[2]))
    expect(first).to_have_attribute("src", re.compile(names[0]))
    # What is done next is done with the image that the words are of.
    for name in ("download", "open-predict"):
        expect(page.locator(f"#{name}")).to_have_attribute("href", re.compile(names[2]))
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#copied")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()").endswith(f"#{names[2]}")
    page.keyboard.press("c")
    expect(page.locator("#stage-2")).to_be_hidden()
    expect(page.locator("#open-predict")).to_have_attribute("href", re.compile(names[0]))


def test_the_image_is_downloaded_and_its_link_copied(page: Page, stack: Document, predict_api: httpx.Client) -> None:
    image = stack["images"][1]
    page.goto(f"/pages/case/{stack['u_id']}?modality__in=CT|MR#{image['image']}")
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"{image['image']}.png"
    assert download.value.path().read_bytes() == predict_api.get(image["links"]["file"]).content
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#copied")).to_have_text("Copied.")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.endswith(f"/pages/case/{stack['u_id']}#{image['image']}")
    assert "modality" not in copied


def test_the_viewer_stays_beside_the_text(page: Page, stack: Document) -> None:
    page.set_viewport_size({"width": 1280, "height": 700})
    _open(page, stack)
    page.mouse.move(1100, 500)
    page.mouse.wheel(0, 600)
    page.wait_for_function("() => scrollY > 200")
    expect(page.locator("#stage")).to_be_in_viewport(ratio=0.99)
    expect(page.locator(".tools").first).to_be_in_viewport(ratio=0.99)
