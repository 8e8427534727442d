"""The predict page in a real Chromium."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.api.predict_client import ask
from tests.serving.hostile_files import accepted
from tests.web.layout import fits
from tests.web.network import hold
from tests.web.predict_page import choose, png_file, shows_status, verdict_of

pytestmark = pytest.mark.browser

Document = dict[str, Any]


@pytest.fixture
def training_image(predict_api: httpx.Client) -> tuple[Document, bytes]:
    """The record and the file of an image that the models were trained on."""
    params = {"split": "train", "caption__isnull": "false", "location": "Spine"}
    image = predict_api.get("/images", params=params).json()["items"][0]
    return image, predict_api.get(image["links"]["file"]).content


def test_an_uploaded_image_is_predicted_with_all_that_qualifies_it(
    page: Page, predict_api: httpx.Client, training_image: tuple[Document, bytes], shoot: Callable[[str], None]
) -> None:
    image, data = training_image
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", data))
    shows_status(page, "1 image analysed.")
    for task in ("modality", "location"):
        expected = ask(predict_api, f"/predict/{task}", data).json()
        view = page.locator(f".prediction[data-task={task}]")
        assert verdict_of(page, task) == expected["label"]
        expect(page.locator(f".verdict-slot[data-task={task}] .verdict .tag")).to_have_text(expected["decision"])
        expect(view.locator(".bars").first.locator("> li")).to_have_count(min(5, len(expected["probabilities"])))
        share = f"{100 * expected['probabilities'][0]['probability']:.1f}%"
        expect(view.locator(".bars .count").first).to_have_text(share)
        view.locator("summary", has_text="ms by").click()
        expect(view).to_contain_text(expected["model"]["sha256"])
        expect(view).to_contain_text(re.compile(r"Time.*\d+ ms in total"))
    expect(page.locator("[data-task=location] .region")).to_contain_text("Location category")
    # Said once for the image, not once for each question.
    expect(page.get_by_text("This image is in the training split of the dataset")).to_have_count(1)
    expect(page.get_by_role("link", name=image["image"])).to_have_count(1)
    # The same question again is answered from memory, and called that.
    page.get_by_role("button", name="Predict again").click()
    shows_status(page, "1 image analysed.")
    modality = page.locator(".prediction[data-task=modality]")
    modality.locator("summary", has_text="ms by").click()
    expect(modality).to_contain_text("cache")
    shoot("predict")


def test_a_caption_changes_what_the_location_is_predicted_from(
    page: Page, predict_api: httpx.Client, png: bytes
) -> None:
    caption = "Axial CT shows a stone in the left ureter with hydronephrosis of the kidney."
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", png))
    shows_status(page, "1 image analysed.")
    expect(page.locator("[data-task=location] .notes")).to_contain_text("image alone")
    page.get_by_label("Caption").fill(caption)
    page.keyboard.press("Enter")
    expect(page.locator("[data-task=location] .notes")).to_have_count(0)
    assert verdict_of(page, "location") == ask(predict_api, "/predict/location", png, caption).json()["label"]


def test_doubt_is_said_plainly(page: Page, predict_api: httpx.Client) -> None:
    decisions = {
        name: ask(predict_api, "/predict/location", data).json()["decision"] for name, data in accepted().items()
    }
    doubted = next(name for name, decision in decisions.items() if decision == "uncertain")
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", accepted()[doubted]))
    doubt = page.locator("[data-task=location] .doubt")
    expect(doubt).to_be_visible()
    # One sentence says why: the image, or the confidence.
    is_unlike = page.locator("[data-task=location] .notes", has_text="out of distribution").count() > 0
    reason = "the image differs from all images" if is_unlike else "answers at this confidence were wrong too often"
    expect(doubt).to_contain_text(reason)


def test_an_example_of_the_dataset_is_one_click_and_an_address(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/pages/predict")
    examples = page.locator("#examples a")
    examples.nth(0).click()
    shows_status(page, "1 image analysed.")
    first = page.locator(".item .name").inner_text()
    assert page.url.endswith(f"?image={first.removesuffix('.png')}")
    image = predict_api.get(f"/images/{first.removesuffix('.png')}").json()
    expect(page.get_by_label("Caption")).to_have_value(image["caption"])
    expect(page.locator(".verdict-slot[data-task=modality]")).to_contain_text(f"True label: {image['modality']}")
    page.locator("#examples-box summary").click()
    examples.nth(1).click()
    expect(page.locator(".item .name")).not_to_have_text(first)
    page.go_back()
    expect(page.locator(".item .name")).to_have_text(first)
    page.go_back()
    expect(page.locator(".item")).to_have_count(0)
    page.go_forward()
    expect(page.locator(".item .name")).to_have_text(first)
    page.reload()
    expect(page.locator(".item .name")).to_have_text(first)


def test_a_double_click_adds_an_example_once(page: Page) -> None:
    page.goto("/pages/predict")
    files = hold(page, "**/images/*/file")
    example = page.locator("#examples a").first
    expect(example).to_be_visible()
    before = page.evaluate("history.length")
    example.dblclick()
    while len(files) < 2:
        page.wait_for_timeout(20)
    for route in files:
        route.continue_()
    shows_status(page, "1 image analysed.")
    expect(page.locator(".item")).to_have_count(1)
    assert page.evaluate("history.length") == before + 1


def test_a_slash_at_the_end_leaves_the_query(page: Page, training_image: tuple[Document, bytes]) -> None:
    name = training_image[0]["image"]
    page.goto(f"/pages/predict/?image={name}")
    expect(page.locator(".item .name")).to_have_text(f"{name}.png")
    assert page.url.endswith(f"/pages/predict?image={name}")


def test_an_unknown_example_is_said(page: Page) -> None:
    page.goto("/pages/predict?image=MPX9999_synpic99999")
    expect(page.get_by_role("alert")).to_contain_text("There is no image MPX9999_synpic99999")


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_picture_verdict_and_caption_are_in_the_first_screen(
    page: Page, predict_api: httpx.Client, width: int, height: int, shoot: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": width, "height": height})
    params = {"split": "test", "caption__isnull": "false"}
    image = predict_api.get("/images", params=params).json()["items"][0]
    page.goto("/pages/predict")
    expect(page.get_by_text("Or try an example from the test split")).to_be_visible()
    choose(page, png_file("scan.png", predict_api.get(image["links"]["file"]).content))
    shows_status(page, "1 image analysed.")
    assert page.evaluate("scrollY") == 0
    expect(page.locator("#examples")).to_be_hidden()
    for part in (".overlay img", "[data-task=modality] .verdict", "[data-task=location] .verdict", "textarea"):
        expect(page.locator(part)).to_be_in_viewport(ratio=1)
    # One more click, and the examples are back.
    page.locator("#examples-box summary").click()
    expect(page.locator("#examples a").first).to_be_visible()
    shoot(f"predict-first-screen-{width}")


def test_what_the_caption_changed_is_said(page: Page, predict_api: httpx.Client, png: bytes) -> None:
    caption = "Axial CT shows a stone in the left ureter with hydronephrosis of the kidney."
    alone = ask(predict_api, "/predict/location", png).json()
    both = ask(predict_api, "/predict/location", png, caption).json()
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", png))
    shows_status(page, "1 image analysed.")
    expect(page.locator(".effect")).to_be_empty()
    page.get_by_label("Caption").fill(caption)
    page.keyboard.press("Enter")
    share = {
        name: f"{100 * answer['probabilities'][0]['probability']:.1f}%"
        for name, answer in (("alone", alone), ("both", both))
    }
    if alone["label"] == both["label"]:
        words = f"{both['label']} from {share['alone']} to {share['both']}."
    else:
        words = f"from {alone['label']} ({share['alone']}) to {both['label']} ({share['both']})."
    expect(page.locator(".effect")).to_contain_text(words)
    # It is about that answer alone.
    page.route("**/predict/location", lambda route: route.abort())
    page.get_by_role("button", name="Predict again").click()
    expect(page.locator(".verdict-slot[data-task=location]")).to_contain_text("cannot be reached")
    expect(page.locator(".effect")).to_be_empty()


@pytest.mark.parametrize("title", ["curl", "Python"])
def test_the_copied_request_gives_the_same_answer(page: Page, png: bytes, title: str, tmp_path: Path) -> None:
    name = 'it\'s a, "scan"; $HOME.png'
    (tmp_path / name).write_bytes(png)
    page.goto("/pages/predict")
    choose(page, png_file(name, png))
    shows_status(page, "1 image analysed.")
    page.get_by_label("Caption").fill('@home: it\'s a "mass" in $HOME; the brain \\ né')
    page.get_by_role("button", name="Predict again").click()
    expect(page.locator("[data-task=location] .notes")).to_have_count(0)
    location = page.locator(".prediction[data-task=location]")
    location.get_by_text("Copy as curl or Python").click()
    copy = location.get_by_role("button", name=f"Copy as {title}")
    copy.click()
    expect(location.get_by_role("status").filter(has_text="Copied.")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    command = ["bash", "-c", text] if title == "curl" else [sys.executable, "-c", text]
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    label = re.search(r'"label":"([^"]+)"', done.stdout)
    answer = label[1] if label else done.stdout.strip()
    assert answer == verdict_of(page, "location")


def test_a_failing_api_is_said_and_can_be_asked_again(page: Page, png: bytes) -> None:
    page.route("**/predict/modality", lambda route: route.fulfill(status=500, body="no JSON"))
    page.route("**/predict/location", lambda route: route.abort())
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", png))
    expect(page.locator(".verdict-slot[data-task=modality]")).to_contain_text("failed (status 500)")
    expect(page.locator(".verdict-slot[data-task=location]")).to_contain_text("cannot be reached")
    page.unroute_all()
    for _ in range(2):
        page.get_by_role("button", name="Try again").first.click()
    expect(page.locator(".prediction")).to_have_count(2)


def test_on_a_slow_network_the_page_says_that_it_waits(page: Page, png: bytes) -> None:
    routes = hold(page, re.compile("/predict/(modality|location)$"))
    page.goto("/pages/predict")
    choose(page, png_file("scan.png", png))
    expect(page.locator("#status")).to_contain_text("Analysing 1 image")
    expect(page.locator(".verdict-slot[data-task=modality]")).to_contain_text("Predicting the modality")
    for route in routes:
        route.continue_()
    shows_status(page, "1 image analysed.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_without_scrolling_sideways(
    page: Page, png: bytes, scheme: str, shoot: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
    page.goto("/pages/predict")
    choose(page, png_file("a-name-without-any-space-" * 6 + ".png", png))
    shows_status(page, "1 image analysed.")
    for summary in page.locator(".item summary").all():
        summary.click()
    assert fits(page)
    shoot(f"predict-narrow-{scheme}")
