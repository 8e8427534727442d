"""The predict page in a real Chromium."""

import base64
import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.api.predict_client import ask
from tests.serving.decode.dicom_files import dicom
from tests.serving.hostile_files import accepted, refused
from tests.web.layout import fits
from tests.web.network import hold

pytestmark = pytest.mark.browser

Document = dict[str, Any]


def _file(name: str, data: bytes, kind: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": data}


def _choose(page: Page, *files: FilePayload) -> None:
    page.get_by_label("Choose images").set_input_files(list(files))


def _judged(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_have_text(text, timeout=20_000)


def _verdict(page: Page, task: str, item: str = "") -> str:
    return page.locator(f"{item}.verdict-slot[data-task={task}] .verdict strong").inner_text()


@pytest.fixture
def training_image(predict_api: httpx.Client) -> tuple[Document, bytes]:
    """The record and the file of an image that the models were trained on."""
    params = {"split": "train", "caption__isnull": "false", "location": "Spine"}
    image = predict_api.get("/images", params=params).json()["items"][0]
    return image, predict_api.get(image["links"]["file"]).content


def test_an_uploaded_image_is_judged_with_all_that_qualifies_it(
    page: Page, predict_api: httpx.Client, training_image: tuple[Document, bytes], shoot: Callable[[str], None]
) -> None:
    image, data = training_image
    page.goto("/pages/predict")
    _choose(page, _file("scan.png", data))
    _judged(page, "1 image analysed.")
    for task in ("modality", "location"):
        expected = ask(predict_api, f"/predict/{task}", data).json()
        view = page.locator(f".prediction[data-task={task}]")
        assert _verdict(page, task) == expected["label"]
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
    _judged(page, "1 image analysed.")
    modality = page.locator(".prediction[data-task=modality]")
    modality.locator("summary", has_text="ms by").click()
    expect(modality).to_contain_text("cache")
    shoot("predict")


def test_a_caption_changes_what_the_location_is_judged_by(page: Page, predict_api: httpx.Client, png: bytes) -> None:
    caption = "Axial CT shows a stone in the left ureter with hydronephrosis of the kidney."
    page.goto("/pages/predict")
    _choose(page, _file("scan.png", png))
    _judged(page, "1 image analysed.")
    expect(page.locator("[data-task=location] .notes")).to_contain_text("image alone")
    page.get_by_label("Caption").fill(caption)
    page.keyboard.press("Enter")
    expect(page.locator("[data-task=location] .notes")).to_have_count(0)
    assert _verdict(page, "location") == ask(predict_api, "/predict/location", png, caption).json()["label"]


def test_doubt_is_said_plainly(page: Page, predict_api: httpx.Client) -> None:
    decisions = {
        name: ask(predict_api, "/predict/location", data).json()["decision"] for name, data in accepted().items()
    }
    doubted = next(name for name, decision in decisions.items() if decision == "uncertain")
    page.goto("/pages/predict")
    _choose(page, _file("scan.png", accepted()[doubted]))
    doubt = page.locator("[data-task=location] .doubt")
    expect(doubt).to_be_visible()
    # One sentence says why: the image, or the confidence.
    is_unlike = page.locator("[data-task=location] .notes", has_text="unlike every image").count() > 0
    reason = "the image differs from all images" if is_unlike else "answers at this confidence were wrong too often"
    expect(doubt).to_contain_text(reason)


def test_the_map_fades_and_each_input_has_its_say(
    page: Page, predict_api: httpx.Client, png: bytes, shoot: Callable[[str], None]
) -> None:
    caption = "Axial CT shows a nodule in the right upper lobe of the lung."
    page.goto("/pages/predict")
    _choose(page, _file("scan.png", png))
    _judged(page, "1 image analysed.")
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
    _choose(page, _file("scan.png", png))
    _judged(page, "1 image analysed.")
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
    _choose(page, _file("scan.png", png))
    _judged(page, "1 image analysed.")
    expect(page.locator("#status")).to_be_in_viewport()
    page.locator(".prediction[data-task=location]").get_by_role("button", name="Explain").click()
    heat = page.locator("[data-task=location] .heat")
    expect(heat).to_be_visible(timeout=20_000)
    expect(heat).to_be_in_viewport()


def test_an_example_of_the_dataset_is_one_click_and_an_address(page: Page, predict_api: httpx.Client) -> None:
    page.goto("/pages/predict")
    examples = page.locator("#examples a")
    examples.nth(0).click()
    _judged(page, "1 image analysed.")
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


def test_an_unknown_example_is_said(page: Page) -> None:
    page.goto("/pages/predict?image=MPX9999_synpic99999")
    expect(page.get_by_role("alert")).to_contain_text("There is no image MPX9999_synpic99999")


def test_many_images_are_a_table_to_sort_and_to_download(
    page: Page, predict_api: httpx.Client, tmp_path: Path, shoot: Callable[[str], None]
) -> None:
    files = dict(accepted())
    answers = {
        f"{name}.png": {task: ask(predict_api, f"/predict/{task}", data).json() for task in ("modality", "location")}
        for name, data in files.items()
    }
    page.goto("/pages/predict")
    _choose(page, *(_file(f"{name}.png", data) for name, data in files.items()), _file("bad.png", b"no image"))
    _judged(page, f"{len(files)} images analysed, 1 failed.")
    rows = page.locator(".overview tbody tr")
    expect(rows.locator("th")).to_have_text([*answers, "bad.png"])
    for index, answer in enumerate(answers.values()):
        for task in ("modality", "location"):
            expect(rows.nth(index)).to_contain_text(answer[task]["label"])
            expect(rows.nth(index)).to_contain_text(f"{100 * answer[task]['probabilities'][0]['probability']:.1f}%")
    expect(rows.last).to_contain_text("not an image of a known format")

    # By the probability of the location, the highest first; what has none is last.
    page.get_by_role("button", name="Probability of the location").click()
    best = sorted((answer["location"]["probabilities"][0]["probability"] for answer in answers.values()), reverse=True)
    expect(rows.locator(".number").nth(1)).to_have_text(f"{100 * best[0]:.1f}%")
    expect(rows.last).to_contain_text("bad.png")
    expect(page.get_by_role("columnheader", name="Probability of the location")).to_have_attribute(
        "aria-sort", "ascending"
    )

    # One file is shown at a time, the first or the one that is chosen.
    expect(page.locator(".item:visible .name")).to_have_text(next(iter(answers)))
    page.locator(".overview").get_by_role("button", name="rgb.png", exact=True).click()
    expect(page.locator(".item:visible .name")).to_have_text("rgb.png")
    assert _verdict(page, "modality", ".item:visible ") == answers["rgb.png"]["modality"]["label"]
    shoot("predict-many")

    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        table = {row["file"]: row for row in csv.DictReader(lines)}
    assert set(table) == {*answers, "bad.png"}
    for name, answer in answers.items():
        for task in ("modality", "location"):
            assert table[name][task] == answer[task]["label"]
            probability = answer[task]["probabilities"][0]["probability"]
            assert float(table[name][f"{task}_probability"]) == pytest.approx(probability, abs=1e-5)
            assert table[name][f"{task}_decision"] == answer[task]["decision"]
    assert "known format" in table["bad.png"]["problem"]

    page.get_by_role("button", name="Remove rgb.png").click()
    expect(rows).to_have_count(len(files))
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator(".item")).to_have_count(0)
    expect(page.locator(".overview")).to_have_count(0)


def test_a_name_that_is_a_formula_is_kept_from_being_one(page: Page, png: bytes, tmp_path: Path) -> None:
    page.goto("/pages/predict")
    _choose(page, _file('=1+1, "x".png', png), _file("b.png", png))
    _judged(page, "2 images analysed.")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        assert [row["file"] for row in csv.DictReader(lines)] == ['\'=1+1, "x".png', "b.png"]


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_picture_verdict_and_caption_are_in_the_first_screen(
    page: Page, predict_api: httpx.Client, width: int, height: int, shoot: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": width, "height": height})
    params = {"split": "test", "caption__isnull": "false"}
    image = predict_api.get("/images", params=params).json()["items"][0]
    page.goto("/pages/predict")
    page.get_by_text("Or try an example from the test split").is_visible()
    _choose(page, _file("scan.png", predict_api.get(image["links"]["file"]).content))
    _judged(page, "1 image analysed.")
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
    _choose(page, _file("scan.png", png))
    _judged(page, "1 image analysed.")
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


def test_similar_cases_of_an_upload(page: Page, predict_api: httpx.Client, png: bytes) -> None:
    expected = predict_api.post("/search/similar", params={"limit": 8}, files={"image": png}).json()["items"]
    page.goto("/pages/predict")
    _choose(page, _file("scan.png", png))
    _judged(page, "1 image analysed.")
    page.get_by_role("button", name="Find visually similar cases").click()
    tiles = page.locator(".similar .tile")
    expect(tiles).to_have_count(len(expected), timeout=20_000)
    hashes = tiles.evaluate_all("tiles => tiles.map((tile) => tile.hash.slice(1))")
    assert hashes == [item["image"] for item in expected]
    expect(tiles.first).to_contain_text(f"{round(100 * expected[0]['similarity'])}% similar")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_images_come_by_drop_and_by_paste(page: Page, png: bytes, way: str) -> None:
    page.goto("/pages/predict")
    page.evaluate(
        """([way, data]) => {
          const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "brought.png", { type: "image/png" }));
          const init = { bubbles: true, cancelable: true };
          const event = way === "drop"
            ? new DragEvent("drop", { ...init, dataTransfer: transfer })
            : new ClipboardEvent("paste", { ...init, clipboardData: transfer });
          document.body.dispatchEvent(event);
        }""",
        [way, base64.b64encode(png).decode()],
    )
    _judged(page, "1 image analysed.")
    expect(page.locator(".item .name")).to_have_text("brought.png")


def test_a_dicom_file_is_shown_as_it_was_analysed(page: Page) -> None:
    pixels = (np.arange(64 * 48) % 4096).astype(np.uint16).reshape(48, 64)
    page.goto("/pages/predict")
    # As archives name their files; a list of extensions would hide it in the file picker.
    assert page.get_by_label("Choose images").get_attribute("accept") is None
    _choose(page, _file("IM000001", dicom(pixels), ""))
    _judged(page, "1 image analysed.")
    picture = page.get_by_role("img", name="The image of IM000001 that was analysed")
    expect(picture).to_be_visible()
    expect(picture).to_have_js_property("complete", value=True)
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 48]
    page.get_by_role("button", name="Explain").first.click()
    expect(page.locator(".heat")).to_be_visible(timeout=20_000)


@pytest.mark.parametrize("modality", ["CT", "MR", "CR"])
def test_the_modality_of_the_header_is_said(page: Page, predict_api: httpx.Client, modality: str) -> None:
    pixels = np.zeros((64, 64), np.uint16)
    pixels[16:48, 16:48] = 900
    file = dicom(pixels, Modality=modality)
    answer = ask(predict_api, "/predict/modality", file).json()
    page.goto("/pages/predict")
    _choose(page, _file("scan.dcm", file, "application/dicom"))
    _judged(page, "1 image analysed.")
    verdict = page.locator(".verdict-slot[data-task=modality]")
    expect(verdict).to_contain_text(f"Modality in the DICOM header: {modality}.")
    is_contradicted = modality != answer["label"]
    assert answer["decision"] == "uncertain" or not is_contradicted
    expect(verdict.locator(".doubt", has_text=f"the DICOM header says {modality}")).to_have_count(int(is_contradicted))
    location = page.locator(".verdict-slot[data-task=location] .doubt", has_text="trained on CT and MR images only")
    expect(location).to_have_count(int(modality == "CR"))


@pytest.mark.parametrize("name", refused())
def test_every_hostile_file_is_refused_in_a_sentence(page: Page, name: str) -> None:
    data, _, words = refused()[name]
    page.goto("/pages/predict")
    _choose(page, _file(f"{name}.png", data))
    # Once for the file, not once for each task.
    expect(page.locator(".item .notice.error")).to_have_count(1, timeout=20_000)
    expect(page.locator(".item .notice.error")).to_contain_text(words)
    expect(page.locator(".prediction")).to_have_count(0)
    _judged(page, "1 image failed.")


def test_what_became_of_many_images_is_counted(page: Page, png: bytes) -> None:
    page.goto("/pages/predict")
    _choose(page, _file("good.png", png), _file("bad.png", b"no image"), _file("worse.png", b""))
    _judged(page, "1 image analysed, 2 failed.")


def test_a_name_that_is_markup_stays_text(page: Page, png: bytes) -> None:
    name = '<img src=x onerror="window.hit=1">.png'
    page.goto("/pages/predict")
    _choose(page, _file(name, png))
    _judged(page, "1 image analysed.")
    expect(page.locator(".item .name")).to_have_text(name)
    page.get_by_label("Caption").fill("<script>window.hit=1</script>")
    page.keyboard.press("Enter")
    expect(page.locator(".verdict-slot[data-task=location] .verdict")).to_be_visible()
    assert page.evaluate("window.hit") is None


@pytest.mark.parametrize("title", ["curl", "Python"])
def test_the_copied_request_gives_the_same_answer(page: Page, png: bytes, title: str, tmp_path: Path) -> None:
    name = 'it\'s a, "scan"; $HOME.png'
    (tmp_path / name).write_bytes(png)
    page.goto("/pages/predict")
    _choose(page, _file(name, png))
    _judged(page, "1 image analysed.")
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
    assert answer == _verdict(page, "location")


def test_a_failing_api_is_said_and_can_be_asked_again(page: Page, png: bytes) -> None:
    page.route("**/predict/modality", lambda route: route.fulfill(status=500, body="no JSON"))
    page.route("**/predict/location", lambda route: route.abort())
    page.goto("/pages/predict")
    _choose(page, _file("scan.png", png))
    expect(page.locator(".verdict-slot[data-task=modality]")).to_contain_text("failed (status 500)")
    expect(page.locator(".verdict-slot[data-task=location]")).to_contain_text("cannot be reached")
    page.unroute_all()
    for _ in range(2):
        page.get_by_role("button", name="Try again").first.click()
    expect(page.locator(".prediction")).to_have_count(2)


def test_on_a_slow_network_the_page_says_that_it_waits(page: Page, png: bytes) -> None:
    routes = hold(page, re.compile("/predict/(modality|location)$"))
    page.goto("/pages/predict")
    _choose(page, _file("scan.png", png))
    expect(page.locator("#status")).to_contain_text("Analysing 1 image")
    expect(page.locator(".verdict-slot[data-task=modality]")).to_contain_text("Predicting the modality")
    for route in routes:
        route.continue_()
    _judged(page, "1 image analysed.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_without_scrolling_sideways(
    page: Page, png: bytes, scheme: str, shoot: Callable[[str], None]
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
    page.goto("/pages/predict")
    _choose(page, _file("a-name-without-any-space-" * 6 + ".png", png))
    _judged(page, "1 image analysed.")
    for summary in page.locator(".item summary").all():
        summary.click()
    assert fits(page)
    shoot(f"predict-narrow-{scheme}")
