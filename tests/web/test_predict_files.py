"""Many files, and files that cannot be read, on the predict page in a real Chromium."""

import base64
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import imagecodecs
import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from tests.api.predict_client import ask
from tests.serving.decode.dicom_files import dicom
from tests.serving.hostile_files import accepted, refused
from tests.web.predict_page import choose, png_file, shows_status, verdict_of

pytestmark = pytest.mark.browser

Document = dict[str, Any]


def test_many_images_are_a_table_to_sort_and_to_download(
    page: Page, predict_api: httpx.Client, tmp_path: Path, shoot: Callable[[str], None]
) -> None:
    files = dict(accepted())
    answers = {
        f"{name}.png": {task: ask(predict_api, f"/predict/{task}", data).json() for task in ("modality", "location")}
        for name, data in files.items()
    }
    page.goto("/pages/predict")
    choose(page, *(png_file(f"{name}.png", data) for name, data in files.items()), png_file("bad.png", b"no image"))
    shows_status(page, f"{len(files)} images analysed, 1 failed.")
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
    column = page.get_by_role("columnheader", name="Probability of the location")
    expect(column).to_have_attribute("aria-sort", "descending")
    column.get_by_role("button").click()
    expect(column).to_have_attribute("aria-sort", "ascending")
    expect(rows.locator(".number").nth(1)).to_have_text(f"{100 * best[-1]:.1f}%")
    expect(rows.last).to_contain_text("bad.png")

    # One file is shown at a time, the first or the one that is chosen.
    expect(page.locator(".item:visible .name")).to_have_text(next(iter(answers)))
    page.locator(".overview").get_by_role("button", name="rgb.png", exact=True).click()
    expect(page.locator(".item:visible .name")).to_have_text("rgb.png")
    assert verdict_of(page, "modality", ".item:visible ") == answers["rgb.png"]["modality"]["label"]
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
    choose(page, png_file('=1+1, "x".png', png), png_file("b.png", png))
    shows_status(page, "2 images analysed.")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        assert [row["file"] for row in csv.DictReader(lines)] == ['\'=1+1, "x".png', "b.png"]


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
    shows_status(page, "1 image analysed.")
    expect(page.locator(".item .name")).to_have_text("brought.png")


def test_a_dicom_file_is_shown_as_it_was_analysed(page: Page) -> None:
    pixels = (np.arange(64 * 48) % 4096).astype(np.uint16).reshape(48, 64)
    page.goto("/pages/predict")
    # As archives name their files; a list of extensions would hide it in the file picker.
    assert page.get_by_label("Choose images").get_attribute("accept") is None
    choose(page, png_file("IM000001", dicom(pixels), ""))
    shows_status(page, "1 image analysed.")
    picture = page.get_by_role("img", name="The image of IM000001 that was analysed")
    expect(picture).to_be_visible()
    expect(picture).to_have_js_property("complete", value=True)
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 48]
    page.get_by_role("button", name="Explain").first.click()
    expect(page.locator(".heat")).to_be_visible(timeout=20_000)


def test_a_png_of_sixteen_bits_is_shown_as_it_was_analysed(page: Page, tmp_path: Path) -> None:
    """A browser shows the upper 8 bits of its values, which are black here."""
    values = np.tile(np.arange(64, dtype=np.uint16) * 65, (48, 1))
    page.goto("/pages/predict")
    deep, plain = bytes(imagecodecs.png_encode(values)), bytes(imagecodecs.png_encode((values >> 4).astype(np.uint8)))
    choose(page, png_file("deep.png", deep), png_file("plain.png", plain))
    shows_status(page, "2 images analysed.")
    shown = page.locator(".item img[alt$='that was analysed']")
    expect(shown).to_have_count(1)
    expect(shown).to_have_attribute("alt", "The image of deep.png that was analysed")
    expect(shown).to_have_js_property("complete", value=True)
    brightest = """image => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
      canvas.getContext("2d").drawImage(image, 0, 0);
      return Math.max(...canvas.getContext("2d").getImageData(0, 0, 64, 48).data.filter((_, at) => at % 4 === 0));
    }"""
    assert shown.evaluate(brightest) == 255
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        assert "notes" in next(csv.reader(lines))


def test_previews_are_asked_for_one_after_the_other_and_again_after_503(page: Page, complaints: list[str]) -> None:
    answered: list[str] = []
    asked: list[str] = []
    waiting: list[int] = []

    def refuse_every_second(route: Route) -> None:
        asked.append(route.request.url)
        waiting.append(len(asked) - len(answered))
        if len(asked) % 2:
            problem = {"status": 503, "title": "Service Unavailable", "detail": "Busy."}
            answered.append("refused")
            route.fulfill(status=503, headers={"Retry-After": "1"}, json=problem)
        else:
            response = route.fetch()
            answered.append("shown")
            route.fulfill(response=response)

    page.route("**/preview", refuse_every_second)
    pixels = (np.arange(64 * 48) % 4096).astype(np.uint16).reshape(48, 64)
    page.goto("/pages/predict")
    choose(page, *(png_file(f"IM{number}", dicom(pixels + number), "") for number in range(4)))
    expect(page.locator(".item img[alt$='that was analysed']")).to_have_count(4, timeout=30_000)
    assert (len(asked), max(waiting)) == (8, 1)
    complaints[:] = [complaint for complaint in complaints if "503" not in complaint]


@pytest.mark.parametrize("modality", ["CT", "MR", "CR"])
def test_the_modality_of_the_header_is_said(page: Page, predict_api: httpx.Client, modality: str) -> None:
    pixels = np.zeros((64, 64), np.uint16)
    pixels[16:48, 16:48] = 900
    file = dicom(pixels, Modality=modality)
    answer = ask(predict_api, "/predict/modality", file).json()
    page.goto("/pages/predict")
    choose(page, png_file("scan.dcm", file, "application/dicom"))
    shows_status(page, "1 image analysed.")
    verdict = page.locator(".verdict-slot[data-task=modality]")
    expect(verdict).to_contain_text(f"Modality in the DICOM header: {modality}.")
    is_contradicted = modality != answer["label"]
    assert answer["decision"] == "uncertain" or not is_contradicted
    expect(verdict.locator(".doubt", has_text=f"the DICOM header says {modality}")).to_have_count(int(is_contradicted))
    location = page.locator(".verdict-slot[data-task=location] .doubt", has_text="trained on CT and MR images only")
    expect(location).to_have_count(int(modality == "CR"))


# One file of each status; that the API refuses every one in a sentence is tested there.
@pytest.mark.parametrize("name", {status: name for name, (_, status, _) in refused().items()}.values())
def test_a_hostile_file_is_refused_in_a_sentence(page: Page, name: str) -> None:
    data, _, words = refused()[name]
    page.goto("/pages/predict")
    choose(page, png_file(f"{name}.png", data))
    # Once for the file, not once for each task.
    expect(page.locator(".item .notice.error")).to_have_count(1, timeout=20_000)
    expect(page.locator(".item .notice.error")).to_contain_text(words)
    expect(page.locator(".prediction")).to_have_count(0)
    shows_status(page, "1 image failed.")


def test_what_became_of_many_images_is_counted(page: Page, png: bytes) -> None:
    page.goto("/pages/predict")
    choose(page, png_file("good.png", png), png_file("bad.png", b"no image"), png_file("worse.png", b""))
    shows_status(page, "1 image analysed, 2 failed.")


def test_a_name_that_is_markup_stays_text(page: Page, png: bytes) -> None:
    name = '<img src=x onerror="window.hit=1">.png'
    page.goto("/pages/predict")
    choose(page, png_file(name, png))
    shows_status(page, "1 image analysed.")
    expect(page.locator(".item .name")).to_have_text(name)
    page.get_by_label("Caption").fill("<script>window.hit=1</script>")
    page.keyboard.press("Enter")
    expect(page.locator(".verdict-slot[data-task=location] .verdict")).to_be_visible()
    assert page.evaluate("window.hit") is None
